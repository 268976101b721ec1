"""The sandbox of WebAssembly, for real: each run takes seconds to prepare, so each tries many things."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from optillm.core.tools import CallRefused, Outcome
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.wasm import WasmSandbox
from tests.sandbox.processes import descendants, settled
from tests.sandbox.test_escape import ATTEMPT

T = TypeVar("T")


def using(work: Callable[[WasmSandbox], Awaitable[T]]) -> T:
    """Do something with a sandbox of its own; afterwards no process of it is left."""

    async def whole() -> T:
        sandbox = WasmSandbox(preload=())
        try:
            return await work(sandbox)
        finally:
            await sandbox.aclose()

    before = descendants()
    result = asyncio.run(whole())
    assert settled(until=lambda now: now == before) == before
    return result


def test_every_way_out_is_closed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        code = (
            ATTEMPT
            + "import os, socket, subprocess\n"
            + "from pyodide.code import run_js\n"
            + f"attempt(open, {str(secret)!r})\n"
            + "attempt(open, '/etc/passwd')\n"
            + "attempt(open, '/proc/self/environ')\n"
            + f"attempt(socket.create_connection, ('127.0.0.1', {server.getsockname()[1]}), 1)\n"
            + "attempt(subprocess.run, ['true'])\n"
            + "attempt(os.fork)\n"
            # The JavaScript around it is within reach; Deno's permissions are the wall.
            + f"attempt(run_js, 'eval(`Deno`).readTextFileSync(`{secret}`)')\n"
            + "import js, pyodide_js\n"
            + "reach = pyodide_js.constructor.constructor\n"
            + f"attempt(reach('return Deno.readTextFileSync(`{secret}`)'))\n"
            + "attempt(reach('return Deno.env.toObject()'))\n"
            + "attempt(reach('return Deno.writeTextFileSync(`/tmp/x`, `x`)'))\n"
            + "attempt(reach('return new Deno.Command(`true`).outputSync()'))\n"
            + "attempt(reach('return Deno.dlopen(`/lib/x.so`, {})'))\n"
            + "attempt(reach('return Deno.kill(1)'))\n"
            + "attempt(reach('return Deno.listen({port: 0})'))\n"
        )
        outcome = using(lambda sandbox: sandbox.run(code))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert outcome.status == "ok", outcome.stderr
    lines = outcome.stdout.splitlines()
    assert len(lines) == 14
    assert not [line for line in lines if line.startswith("GOT")], outcome.stdout


def test_it_computes_like_the_other_one() -> None:
    async def both(sandbox: WasmSandbox) -> tuple[Outcome, Outcome]:
        first = await sandbox.run(
            "import os, z3, sympy\n"
            "limit = 3\n"
            "x, y = z3.Ints('x y')\n"
            "solver = z3.Solver(); solver.add(x + y == 10, x - y == 4)\n"
            "print(solver.check(), solver.model()[x], sympy.factorint(12), end=' ')\n"
            "print([n for n in range(5) if n < limit])\n"
            "print(input(), open('a/in').read(), sorted(os.environ))\n"
            "open('a/out', 'wb').write(b'\\x00\\xff')\n",
            stdin="hé\n",
            files={"a/in": b"1"},
            keep_files=True,
            timeout=120,
        )
        second = await sandbox.run(
            "import os, sys\nprint(os.listdir('.'))\nprint('x', file=sys.stderr)\nsys.exit(7)"
        )
        return first, second

    first, second = using(both)
    assert first.status == "ok", first.stderr
    assert first.stdout == "sat 7 {2: 2, 3: 1} [0, 1, 2]\nhé 1 ['HOME', 'LANG', 'TMPDIR']\n"
    assert first.files == {"a/in": b"1", "a/out": b"\x00\xff"}
    assert (second.status, second.exit_code, second.stdout, second.stderr) == ("error", 7, "[]\n", "x\n")


def test_limits_hold() -> None:
    async def all_of_them(sandbox: WasmSandbox) -> list[str]:
        codes = (
            "while True: pass",
            "while True: print('x' * 1000)",
            "x = []\nwhile True: x.append(bytearray(1 << 24))",
        )
        # A short time for the one that does not end by itself.
        return [
            (await sandbox.run(code, timeout=2 if "pass" in code else 60, memory_mb=256)).status
            for code in codes
        ]

    assert using(all_of_them) == ["timeout", "output", "memory"]


def test_cancelling_leaves_no_process() -> None:
    async def cancel(sandbox: WasmSandbox) -> None:
        await sandbox.start()
        task = asyncio.ensure_future(sandbox.run("while True: pass", timeout=300))
        await asyncio.wait([task], timeout=0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    using(cancel)


def test_where_it_is_not_installed_it_says_how(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match=r"optillm\[wasm\].*optillm\.sandbox\.fetch") as refused:
        asyncio.run(WasmSandbox(folder=tmp_path).run("print(1)"))
    assert refused.value.status == 501


def test_a_session() -> None:
    """Names stay, requests are answered, and what is forged or does not end takes only its process along."""
    asked: list[tuple[str, Any]] = []

    async def calls(name: str, arguments: Any) -> Any:
        asked.append((name, arguments))
        if name == "no":
            raise CallRefused("not that")
        return {"got": arguments}

    async def work(sandbox: WasmSandbox) -> list[Outcome]:
        codes = (
            "x = open('f').read()\nprint(x)",
            "ask('echo', [x, 1])['got']",
            "ask('no', None)",
            "1 / 0",
            "print('y' * (3 << 20))",
            "x",
            f"{reach}('Deno.stdout.writeSync(new Uint8Array([0,0,0,3,0,0,0,0,65,65,65]))')()",
            "'x' in globals()",
            "while True: pass",
            "1 + 1",
        )
        async with sandbox.session(files={"f": "é".encode()}, timeout=5) as session:
            return [await session.run(code, calls=calls) for code in codes]

    reach = "import pyodide_js\npyodide_js.constructor.constructor"
    out = using(work)
    assert [o.status for o in out] == [
        *("ok", "ok", "error", "error", "output", "ok", "killed", "ok", "timeout", "ok"),
    ]
    assert [o.stdout for o in out[:4]] == ["é\n", "['é', 1]\n", "", ""]
    assert "RuntimeError: not that" in out[2].stderr
    assert "ZeroDivisionError" in out[3].stderr
    assert len(out[4].stdout) == 1 << 20
    assert [o.stdout for o in out[5:]] == ["'é'\n", "", "False\n", "", "2\n"]
    assert [o.alive for o in out] == [True] * 6 + [False, True, False, True]
    assert asked == [("echo", ["é", 1]), ("no", None)]


def test_a_forged_outcome_does_no_harm() -> None:
    reach = "import pyodide_js\npyodide_js.constructor.constructor"

    async def work(sandbox: WasmSandbox) -> list[str]:
        garbage = f"{reach}('Deno.stdout.writeSync(new Uint8Array([0,0,0,3,0,0,0,0,65,65,65]))')()"
        huge = f"{reach}('Deno.stdout.writeSync(new Uint8Array(99).fill(255))')()"
        return [(await sandbox.run(code)).status for code in (garbage, huge, "print(1)")]

    assert using(work) == ["killed", "killed", "ok"]
