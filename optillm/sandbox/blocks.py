"""A session: blocks of code in one process, which may ask the server something while they run.

    server ── one socket per session ──▶ supervisor ── socket pair ──▶ the process of the code

The supervisor hands a block to the process and hears from it requests, which it passes on as they are, and
that the block is done. It believes nothing that is said there: the socket pair is in the hands of the code.
A message has a kind, a size and a body; one that is too long or makes no sense ends the process. The
supervisor reads one message and then no more until the server has answered, and it never waits for the
process to read.

The process is stopped (SIGSTOP) whenever it is not its turn: between blocks, and while the server answers.
So only its own time counts, and it cannot compute in the server's.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from optillm.sandbox.linux import Kernel
from optillm.sandbox.program import Console
from optillm.sandbox.supervisor import Run, Watched
from optillm.sandbox.wire import frame, receive

MOST_REQUESTS = 1000
"""Requests that one block may make."""
_CHANNEL = 3
_HEAD = struct.Struct("!cI")
_RUN, _ANSWER, _REFUSAL = b"R", b"A", b"E"
_REQUEST, _DONE = b"?", b"."
_MESSAGES = (_REQUEST, _DONE)
_STATUS = MappingProxyType({b"o": "ok", b"e": "error", b"m": "memory"})
_LAST_WORDS = 1.0
"""Seconds that a block gets to end itself after its time is up."""
_LOOK = 0.25
"""Seconds between two looks at the CPU time."""


class Blocks(Run):
    """The supervisor of a session."""

    def __init__(
        self, kernel: Kernel, proc: int, base: int, config: Mapping[str, Any], job: Mapping[str, Any]
    ) -> None:
        super().__init__(kernel, proc, base, config, job)
        self.most: int = config["request_bytes"]
        self.left = self.used = self.most_cpu = 0.0
        self.out_of_time = False
        self._said = bytearray()
        self._to_say = bytearray()

    def serve(self, server: socket.socket) -> None:
        """Run block after block until the server closes the connection, or the process has ended."""
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.begin(theirs.detach(), _inside, 1 << 30)
        try:
            self._stop()
            server.sendall(frame({"ready": True}))
            alive = True
            while alive and (order := receive(server)) is not None:
                alive = self._block(order, server)
        finally:
            if self.code > 0:
                self.end()

    def _block(self, order: Mapping[str, Any], server: socket.socket) -> bool:
        """One block; whether the process can run another."""
        watched = Watched(*self.streams, self.cap, self.tail)
        self.left, self.out_of_time, self.verdict = order["timeout"], False, None
        self.most_cpu = self.kernel.cpu_seconds(self.code) + self.left + 1
        self.used = 0.0
        self._say(_RUN, order["files"]["code"])
        requests = 0
        while (said := self._listen(watched, server)) is not None and said[0] == _REQUEST:
            requests += 1
            if requests > MOST_REQUESTS or self.out_of_time:
                self.verdict = "timeout" if self.out_of_time else "killed"
                said = None
                break
            server.sendall(frame({"request": True}, {"body": said[1]}))
            answer = receive(server)
            if answer is None:
                return False
            self._say(_REFUSAL if answer["refused"] else _ANSWER, answer["files"]["body"])
        status = _STATUS.get(said[1]) if said is not None else None
        exit_code = None
        if status is None:
            ended = os.waitstatus_to_exitcode(self.end()[0])
            watched.drain()
            # Whatever its exit status, a process that has ended within a block was no success.
            status = self.verdict or ("error" if ended >= 0 else "killed")
            exit_code = None if self.verdict else ended
            self.code = -1
        else:
            self._read_rest(watched)
            status = "timeout" if self.out_of_time else "output" if watched.too_much else status
        message = {
            "status": status,
            "exit_code": exit_code,
            "seconds": self.used,
            "alive": self.code > 0,
            **self.written(watched),
        }
        server.sendall(frame(message))
        return self.code > 0

    # -- the process -----------------------------------------------------------------------------

    def _stop(self) -> None:
        os.kill(self.code, signal.SIGSTOP)

    def _say(self, kind: bytes, body: bytes) -> None:
        self._to_say += _HEAD.pack(kind, len(body)) + body

    def _listen(self, watched: Watched, server: socket.socket) -> tuple[bytes, bytes] | None:
        """Let the process run until it has said something; None if it has to end, or has ended."""
        poll = select.poll()
        for fd in (self.pidfd, server.fileno(), *watched.open):
            poll.register(fd, select.POLLIN)
        os.kill(self.code, signal.SIGCONT)
        since = time.monotonic()
        try:
            while self._in_time(since):
                poll.register(self.channel, select.POLLIN | (select.POLLOUT if self._to_say else 0))
                for fd, events in poll.poll(min(self._left_since(since), _LOOK) * 1000 + 1):
                    if fd in watched.open:
                        if not watched.read(fd):
                            poll.unregister(fd)
                    elif fd != self.channel.fileno():
                        # The server has gone, or the process.
                        self.verdict = "killed" if fd == server.fileno() else None
                        return None
                    elif not self._exchange(events):
                        # An end shows on the channel a little earlier than it can be waited for.
                        self.verdict = None if select.select((self.pidfd,), (), (), 0.2)[0] else "killed"
                        return None
                if (message := self._heard()) is not None:
                    return message
            return None
        finally:
            self.left = self._left_since(since)
            self.used += time.monotonic() - since
            self._stop()

    def _left_since(self, since: float) -> float:
        return max(0.0, self.left - (time.monotonic() - since))

    def _in_time(self, since: float) -> bool:
        """Whether the process may go on; when its time is up it is told once, and then has a moment."""
        spent = self.kernel.cpu_seconds(self.code) > self.most_cpu
        if self._left_since(since) > 0 and not spent:
            return True
        if self.out_of_time:
            self.verdict = "timeout"
            return False
        self.out_of_time = True
        self.left = time.monotonic() - since + _LAST_WORDS
        self.most_cpu += 4 * _LAST_WORDS
        os.kill(self.code, signal.SIGINT)
        return True

    def _exchange(self, events: int) -> bool:
        """Say and hear what can be now; False if the channel is of no use any more."""
        try:
            if events & select.POLLOUT and self._to_say:
                sent = self.channel.send(self._to_say[: 1 << 16], socket.MSG_NOSIGNAL)
                del self._to_say[:sent]
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                data = self.channel.recv(self._missing())
                self._said += data
                return bool(data) and self._sane()
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _missing(self) -> int:
        """Bytes of the message that is under way; nothing of the next one is read."""
        if len(self._said) < _HEAD.size:
            return _HEAD.size - len(self._said)
        size: int = _HEAD.unpack_from(self._said)[1]
        return min(_HEAD.size + size - len(self._said), 1 << 16)

    def _sane(self) -> bool:
        if len(self._said) < _HEAD.size:
            return True
        kind, size = _HEAD.unpack_from(self._said)
        return kind in _MESSAGES and 0 < size <= (self.most if kind == _REQUEST else 1)

    def _heard(self) -> tuple[bytes, bytes] | None:
        """A message, once it is complete."""
        if len(self._said) < _HEAD.size or self._missing():
            return None
        kind, body = _HEAD.unpack_from(self._said)[0], bytes(self._said[_HEAD.size :])
        self._said.clear()
        return kind, body

    def _read_rest(self, watched: Watched) -> None:
        """What a stopped process has left in its pipes."""
        while ready := select.select(tuple(watched.open), (), (), 0)[0]:
            for fd in ready:
                watched.read(fd)


# -- inside the process of the code --------------------------------------------------------------


def _inside() -> int:
    """Run blocks until the channel ends."""
    turn = threading.Lock()

    def ask(name: str, arguments: Any) -> Any:
        """Ask the server; threads wait for each other.

        Raises:
            RuntimeError: it refuses; says why.
        """
        body = json.dumps([name, arguments]).encode()
        with turn:
            # An interrupt in the middle of a message would leave the rest of it for the next one.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                _send(_REQUEST, body)
                kind, answer = _receive()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if kind != _ANSWER:
            raise RuntimeError(answer.decode())
        return json.loads(answer)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    console = Console(ask)
    while True:
        _, code = _receive()
        _send(_DONE, _interruptible(console, code.decode())[:1].encode())


def _interruptible(console: Console, code: str) -> str:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            return console.run(code)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        # Its time ended with the block.
        return "error"


def _send(kind: bytes, body: bytes) -> None:
    rest = memoryview(_HEAD.pack(kind, len(body)) + body)
    while rest:
        rest = rest[os.write(_CHANNEL, rest) :]


def _receive() -> tuple[bytes, bytes]:
    kind, size = _HEAD.unpack(_exactly(_HEAD.size))
    return kind, _exactly(size)


def _exactly(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(_CHANNEL, min(size - len(data), 1 << 16))
        if not part:
            # The supervisor has gone.
            os._exit(0)
        data += part
    return bytes(data)
