"""Which wall is taken, and that there is never none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from optillm.sandbox.choose import FirstAvailable, open_sandbox, probe
from optillm.sandbox.namespaces import NamespaceSandbox
from optillm.sandbox.runtime import find_runtime
from optillm.sandbox.seccomp import ALLOWED, MACHINES
from optillm.sandbox.wasm import WasmSandbox

AS_USER = Path(__file__).with_name("as_user.py")


def test_off_is_none() -> None:
    assert open_sandbox("off") is None


def test_the_first_wall_that_stands_is_taken(tmp_path: Path) -> None:
    async def take() -> tuple[tuple[str, ...], str]:
        sandbox = FirstAvailable((WasmSandbox(folder=tmp_path), NamespaceSandbox(preload=("json", "absent"))))
        try:
            return await sandbox.start(), (await sandbox.run("print(1)")).stdout
        finally:
            await sandbox.aclose()

    assert asyncio.run(take()) == (("json",), "1\n")


def test_the_probe_tells_of_every_wall() -> None:
    found = {p.name: p for p in asyncio.run(probe())}
    assert found["namespaces"].available, found["namespaces"].detail
    assert found["namespaces"].detail == "with numpy, sympy, z3"
    assert found["wasm"].available, found["wasm"].detail


@pytest.mark.parametrize(("script", "said"), [("walls", "ok"), ("forbidden", "refused, nothing ran")])
def test_an_ordinary_user(script: str, said: str) -> None:
    """A user without any privilege has the walls; where the kernel forbids namespaces, nothing runs."""
    done = subprocess.run(
        [sys.executable, str(AS_USER), script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [said]


def test_the_system_calls_of_this_machine_are_the_kernels() -> None:
    """Numbers in the table against the headers, where there are any."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():  # Another machine, or no headers: nothing to compare with.
        return
    lines = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR_")]
    numbers = {line[1].removeprefix("__NR_"): int(line[2]) for line in lines}
    assert [e for e in ALLOWED if e[1] != numbers[str(e[0])]] == []
    x86 = MACHINES[0]
    for name in ("clone", "clone3", "ioctl", "prctl", "pivot_root", "capset"):
        assert getattr(x86, name) == numbers[name]


def test_only_the_packages_meant_are_bound() -> None:
    shown = {Path(path).name for path in find_runtime().shown}
    assert {"numpy", "sympy", "mpmath", "z3"} <= shown
    assert not shown & {"optillm", "aiohttp", "site-packages"}
