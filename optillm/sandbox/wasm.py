"""The sandbox of WebAssembly: Pyodide inside Deno, for machines without Linux namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optillm.core.frozen import empty
from optillm.core.tools import Outcome, Session
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.checks import check_run
from optillm.sandbox.fetch import complete, default_folder, find_deno
from optillm.sandbox.session import Blocks, Connection, Said
from optillm.sandbox.wire import frame

_HERE = Path(__file__).parent
_ENVIRONMENT = MappingProxyType({"NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"})
_PRELOADED = ("z3", "sympy", "random", "json", "re", "asyncio", "unittest")


class WasmSandbox:
    """Runs each piece of code in a process of its own, which was made ready before it was needed.

    Args:
        folder: the runtime that :mod:`optillm.sandbox.fetch` gets.
        runs: runs at once; others wait their turn.
        scratch_mb: what files may go in and come out of a run, in MiB.
        output_bytes, stderr_tail: as for the sandbox of namespaces.
        preload: modules imported before the code is there.
        start_timeout: seconds that a process may take to get ready.
        grace: seconds that the end of a run may take, after its time is up.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        runs: int = 2,
        scratch_mb: int = 64,
        output_bytes: int = 1 << 20,
        stderr_tail: int = 16 << 10,
        preload: Sequence[str] = _PRELOADED,
        start_timeout: float = 120.0,
        grace: float = 2.0,
    ) -> None:
        self._folder = folder or default_folder()
        self._slots = asyncio.Semaphore(runs)
        self._scratch_mb, self._grace, self._start_timeout = scratch_mb, grace, start_timeout
        self._preload = tuple(preload)
        self._output_bytes, self._stderr_tail = output_bytes, stderr_tail
        self._next: asyncio.Task[_Host] | None = None
        self._closed = False

    async def start(self) -> tuple[str, ...]:
        """Make the first process ready; the modules that it has imported.

        Raises:
            SandboxUnavailable: Deno or the runtime is not installed; says how to get it.
        """
        self._next = self._next or self._launch()
        # Whoever waits may be cancelled; the process is for the next one then.
        return (await asyncio.shield(self._next)).modules

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
        job = frame({"code": code, "stdin": stdin, "keep_files": keep_files, "session": False}, files)
        async with self._slots:
            host = await self._take()
            try:
                reply = await host.exchange(job, timeout, self._grace, memory_mb)
            finally:
                await host.close()
        if "bad_files" in reply:
            raise ValueError(f"files: {reply['bad_files']}")
        try:
            return Said.of(reply).outcome
        except EOFError:
            return Outcome("killed", None, "", "", 0.0, empty())

    @asynccontextmanager
    async def session(
        self,
        *,
        timeout: float = 30.0,
        memory_mb: int = 1024,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> AsyncIterator[Session]:
        """See :class:`optillm.core.tools.Sandbox`. A block that does not end in time ends the process."""
        check_run(timeout, memory_mb, files, self._scratch_mb)
        job = frame({"session": True, "stdin": "", "keep_files": False}, files)

        async def connect() -> Connection:
            return (await self._take()).connect(job, memory_mb)

        async def lost() -> None:
            """The next process is another one anyway."""

        session = Blocks(connect, lost, self._slots, timeout=timeout, grace=0.0)
        try:
            await session.open()
            yield session
        finally:
            await session.aclose()

    async def aclose(self) -> None:
        """End the process that waits; runs end with those who wait for them."""
        self._closed = True
        task, self._next = self._next, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, SandboxUnavailable):
                await (await task).close()

    async def _take(self) -> _Host:
        """A process that is ready; the next one is being made ready."""
        if self._closed:
            raise SandboxUnavailable("the sandbox is closed")
        mine, self._next = self._next or self._launch(), None
        host = await mine
        if not self._closed:
            self._next = self._next or self._launch()
        return host

    def _launch(self) -> asyncio.Task[_Host]:
        deno = find_deno()
        if deno is None or not complete(self._folder):
            raise SandboxUnavailable(
                "the WebAssembly sandbox is not installed: pip install 'optillm[wasm]', "
                "then python -m optillm.sandbox.fetch"
            )
        command = (
            *(deno, "run", "--quiet", "--no-prompt", "--no-remote", "--no-npm", "--no-config", "--no-lock"),
            *("--no-code-cache", "--v8-flags=--max-old-space-size=512"),
            *(f"--allow-read={self._folder},{_HERE / 'program.py'}", str(_HERE / "wasm_host.mjs")),
            *(str(self._folder), str(_HERE / "program.py"), str(self._output_bytes)),
            *(str(self._stderr_tail), str(self._scratch_mb), *self._preload),
        )
        return asyncio.ensure_future(_Host.start(command, self._start_timeout))


class _Host:
    """One Deno process: ready, then used once."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.modules: tuple[str, ...] = ()

    @classmethod
    async def start(cls, command: tuple[str, ...], timeout: float) -> _Host:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(_ENVIRONMENT),
            cwd="/",
            start_new_session=True,
        )
        self = cls(process)
        try:
            async with asyncio.timeout(timeout):
                assert process.stdin is not None
                assert process.stdout is not None
                hello = await Connection(process.stdout, process.stdin, process.kill).receive()
                self.modules = tuple(hello["ready"])
        except (TimeoutError, EOFError):
            await self.close()
            raise SandboxUnavailable("the WebAssembly sandbox did not start") from None
        except BaseException:
            await self.close()
            raise
        return self

    async def exchange(self, job: bytes, timeout: float, grace: float, memory_mb: int) -> dict[str, Any]:
        """Have the job done, or end it."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        ended: dict[str, Any] = {"exit_code": None, "stdout": "", "stderr": "", "files": {}}
        connection = self.connect(job, memory_mb, timeout)
        try:
            async with asyncio.timeout(timeout):
                return await connection.receive()
        except TimeoutError:
            return {**ended, "status": "timeout", "seconds": loop.time() - started}
        except (OSError, EOFError):
            await self.close()
            code = self._process.returncode
            by_cpu = code == -signal.SIGXCPU
            status = "timeout" if by_cpu else "killed"
            seconds = loop.time() - started
            return {**ended, "status": status, "exit_code": None if by_cpu else code, "seconds": seconds}

    def connect(self, job: bytes, memory_mb: int, timeout: float = 3600) -> _HostConnection:
        """Hand over a job; all that it does may take that much CPU time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._limit(timeout, memory_mb)
        self._process.stdin.write(job)
        return _HostConnection(self._process.stdout, self._process.stdin, self)

    async def close(self) -> None:
        """End the process, and wait until it has ended."""
        self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """End the process."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _limit(self, timeout: float, memory_mb: int) -> None:
        """The kernel's limits, where it has them for other processes: Linux."""
        try:
            resource = importlib.import_module("resource")
            statm = Path(f"/proc/{self._process.pid}/statm").read_text().split()
            stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            data = int(statm[5]) * resource.getpagesize() + (memory_mb << 20)
            spent = (int(stat[11]) + int(stat[12])) // 100 + 1
            seconds = spent + int(timeout) + 1
            resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (data, data))
            resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (seconds, seconds + 1))
        except (ImportError, AttributeError, FileNotFoundError):
            # The clock, V8's own limit and the 4 GiB of WebAssembly remain.
            return


class _HostConnection(Connection):
    """The way to a process that ends with it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: _Host) -> None:
        super().__init__(reader, writer, host.kill)
        self._host = host

    async def aclose(self) -> None:
        """End the process: it may be in a loop that never looks."""
        await self._host.close()
