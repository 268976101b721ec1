"""Gets what the WebAssembly sandbox runs: ``python -m optillm.sandbox.fetch``.

Pyodide comes from the npm registry, through the ``deno`` that ``optillm[wasm]`` installs; the packages come
from PyPI, through pip. Versions and hashes are fixed here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PYODIDE = "314.0.7"
_PYODIDE_FILES = (
    ("pyodide.mjs", "6f1d60f7bf529beb300f0f47983c921d3982363640ba20af0e38efdddbc66109"),
    ("pyodide.asm.mjs", "f7cdc8ece80678ceb712f8e65ebe6d3a83203a180c399865f49612a051693635"),
    ("pyodide.asm.wasm", "cc36e3cab04fdfc9a63ff13eb52eae2b911bf46c025cc7b281f394bd3de1d5e6"),
    ("python_stdlib.zip", "fa1957e5777068fc4f7437f96d860ae2fbe9c19732ba06c84e004ec16dd7dd7a"),
    ("pyodide-lock.json", "5dc2fc119108bc148c7457dc86e7675b5c87e1cafd420b9c34c1eaef7b36c010"),
)
_PACKAGES = (
    ("z3-solver==5.3.3.0", "9381d9516345f53b21a8f4df243c5d608e9625aac658c3fb3975457bad260f60"),
    ("sympy==1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"),
    ("mpmath==1.3.0", "a0b2b9fe80bbcd81a6647ff13108738cfb482d481d826cc0e02f5b35e5c88d2c"),
)
_PLATFORM, _PYTHON = "pyemscripten_2026_0_wasm32", "3.14"


def default_folder() -> Path:
    """Where the runtime is kept: in the environment of this Python, so that it goes with it."""
    return Path(sys.prefix) / "share" / "optillm" / f"pyodide-{PYODIDE}"


def complete(folder: Path) -> bool:
    """Whether the runtime is there."""
    return (folder / "complete").is_file()


def find_deno() -> str | None:
    """The program ``deno`` of the package of that name, or None if it is not installed."""
    try:
        from deno import find_deno_bin

        return str(find_deno_bin())
    except (ImportError, FileNotFoundError):
        return None


def fetch(folder: Path, *, deno: str, python: str = sys.executable) -> None:
    """Download the runtime into a folder.

    Args:
        folder: made, or made anew.
        deno: the program.
        python: an interpreter that has pip.

    Raises:
        ValueError: what came is not what was meant.
        subprocess.CalledProcessError: deno or pip failed; they have said why.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "package.json").write_text(json.dumps({"dependencies": {"pyodide": PYODIDE}}))
        subprocess.run([deno, "install", "--node-modules-dir=auto", "--no-lock", "-q"], cwd=work, check=True)
        (work / "requirements.txt").write_text("\n".join(f"{p} --hash=sha256:{h}" for p, h in _PACKAGES))
        subprocess.run(
            [
                *(python, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"),
                *("--only-binary=:all:", "--implementation=cp", f"--python-version={_PYTHON}"),
                *(f"--platform={_PLATFORM}", "-d", "packages", "-r", "requirements.txt"),
            ],
            cwd=work,
            check=True,
        )
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "pyodide").mkdir(parents=True)
        for file, digest in _PYODIDE_FILES:
            data = (work / "node_modules" / "pyodide" / file).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"pyodide {PYODIDE}: {file} is not the file that was expected")
            (folder / "pyodide" / file).write_bytes(data)
        shutil.copytree(work / "packages", folder / "packages")
        (folder / "complete").touch()


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m optillm.sandbox.fetch", description=__doc__)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where to put it")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has pip")
    arguments = parser.parse_args(argv)
    deno = find_deno()
    if deno is None:
        parser.error("pip install 'optillm[wasm]' first")
    if not complete(arguments.folder):
        fetch(arguments.folder, deno=deno, python=arguments.python)


if __name__ == "__main__":
    main()
