"""Runs a piece of code as ``__main__``, in the process made for it."""

from __future__ import annotations

import atexit
import builtins
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable

FILENAME = "main.py"
OUTPUT_LOST = 120
"""Exit status when the last output could not be written; the same as the interpreter's own."""


def execute(code: str, out_of_memory: Callable[[], None]) -> int:
    """Run code and return its exit status.

    Args:
        code: Python text.
        out_of_memory: called when a MemoryError ended it.
    """
    _standard_streams()
    _fresh_random_numbers()
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=FILENAME)
    sys.modules["__main__"] = main
    sys.argv = [FILENAME]
    sys.path.insert(0, os.getcwd())
    linecache.cache[FILENAME] = (len(code), None, code.splitlines(keepends=True), FILENAME)
    status = 0
    try:
        # One namespace for globals and locals, so that functions and comprehensions see top-level names.
        exec(compile(code, FILENAME, "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:
        status = _status_of(error, out_of_memory)
    try:
        _finish()
    except BaseException as error:
        status = status or _status_of(error, out_of_memory)
    return status if _flushed() else status or OUTPUT_LOST


def _status_of(error: BaseException, out_of_memory: Callable[[], None]) -> int:
    """The exit status that the interpreter would give for an exception, which is printed."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    if isinstance(error, MemoryError):
        out_of_memory()
    try:
        # Without the frames of this file.
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, frames)
    except (MemoryError, OSError, ValueError, AttributeError):
        # There is no memory or no stderr left to say it; the exit status does.
        return 1
    return 1


def _finish() -> None:
    """What the interpreter does at its end: wait for threads, run what was registered for it."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()


def _flushed() -> bool:
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError, MemoryError, AttributeError):
            done = False
    return done


def _standard_streams() -> None:
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="replace", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(  # type: ignore[misc]  # noqa: SIM115
        1, "w", encoding="utf-8", errors="backslashreplace", closefd=False
    )
    sys.stderr = sys.__stderr__ = open(  # type: ignore[misc]  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )


def _fresh_random_numbers() -> None:
    """A forked process starts with its parent's generator; each run needs one of its own."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
