"""The process that runs are forked from.

It is started outside, once; moves into its jail; imports the libraries; and then forks a supervisor for
every connection that the server hands it. The supervisor makes the walls of one run, forks the process of
the code into them, watches it and reports. Neither imports anything of the server.

    server ── control socket ──▶ launcher ─▶ zygote (process 1 of the jail)
       └──── one socket per run ────────────▶ supervisor ─▶ init, and the code
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from optillm.sandbox import jail
from optillm.sandbox.blocks import Blocks
from optillm.sandbox.linux import Kernel
from optillm.sandbox.supervisor import BadFiles, Run
from optillm.sandbox.wire import frame, receive

_CONTROL = 0


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
        """One run or session, in a child of the zygote."""
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.detach()
            os.close(_CONTROL)
            self.kernel.die_with_parent()
            job = receive(channel)
            if job is not None and job["session"]:
                Blocks(self.kernel, self.proc, self.base, self.config, job).serve(channel)
            elif job is not None:
                run = Run(self.kernel, self.proc, self.base, self.config, job)
                channel.sendall(frame(*run.outcome(channel)))
        except BadFiles as error:
            channel.sendall(frame({"bad_files": str(error)}))
        except OSError as error:
            with contextlib.suppress(OSError):
                channel.sendall(frame({"fault": str(error)}))
        finally:
            os._exit(0)


def _write_at(folder: int, path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
