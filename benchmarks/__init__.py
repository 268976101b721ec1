"""Speed and size of the server, as figures and as ratios taken in one run: ``make bench``.

Everything that is measured, and everything that measures, is a process of its own.
"""
