"""A session, seen from the server: the same for both walls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from optillm.core.frozen import empty
from optillm.core.tools import CallRefused, Calls, Outcome, Status
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.wire import HEADER, frame, message_of

MOST_REQUEST = 8 << 20
"""Bytes of what code may ask at once, as JSON."""
_MOST_MESSAGE = 80 << 20
"""Bytes of a message from inside."""
_MOST_START = 60.0
"""Seconds that the process of a session may take to be there."""


class Connection:
    """Frames to and from what stands around the code.

    Args:
        reader, writer: the two ends.
        kill: ends the other side, should it not end by itself.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kill: Callable[[], None]
    ) -> None:
        self._reader, self._writer, self._kill = reader, writer, kill

    def send(self, message: Mapping[str, Any], files: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Hand a message over."""
        self._writer.write(frame(message, files))

    async def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            EOFError, OSError: the other side has ended, or makes no sense.
        """
        sizes = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        if sum(sizes) > _MOST_MESSAGE:
            raise EOFError
        parts = [await self._reader.readexactly(size) for size in sizes]
        try:
            return message_of(*parts)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise EOFError from None

    async def aclose(self) -> None:
        """End the other side, and wait until it has ended.

        It sees the end of the connection, and the connection ends when it has ended everything of the run.
        """
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        try:
            async with asyncio.timeout(5):
                while await self._reader.read(1 << 16):
                    pass
        except (TimeoutError, OSError):
            self._kill()
        self._writer.close()


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """A message about code: its outcome, or something that it asks.

    Behind the wall of WebAssembly the code can forge it, so its form is checked.
    """

    files: dict[str, bytes]
    request: bool = False
    status: Status = "killed"
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    alive: bool = False

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Said:
        """The message, checked.

        Raises:
            EOFError: it makes no sense.
        """
        try:
            return msgspec.convert(message, cls)
        except msgspec.ValidationError:
            raise EOFError from None

    @property
    def outcome(self) -> Outcome:
        """What the code ended with."""
        files = MappingProxyType(self.files)
        return Outcome(self.status, self.exit_code, self.stdout, self.stderr, self.seconds, files, self.alive)


class Blocks:
    """Blocks go in; requests and outcomes come out.

    Args:
        connect: starts a process for the session.
        lost: called when that has failed, before it is tried once more.
        slots: one is held while code runs.
        timeout: seconds that a block may run.
        grace: seconds more that the other side has to say so.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        lost: Callable[[], Awaitable[None]],
        slots: asyncio.Semaphore,
        *,
        timeout: float,
        grace: float,
    ) -> None:
        self._connect, self._lost, self._slots = connect, lost, slots
        self._timeout, self._grace = timeout, grace
        self._connection: Connection | None = None

    async def open(self) -> Connection:
        """Make the process ready, if there is none.

        Raises:
            SandboxUnavailable: it could not be started.
            ValueError: the files of the session do not fit into a folder together.
        """
        if self._connection is None:
            try:
                return await self._begin()
            except (TimeoutError, OSError, EOFError):
                await self._lost()
            try:
                return await self._begin()
            except (TimeoutError, OSError, EOFError):
                raise SandboxUnavailable("the sandbox was ended from outside") from None
        return self._connection

    async def _begin(self) -> Connection:
        connection = await self._connect()
        try:
            async with asyncio.timeout(_MOST_START):
                reply = await connection.receive()
            if "bad_files" in reply:
                raise ValueError(f"files: {reply['bad_files']}")
            if "fault" in reply:
                raise SandboxUnavailable(f"the sandbox could not start a session: {reply['fault']}")
        except BaseException:
            await connection.aclose()
            raise
        self._connection = connection
        return connection

    async def run(self, code: str, *, calls: Calls | None = None) -> Outcome:
        """See :class:`optillm.core.tools.Session`."""
        connection = await self.open()
        message: dict[str, Any] = {"timeout": self._timeout}
        files = {"code": code.encode(errors="replace")}
        left = self._timeout
        try:
            while True:
                said, seconds = await self._turn(connection, message, files, left + self._grace)
                if not said.request:
                    break
                left = max(0.0, left - seconds)
                refused, body = await _answer(said.files.get("body", b""), calls)
                message, files = {"refused": refused}, {"body": body}
        except TimeoutError:
            await self.aclose()
            return Outcome("timeout", None, "", "", self._timeout, empty())
        except (OSError, EOFError):
            await self.aclose()
            return Outcome("killed", None, "", "the session was ended from outside", 0.0, empty())
        except BaseException:
            # The block waits for an answer that nobody will give.
            await self.aclose()
            raise
        if not said.alive:
            await self.aclose()
        return said.outcome

    async def aclose(self) -> None:
        """End the process."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _turn(
        self,
        connection: Connection,
        message: Mapping[str, Any],
        files: Mapping[str, bytes],
        most: float,
    ) -> tuple[Said, float]:
        """Let the code run until it has ended, or asks something; and how many seconds that took."""
        clock = asyncio.get_running_loop().time
        async with self._slots, asyncio.timeout(most):
            since = clock()
            connection.send(message, files)
            return Said.of(await connection.receive()), clock() - since


async def _answer(body: bytes, calls: Calls | None) -> tuple[bool, bytes]:
    """What to say to a request: whether it is refused, and the answer as JSON, or the reason."""
    try:
        name, arguments = msgspec.json.decode(body, type=tuple[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        return True, b"a request is a name and JSON"
    try:
        if calls is None:
            raise CallRefused("there is nobody to ask")
        return False, json.dumps(await calls(name, arguments)).encode()
    except CallRefused as refused:
        return True, str(refused).encode(errors="replace")
