"""The processes that this one has started, by what /proc says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def descendants(root: int | None = None) -> frozenset[int]:
    """Children of a process, their children, and so on; those that have ended do not count."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            parents[int(entry.name)] = int(fields[1])
    found = {root or os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return frozenset(found - {root or os.getpid()})


def settled(seconds: float = 10, until: Callable[[frozenset[int]], bool] | None = None) -> frozenset[int]:
    """The descendants, once the condition holds (no run is left), or time is up."""
    end = time.monotonic() + seconds
    now = descendants()
    while time.monotonic() < end and not (len(now) <= 2 if until is None else until(now)):
        now = descendants()
    return now
