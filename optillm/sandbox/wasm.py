"""placeholder"""
from __future__ import annotations
from collections.abc import Mapping
from optillm.core.frozen import empty
from optillm.core.tools import Outcome
from optillm.protocol.errors import SandboxUnavailable
class WasmSandbox:
    async def start(self) -> tuple[str, ...]:
        raise SandboxUnavailable("no wasm")
    async def run(self, code: str, *, timeout: float = 30.0, memory_mb: int = 1024, files: Mapping[str, bytes] = empty(), stdin: str = "", keep_files: bool = False) -> Outcome:
        raise SandboxUnavailable("no wasm")
    async def aclose(self) -> None: ...
