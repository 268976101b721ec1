"""Which sandbox this machine has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

from optillm.core.tools import Outcome, Sandbox, Session
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.namespaces import NamespaceSandbox
from optillm.sandbox.wasm import WasmSandbox


@dataclass(frozen=True)
class Probe:
    """What was found out about one wall.

    Args:
        name: ``namespaces`` or ``wasm``.
        available: whether code can be run behind it.
        detail: the libraries that are there, or what is missing and how to get it.
    """

    name: str
    available: bool
    detail: str


def open_sandbox(choice: str = "auto") -> Sandbox | None:
    """The sandbox that an operator has chosen; it starts at its first run.

    Args:
        choice: ``auto`` the first wall that this machine has; ``namespaces`` or ``wasm`` that one and no
            other; ``off`` none.
    """
    if choice == "off":
        return None
    walls: dict[str, tuple[Sandbox, ...]] = {
        "auto": (NamespaceSandbox(), WasmSandbox()),
        "namespaces": (NamespaceSandbox(),),
        "wasm": (WasmSandbox(),),
    }
    return FirstAvailable(walls[choice])


async def probe() -> tuple[Probe, ...]:
    """Try every wall, with a program; takes some seconds."""
    return tuple([await _probe(name) for name in ("namespaces", "wasm")])


async def _probe(name: str) -> Probe:
    wall: Sandbox = NamespaceSandbox() if name == "namespaces" else WasmSandbox()
    try:
        modules = await wall.start()
        outcome = await wall.run("print(6 * 7)")
        if (outcome.status, outcome.stdout) != ("ok", "42\n"):
            return Probe(name, False, f"a first program ended with {outcome.status}: {outcome.stderr}")
    except SandboxUnavailable as error:
        return Probe(name, False, error.message)
    finally:
        await wall.aclose()
    libraries = [m for m in modules if m in ("z3", "sympy", "numpy")]
    return Probe(name, True, "with " + (", ".join(libraries) or "the standard library only"))


class FirstAvailable:
    """Of several sandboxes the first that starts; it is chosen once, and there is no other way to run.

    Args:
        walls: in the order of preference.
    """

    def __init__(self, walls: tuple[Sandbox, ...]) -> None:
        self._walls = walls
        self._chosen: Sandbox | None = None
        self._choosing = asyncio.Lock()

    async def start(self) -> tuple[str, ...]:
        """See :class:`optillm.core.tools.Sandbox`."""
        return await (await self._choose()).start()

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
        wall = await self._choose()
        return await wall.run(
            code, timeout=timeout, memory_mb=memory_mb, files=files, stdin=stdin, keep_files=keep_files
        )

    @asynccontextmanager
    async def session(
        self,
        *,
        timeout: float = 30.0,
        memory_mb: int = 1024,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> AsyncIterator[Session]:
        """See :class:`optillm.core.tools.Sandbox`."""
        wall = await self._choose()
        async with wall.session(timeout=timeout, memory_mb=memory_mb, files=files) as session:
            yield session

    async def aclose(self) -> None:
        """Close all of them."""
        for wall in self._walls:
            await wall.aclose()

    async def _choose(self) -> Sandbox:
        async with self._choosing:
            reasons: list[str] = []
            for wall in self._walls if self._chosen is None else ():
                try:
                    await wall.start()
                except SandboxUnavailable as error:
                    reasons.append(error.message)
                    continue
                self._chosen = wall
                break
            if self._chosen is None:
                raise SandboxUnavailable("code cannot be run safely here: " + "; or ".join(reasons))
            return self._chosen
