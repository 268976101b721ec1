"""The sandbox of WebAssembly: Pyodide inside Deno, for machines without Linux namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optillm.core.tools import Outcome
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.checks import check_run
from optillm.sandbox.fetch import complete, default_folder, find_deno
from optillm.sandbox.wire import HEADER, frame, message_of

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
        job = frame({"code": code, "stdin": stdin, "keep_files": keep_files}, files)
        async with self._slots:
            if self._closed:
                raise SandboxUnavailable("the sandbox is closed")
            mine, self._next = self._next or self._launch(), None
            host = await mine
            if not self._closed:
                self._next = self._next or self._launch()
            try:
                reply = await host.exchange(job, timeout, self._grace, memory_mb)
            finally:
                await host.close()
        if "bad_files" in reply:
            raise ValueError(f"files: {reply['bad_files']}")
        reply["files"] = MappingProxyType(reply["files"])
        return Outcome(**reply)

    async def aclose(self) -> None:
        """End the process that waits; runs end with those who wait for them."""
        self._closed = True
        task, self._next = self._next, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, SandboxUnavailable):
                await (await task).close()

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
                self.modules = tuple((await self._receive())["ready"])
        except (TimeoutError, asyncio.IncompleteReadError):
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
        self._limit(timeout, memory_mb)
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(timeout):
                self._process.stdin.write(job)
                return await self._receive()
        except TimeoutError:
            return {**ended, "status": "timeout", "seconds": loop.time() - started}
        except (OSError, asyncio.IncompleteReadError):
            code = await self._process.wait()
            by_cpu = code == -signal.SIGXCPU
            status = "timeout" if by_cpu else "killed"
            seconds = loop.time() - started
            return {**ended, "status": status, "exit_code": None if by_cpu else code, "seconds": seconds}

    async def close(self) -> None:
        """End the process, and wait until it has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()

    async def _receive(self) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        sizes = HEADER.unpack(await out.readexactly(HEADER.size))
        return message_of(*[await out.readexactly(size) for size in sizes])

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
