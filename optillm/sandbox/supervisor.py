"""One run, seen by its supervisor: makes its walls, forks the code into them, watches it, ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from optillm.sandbox import jail
from optillm.sandbox.linux import Kernel
from optillm.sandbox.program import execute

_PIPE_READ = 1 << 16


class BadFiles(Exception):
    """The files of a job do not fit into a folder together."""


class Run:
    """One run.

    Args:
        kernel: to make the walls with.
        proc: file descriptor of the host's /proc; it is closed before the code is there.
        base: address space of the warm process in bytes.
        config: of the sandbox.
        job: what the server wants.
    """

    def __init__(
        self, kernel: Kernel, proc: int, base: int, config: Mapping[str, Any], job: Mapping[str, Any]
    ) -> None:
        self.kernel, self.proc, self.base, self.job = kernel, proc, base, job
        self.scratch_mb: int = config["scratch_mb"]
        self.cap: int = config["output_bytes"]
        self.tail: int = config["stderr_tail"]
        self.names: list[tuple[str, str]] = config["renamed"]
        self.verdict: str | None = None
        self.started = 0.0
        self.init = self.code = self.pidfd = -1
        self.streams = (-1, -1)

    def outcome(self, channel: socket.socket) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Run the code to its end, or end it; the outcome, and the files that it left."""
        memory = os.pipe()
        self.begin(
            memory[1], lambda: execute(self.job["code"], lambda: _tell(3)), int(self.job["timeout"]) + 1
        )
        watched = Watched(*self.streams, self.cap, self.tail)
        try:
            self._watch(watched, channel)
        finally:
            status, usage = self.end()
        seconds = time.monotonic() - self.started
        watched.drain()
        verdict, exit_code = self._judge(status, usage, watched, bool(os.read(memory[0], 1)))
        files: dict[str, bytes] = {}
        if self.job["keep_files"]:
            files, complete = jail.take_files(self.scratch_mb << 20)
            if not complete:
                verdict = "output"
        return {"status": verdict, "exit_code": exit_code, "seconds": seconds, **self.written(watched)}, files

    def begin(self, third: int, work: Callable[[], int], cpu_seconds: int) -> None:
        """Make the walls, and start the process of the code behind them.

        Args:
            third: a file descriptor that the process has as number 3; it is closed here.
            work: what the process does; its result is the exit status.
            cpu_seconds: that the process may take.
        """
        jail.enter_run(self.kernel, self.proc, self.scratch_mb)
        os.close(self.proc)
        try:
            jail.put_files(self.job["files"])
        except OSError as error:
            raise BadFiles(str(error)) from None
        self.init = self._fork_init()
        stdout, stderr, ready = (os.pipe() for _ in range(3))
        stdin = _sealed(self.job["stdin"].encode(errors="replace"))
        inside = (stdin, stdout[1], stderr[1], third, ready[1])
        self.code = os.fork()
        if self.code == 0:
            self._become_code(inside, work, cpu_seconds)
        for fd in inside:
            os.close(fd)
        if problem := os.read(ready[0], 1000):
            raise OSError(problem.decode())
        os.close(ready[0])
        self.streams = stdout[0], stderr[0]
        self.pidfd = os.pidfd_open(self.code)
        self.started = time.monotonic()

    def end(self) -> tuple[int, resource.struct_rusage]:
        """End the code and all that it has started; how it ended, and what it used."""
        os.kill(self.code, signal.SIGKILL)
        _, status, usage = os.wait4(self.code, 0)
        os.kill(self.init, signal.SIGKILL)
        os.waitpid(self.init, 0)
        return status, usage

    def written(self, watched: Watched) -> dict[str, str]:
        """What the code has written, as text."""
        return {
            "stdout": watched.out[: self.cap].decode(errors="replace"),
            "stderr": self._without_paths(watched.err.decode(errors="replace")),
        }

    def _fork_init(self) -> int:
        """Process 1 of the run's namespace: does nothing, and with it all the others end."""
        child = os.fork()
        if child:
            return child
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
            self.kernel.die_with_parent()
            self.kernel.drop_privileges()
            os.closerange(0, 1 << 16)
            while True:
                signal.pause()
        finally:
            os._exit(0)

    def _become_code(self, fds: Sequence[int], work: Callable[[], int], cpu_seconds: int) -> NoReturn:
        try:
            # 3 is the work's own, 4 tells that the walls stand; nothing else is open.
            _place(fds)
            # A process group reaches across namespaces: kill(0, …) would hit the supervisor.
            os.setsid()
            os.nice(10)
            jail.limit(cpu_seconds, self.base + (self.job["memory_mb"] << 20), self.scratch_mb << 20)
            jail.seal(self.kernel)
            os.close(4)
        except OSError as error:
            os.write(4, str(error).encode())
            os._exit(1)
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)

    def _watch(self, watched: Watched, channel: socket.socket) -> None:
        """Wait for the end of the code, of its time, or of the interest in it."""
        end = self.started + self.job["timeout"]
        poll = select.poll()
        for fd in (self.pidfd, channel.fileno(), *watched.open):
            poll.register(fd, select.POLLIN)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                self.verdict = "timeout"
                return
            for fd, _ in poll.poll(left * 1000 + 1):
                if fd in watched.open:
                    if not watched.read(fd):
                        poll.unregister(fd)
                    if watched.too_much:
                        self.verdict = "output"
                        return
                elif fd == channel.fileno():
                    # The server says nothing more: this is the end of the connection.
                    self.verdict = "killed"
                    return
                elif fd == self.pidfd:
                    return

    def _judge(
        self, status: int, usage: resource.struct_rusage, watched: Watched, out_of_memory: bool
    ) -> tuple[str, int | None]:
        """The outcome by how the process ended, never by what it said."""
        if watched.too_much and self.verdict is None:
            return "output", None
        if self.verdict is not None:
            return self.verdict, None
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            spent = usage.ru_utime + usage.ru_stime
            by_cpu = -code == signal.SIGXCPU or (-code == signal.SIGKILL and spent >= self.job["timeout"])
            return ("timeout", None) if by_cpu else ("killed", code)
        if code == 0:
            return "ok", 0
        return ("memory" if out_of_memory else "error"), code

    def _without_paths(self, text: str) -> str:
        for path, name in self.names:
            text = text.replace(path, name)
        return text


class Watched:
    """What the code writes: the beginning of its output, the end of its errors.

    Args:
        out, err: the ends of the pipes to read from.
        cap: bytes of the output that are kept, and that the errors may have.
        tail: bytes of the end of the errors that are kept.
    """

    def __init__(self, out: int, err: int, cap: int, tail: int) -> None:
        self.out, self.err = bytearray(), bytearray()
        self.open = {out, err}
        self._out, self._cap, self._tail = out, cap, tail
        self._written = 0

    @property
    def too_much(self) -> bool:
        """Whether more was written than is kept."""
        return len(self.out) > self._cap or self._written > self._cap

    def read(self, fd: int) -> bool:
        """Read what is there; False at the end."""
        data = os.read(fd, _PIPE_READ)
        if not data:
            self.open.discard(fd)
        elif fd == self._out:
            # One byte over the cap tells that there was more.
            self.out += data[: self._cap + 1 - len(self.out)]
        else:
            self._written += len(data)
            self.err += data
            del self.err[: -self._tail]
        return bool(data)

    def drain(self) -> None:
        """The rest, after all writers have ended."""
        for fd in tuple(self.open):
            while not self.too_much and self.read(fd):
                pass


def _sealed(data: bytes) -> int:
    """A file in memory that can only be read."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _place(fds: Sequence[int]) -> None:
    """Make these the process's only file descriptors, numbered from 0."""
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
    for number, fd in enumerate(above):
        os.dup2(fd, number)
    os.closerange(len(fds), 1 << 20)


def _tell(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, b"+")
