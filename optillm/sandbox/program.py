"""Runs a piece of code as ``__main__``, in the process made for it; or many pieces, one after the other."""

from __future__ import annotations

import ast
import atexit
import builtins
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, Literal

FILENAME = "main.py"
OUTPUT_LOST = 120
"""Exit status when the last output could not be written; the same as the interpreter's own."""


def execute(code: str, out_of_memory: Callable[[], None]) -> int:
    """Run code and return its exit status.

    Args:
        code: Python text.
        out_of_memory: called when a MemoryError ended it.
    """
    main = _main_module()
    _remember(code, FILENAME)
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


class Console:
    """Runs blocks of code in one namespace, as an interpreter's prompt does.

    Args:
        ask: what the code finds under the name ``ask``: a name and JSON arguments to the server, its JSON
            answer back.
    """

    def __init__(self, ask: Callable[[str, Any], Any]) -> None:
        self._main = _main_module()
        self._main.__dict__["ask"] = ask
        self._number = 0

    def run(self, code: str) -> Literal["ok", "error", "memory"]:
        """Run one block; the value of an expression at its end is printed, if it is not None."""
        self._number += 1
        name = f"block-{self._number}.py"
        _remember(code, name)
        out_of_memory: list[bool] = []
        status = 0
        try:
            tree: Any = compile(code, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            last = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
            exec(compile(tree, name, "exec", dont_inherit=True), self._main.__dict__)
            exec(compile(ast.Interactive(last), name, "single", dont_inherit=True), self._main.__dict__)
        except BaseException as error:
            status = _status_of(error, lambda: out_of_memory.append(True))
        status = status if _flushed() else status or OUTPUT_LOST
        return "memory" if out_of_memory else "error" if status else "ok"


def _main_module() -> types.ModuleType:
    """A fresh ``__main__``, its surroundings made ready."""
    _standard_streams()
    _fresh_random_numbers()
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=FILENAME)
    sys.modules["__main__"] = main
    sys.argv = [FILENAME]
    sys.path.insert(0, os.getcwd())
    return main


def _remember(code: str, name: str) -> None:
    """Let error messages show the lines of a file that is not there."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)


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
