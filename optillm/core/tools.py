"""Services of the process that techniques may use besides the model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

from optillm.core.state import States

Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of untrusted code ended with.

    Args:
        status: ``ok`` exit status 0; ``error`` another one, or an exception; ``timeout`` the wall or CPU
            time was used up; ``memory`` an uncaught MemoryError; ``output`` more was written than may be
            handed back; ``killed`` ended by any other signal, or from outside.
        exit_code: the exit status; a negative signal number; None when the sandbox ended it.
        stdout: what it printed, at most the cap, decoded with replacement.
        stderr: the end of it, without paths of this machine.
        seconds: wall time of the code.
        files: what it left in its scratch folder, by relative path, if asked for.
        alive: of a block in a session: whether the next block finds what this one has defined.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    files: Mapping[str, bytes]
    alive: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit status 0."""
        return self.status == "ok"


Calls = Callable[[str, Any], Awaitable[Any]]
"""Answers what code in a session asks: a name and JSON arguments, as hostile code may have chosen them; a
JSON value, or :class:`CallRefused`."""


class CallRefused(Exception):
    """What code in a session asked for it cannot have; it sees a RuntimeError with this message."""


class Session(Protocol):
    """Blocks of code, one after the other, in one namespace."""

    async def run(self, code: str, *, calls: Calls | None = None) -> Outcome:
        """Run a block, and answer what it asks while it runs.

        The block asks by ``ask(name, arguments)``, a function in its namespace. It stands still while it is
        answered, and between blocks; only its own time counts. When that is up, it is interrupted by
        KeyboardInterrupt, and ended if it does not stop then. ``status`` says how the block ended: what
        it says of itself may be a lie of hostile code. More output than the cap is left out, and the
        status is ``output``. When the process has ended (``alive`` is false), the next block begins in a
        fresh one.

        Args:
            code: Python text; the value of an expression at its end is printed.
            calls: who answers; without it everything is refused. What it raises beside CallRefused ends
                the block, and is raised here.
        """
        ...


class Sandbox(Protocol):
    """Runs Python code that nobody has looked at."""

    async def start(self) -> tuple[str, ...]:
        """Make it ready, if it is not; the modules that code finds imported already.

        Raises:
            SandboxUnavailable: there is no sandbox on this machine; says why.
        """
        ...

    async def run(
        self,
        code: str,
        *,
        timeout: float = 30.0,
        memory_mb: int = 1024,
        files: Mapping[str, bytes] = MappingProxyType({}),
        stdin: str = "",
        keep_files: bool = False,
    ) -> Outcome:
        """Run code as ``__main__`` in a fresh process that can reach nothing.

        Args:
            code: Python text.
            timeout: wall time in seconds from the start of the code, over 0 and at most 3600.
            memory_mb: address space in MiB, on top of the interpreter's own, 16 to 65536.
            files: put into the scratch folder, its working directory, by relative path.
            stdin: what it may read.
            keep_files: hand back what it leaves in the scratch folder.

        Raises:
            ValueError: an argument is out of range.
            SandboxUnavailable: there is no sandbox on this machine.
        """
        ...

    def session(
        self,
        *,
        timeout: float = 30.0,
        memory_mb: int = 1024,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> AbstractAsyncContextManager[Session]:
        """A process that runs blocks of code until the context ends; it can reach nothing but its server.

        Args:
            timeout: seconds that a block may run, as for :meth:`run`.
            memory_mb: as for :meth:`run`.
            files: put into the scratch folder, of every process that the session needs.

        Raises:
            ValueError: an argument is out of range.
            SandboxUnavailable: there is no sandbox on this machine.
        """
        ...

    async def aclose(self) -> None:
        """End what runs, and the sandbox with it."""
        ...


class RewardModel(Protocol):
    """Scores the end of a conversation."""

    name: str

    async def score(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """The reward of the last message, on the model's own scale.

        Raises:
            UpstreamError, UpstreamTimeout: no score could be had.
        """
        ...


class Embedder(Protocol):
    """Turns texts into vectors whose cosine says how near they are in meaning."""

    name: str

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, all of one length.

        Raises:
            UpstreamError, UpstreamTimeout: none could be had.
        """
        ...


@dataclass(frozen=True)
class Tools:
    """Services of the process that are handed to runs; they hold no request's data.

    Args:
        sandbox: where code is run; None if the operator switched it off.
        reward: an external reward model, if there is one.
        embedder: an embedding model, if there is one.
        states: what is remembered between requests, by tenant; None if nothing is.
    """

    sandbox: Sandbox | None = None
    reward: RewardModel | None = None
    embedder: Embedder | None = None
    states: States | None = None
