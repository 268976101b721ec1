"""The process that runs are forked from.

It is started outside, once; moves into its jail; imports the libraries; and then forks a supervisor for
every connection that the server hands it. The supervisor makes the walls of one run, forks the process of
the code into them, watches it and reports. Neither imports anything of the server.

    server ── control socket ──▶ launcher ─▶ zygote (process 1 of the jail)
       └──── one socket per run ────────────▶ supervisor ─▶ init, and the code
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from optillm.sandbox import jail
from optillm.sandbox.linux import Kernel
from optillm.sandbox.program import execute
from optillm.sandbox.wire import frame, receive

_CONTROL = 0
_PIPE_READ = 1 << 16


def main() -> None:
    """Start the zygote; the control socket is standard input. Returns when the server has gone."""
    control = socket.socket(fileno=_CONTROL)
    config = receive(control)
    if config is None:
        return
    try:
        kernel = Kernel()
        jail.leave_host(kernel)
        child = os.fork()
    except OSError as error:
        control.sendall(frame({"error": str(error)}))
        return
    if child:
        # The zygote is process 1 of its namespace: when it ends, all that it has started ends.
        control.detach()
        os.close(_CONTROL)
        os.waitpid(child, 0)
        return
    kernel.die_with_parent()
    _Zygote(kernel, control, config).serve()


class _BadFiles(Exception):
    """The files of a job do not fit into a folder together."""


class _Zygote:
    def __init__(self, kernel: Kernel, control: socket.socket, config: Mapping[str, Any]) -> None:
        self.kernel, self.control, self.config = kernel, control, config
        self.proc = self.base = -1

    def serve(self) -> None:
        """Say that it is ready, or why it is not; then fork a supervisor for every socket received."""
        try:
            self._enter()
            modules = self._import()
        except (OSError, ImportError) as error:
            self.control.sendall(frame({"error": str(error)}))
            return
        self.control.sendall(frame({"ready": modules}))
        # Nobody waits for supervisors; the kernel removes them.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            data, fds, _, _ = socket.recv_fds(self.control, 1, 1)
            if not data:
                return
            for fd in fds:
                if os.fork() == 0:
                    self._supervise(socket.socket(fileno=fd))
                os.close(fd)

    def _enter(self) -> None:
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            # If the machine runs out of memory, this goes before the server.
            _write_at(self.proc, "self/oom_score_adj", b"1000")
        config = self.config
        jail.build_root(self.kernel, config["paths"], config["hidden"], config["shown"])
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)

    def _import(self) -> list[str]:
        sys.path[:] = self.config["sys_path"]
        importlib.invalidate_caches()
        modules = []
        for name in self.config["preload"]:
            try:
                importlib.import_module(name)
                modules.append(name)
            except ImportError:
                # The code that wants it will see the same error.
                continue
        gc.collect()
        # Collections in a child would otherwise copy the pages that it shares.
        gc.freeze()
        fd = os.open("self/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        self.base = int(os.read(fd, 200).split()[0]) * resource.getpagesize()
        os.close(fd)
        return modules

    def _supervise(self, channel: socket.socket) -> NoReturn:
        """One run, in a child of the zygote."""
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.detach()
            os.close(_CONTROL)
            self.kernel.die_with_parent()
            job = receive(channel)
            if job is not None:
                run = _Run(self.kernel, self.proc, self.base, self.config, job)
                channel.sendall(frame(*run.outcome(channel)))
        except _BadFiles as error:
            channel.sendall(frame({"bad_files": str(error)}))
        except OSError as error:
            with contextlib.suppress(OSError):
                channel.sendall(frame({"fault": str(error)}))
        finally:
            os._exit(0)


class _Run:
    """One run, seen by its supervisor."""

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

    def outcome(self, channel: socket.socket) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Run the code to its end, or end it; the outcome, and the files that it left."""
        jail.enter_run(self.kernel, self.proc, self.scratch_mb)
        os.close(self.proc)
        try:
            jail.put_files(self.job["files"])
        except OSError as error:
            raise _BadFiles(str(error)) from None
        init = self._fork_init()
        stdout, stderr, memory, ready = (os.pipe() for _ in range(4))
        stdin = _sealed(self.job["stdin"].encode(errors="replace"))
        code = os.fork()
        if code == 0:
            self._become_code(stdin, stdout[1], stderr[1], memory[1], ready[1])
        for fd in (stdin, stdout[1], stderr[1], memory[1], ready[1]):
            os.close(fd)
        if problem := os.read(ready[0], 1000):
            raise OSError(problem.decode())
        self.started = time.monotonic()
        watched = _Watched(stdout[0], stderr[0], self.cap, self.tail)
        try:
            self._watch(watched, channel, code)
        finally:
            os.kill(code, signal.SIGKILL)
            _, status, usage = os.wait4(code, 0)
            os.kill(init, signal.SIGKILL)
            os.waitpid(init, 0)
        seconds = time.monotonic() - self.started
        watched.drain()
        verdict, exit_code = self._judge(status, usage, watched, bool(os.read(memory[0], 1)))
        files: dict[str, bytes] = {}
        if self.job["keep_files"]:
            files, complete = jail.take_files(self.scratch_mb << 20)
            if not complete:
                verdict = "output"
        message = {
            "status": verdict,
            "exit_code": exit_code,
            "stdout": watched.out[: self.cap].decode(errors="replace"),
            "stderr": self._without_paths(watched.err.decode(errors="replace")),
            "seconds": seconds,
        }
        return message, files

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

    def _become_code(self, stdin: int, stdout: int, stderr: int, memory: int, ready: int) -> NoReturn:
        try:
            # 3 tells of a MemoryError, 4 that the walls stand; nothing else is open.
            _place((stdin, stdout, stderr, memory, ready))
            # A process group reaches across namespaces: kill(0, …) would hit the supervisor.
            os.setsid()
            os.nice(10)
            jail.limit(
                int(self.job["timeout"]) + 1,
                self.base + (self.job["memory_mb"] << 20),
                self.scratch_mb << 20,
            )
            jail.seal(self.kernel)
            os.close(4)
        except OSError as error:
            os.write(4, str(error).encode())
            os._exit(1)
        status = 1
        try:
            status = execute(self.job["code"], lambda: _tell(3))
        finally:
            os._exit(status)

    def _watch(self, watched: _Watched, channel: socket.socket, code: int) -> None:
        """Wait for the end of the code, of its time, or of the interest in it."""
        end = self.started + self.job["timeout"]
        pidfd = os.pidfd_open(code)
        poll = select.poll()
        for fd in (pidfd, channel.fileno(), *watched.open):
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
                elif fd == pidfd:
                    return

    def _judge(
        self, status: int, usage: resource.struct_rusage, watched: _Watched, out_of_memory: bool
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


class _Watched:
    """What the code writes: the beginning of its output, the end of its errors."""

    def __init__(self, out: int, err: int, cap: int, tail: int) -> None:
        self.out, self.err = bytearray(), bytearray()
        self.open = {out, err}
        self._out, self._cap, self._tail = out, cap, tail
        self._written = 0

    @property
    def too_much(self) -> bool:
        return len(self.out) > self._cap or self._written > self._cap

    def read(self, fd: int) -> bool:
        """Read what is there; False at the end."""
        data = os.read(fd, _PIPE_READ)
        if not data:
            self.open.discard(fd)
        elif fd == self._out:
            self.out += data
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


def _write_at(folder: int, path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
