"""Measuring techniques."""
