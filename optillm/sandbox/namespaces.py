"""The sandbox of Linux namespaces, seen from the server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optillm.core.frozen import empty
from optillm.core.tools import Outcome, Session
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.checks import check_run
from optillm.sandbox.runtime import PRELOADED, Runtime, find_runtime
from optillm.sandbox.session import MOST_REQUEST, Blocks, Connection
from optillm.sandbox.wire import HEADER, frame, message_of

_ROOT = Path(__file__).parents[2]
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from optillm.sandbox.zygote import main; del sys.path[0]; main()"
)
# Numeric libraries start a thread per core each; a run is one of many.
_ENVIRONMENT = MappingProxyType(
    {
        "HOME": "/scratch",
        "TMPDIR": "/scratch",
        "PATH": "",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
)
_HELP = (
    "the sandbox needs Linux 5.14 or newer with user namespaces that this process may create; in a "
    "container, allow the system calls unshare, mount and pivot_root; on Ubuntu, set "
    "kernel.apparmor_restrict_unprivileged_userns=0 or give the interpreter an AppArmor profile"
)


class NamespaceSandbox:
    """Runs code in forks of one warm process, each behind walls of its own.

    Args:
        runs: runs at once; others wait their turn.
        scratch_mb: size of the scratch folder of a run, and of what is handed back of it, in MiB.
        output_bytes: of standard output that are handed back; a run that writes more is ended. The same
            limit holds for its errors.
        stderr_tail: bytes of the end of its errors that are handed back.
        preload: modules imported before the first run.
        runtime: the Python to use; this one's if None.
        start_timeout: seconds that the warm process may take to start.
        grace: seconds that the end of a run may take, after its time is up.
    """

    def __init__(
        self,
        *,
        runs: int = 8,
        scratch_mb: int = 64,
        output_bytes: int = 1 << 20,
        stderr_tail: int = 16 << 10,
        preload: Sequence[str] = PRELOADED,
        runtime: Runtime | None = None,
        start_timeout: float = 60.0,
        grace: float = 10.0,
    ) -> None:
        self._slots = asyncio.Semaphore(runs)
        self._starting = asyncio.Lock()
        self._scratch_mb, self._grace, self._start_timeout = scratch_mb, grace, start_timeout
        self._output_bytes, self._stderr_tail = output_bytes, stderr_tail
        self._preload, self._runtime = tuple(preload), runtime
        self._zygote: _Zygote | None = None
        self._closed = False

    async def start(self) -> tuple[str, ...]:
        """Make the warm process ready; the modules that it has imported.

        Raises:
            SandboxUnavailable: the machine does not allow the walls; says why.
        """
        return (await self._ready()).modules

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
        """See :class:`optillm.core.tools.Sandbox`."""
        check_run(timeout, memory_mb, files, self._scratch_mb)
        job = {
            "code": code,
            "timeout": timeout,
            "memory_mb": memory_mb,
            "stdin": stdin,
            "keep_files": keep_files,
            "session": False,
        }
        async with self._slots:
            zygote = await self._ready()
            reply = await zygote.exchange(frame(job, files), timeout + self._grace)
        if reply is None:
            await zygote.close()
            return Outcome("killed", None, "", "the sandbox was ended from outside", 0.0, empty())
        if "fault" in reply:
            raise SandboxUnavailable(f"the sandbox could not start a run: {reply['fault']}")
        if "bad_files" in reply:
            raise ValueError(f"files: {reply['bad_files']}")
        reply["files"] = MappingProxyType(reply["files"])
        return Outcome(**reply)

    @asynccontextmanager
    async def session(
        self,
        *,
        timeout: float = 30.0,
        memory_mb: int = 1024,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> AsyncIterator[Session]:
        """See :class:`optillm.core.tools.Sandbox`. It takes one of the slots only while its code runs."""
        check_run(timeout, memory_mb, files, self._scratch_mb)
        job = frame({"memory_mb": memory_mb, "stdin": "", "session": True}, files)

        async def connect() -> Connection:
            return await (await self._ready()).connect(job)

        async def lost() -> None:
            if self._zygote is not None:
                await self._zygote.close()

        session = Blocks(connect, lost, self._slots, timeout=timeout, grace=self._grace)
        try:
            await session.open()
            yield session
        finally:
            await session.aclose()

    async def aclose(self) -> None:
        """End all runs and the warm process."""
        self._closed = True
        async with self._starting:
            zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()

    async def _ready(self) -> _Zygote:
        async with self._starting:
            if self._closed:
                raise SandboxUnavailable("the sandbox is closed")
            if self._zygote is not None and not self._zygote.alive:
                await self._zygote.close()
                self._zygote = None
            if self._zygote is None:
                self._zygote = await self._start()
            return self._zygote

    async def _start(self) -> _Zygote:
        runtime = self._runtime
        if runtime is None:
            runtime = await asyncio.to_thread(find_runtime)
        config = {
            "paths": runtime.paths,
            "hidden": runtime.hidden,
            "shown": runtime.shown,
            "sys_path": runtime.sys_path,
            "renamed": sorted([*runtime.renamed, (str(_ROOT), "<optillm>")], key=lambda item: -len(item[0])),
            "preload": self._preload,
            "scratch_mb": self._scratch_mb,
            "output_bytes": self._output_bytes,
            "stderr_tail": self._stderr_tail,
            "request_bytes": MOST_REQUEST,
        }
        return await _Zygote.start(config, self._start_timeout)


class _Zygote:
    """The warm process, and the way to it."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process, self._control = process, control
        self.modules: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and self._control.fileno() >= 0

    @classmethod
    async def start(cls, config: Mapping[str, Any], timeout: float) -> _Zygote:
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _START),
                str(_ROOT),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=dict(_ENVIRONMENT),
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self = cls(process, ours)
        try:
            async with asyncio.timeout(timeout):
                await self._hello(config)
        except TimeoutError:
            await self.close()
            raise SandboxUnavailable(f"the sandbox did not start within {timeout:g} s") from None
        except BaseException:
            await self.close()
            raise
        return self

    async def _hello(self, config: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._control, frame(config))
            sizes = HEADER.unpack(await self._exactly(HEADER.size))
            reply = message_of(*[await self._exactly(size) for size in sizes])
        except (OSError, EOFError):
            raise SandboxUnavailable(f"the sandbox ended while it started; {_HELP}") from None
        if "error" in reply:
            raise SandboxUnavailable(f"no sandbox on this machine ({reply['error']}); {_HELP}")
        self.modules = tuple(reply["ready"])

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await asyncio.get_running_loop().sock_recv(self._control, size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    async def exchange(self, job: bytes, timeout: float) -> dict[str, Any] | None:
        """Have a job done; None if the sandbox did not answer in time, or ended."""
        try:
            connection = await self.connect(job)
        except OSError:
            return None
        try:
            async with asyncio.timeout(timeout):
                return await connection.receive()
        except (TimeoutError, OSError, EOFError):
            return None
        finally:
            await connection.aclose()

    async def connect(self, job: bytes) -> Connection:
        """Hand a job to a supervisor of its own.

        Raises:
            OSError: the warm process has ended.
        """
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            with theirs:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        writer.write(job)
        return Connection(reader, writer, self.kill)

    def kill(self) -> None:
        """End the warm process and all runs at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """End the warm process and all runs, and wait until they have ended."""
        self._control.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
