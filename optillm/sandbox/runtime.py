"""What of this Python a sandbox needs: its standard library, and a few packages."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution

PACKAGES = (
    "numpy", "sympy", "mpmath", "z3-solver",
    "math-verify", "latex2sympy2-extended", "antlr4-python3-runtime",
)  # fmt: skip
"""Distributions that code may import, if they are installed."""

PRELOADED = (
    "asyncio", "collections", "dataclasses", "decimal", "fractions", "functools", "heapq", "itertools",
    "json", "math", "random", "re", "statistics", "string", "traceback", "typing", "unittest",
    "numpy", "numpy.random", "sympy", "z3", "math_verify",
)  # fmt: skip
"""Modules that are imported before the first run."""

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


@dataclass(frozen=True)
class Runtime:
    """Absolute paths of the Python that runs code.

    Args:
        paths: folders that are there, read-only.
        hidden: folders in them that are shown empty, for other packages live there.
        shown: the packages.
        sys_path: where modules are looked for.
        renamed: paths, and what is shown for them in error messages, longest first.
    """

    paths: tuple[str, ...]
    hidden: tuple[str, ...]
    shown: tuple[str, ...]
    sys_path: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]


def find_runtime(packages: Sequence[str] = PACKAGES) -> Runtime:
    """This interpreter's standard library, and the packages of those that are installed."""
    stdlib = sysconfig.get_path("stdlib")
    dynload = sysconfig.get_config_var("DESTSHARED") or os.path.join(stdlib, "lib-dynload")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries = os.path.join(sys.base_prefix, "lib")
    shown = tuple(path for name in packages for path in _parts(name))
    folders = tuple(dict.fromkeys(os.path.dirname(path) for path in shown))
    hidden = (
        f"{libraries}/{version}/site-packages",
        f"{libraries}/python3/dist-packages",
        f"{libraries}/{version}/dist-packages",
        "/usr/lib/python3/dist-packages",
    )
    renamed = dict.fromkeys(folders, "<packages>")
    renamed |= {stdlib: "<python>", sys.base_prefix: "<prefix>", sys.prefix: "<prefix>"}
    return Runtime(
        _outermost((*_SYSTEM, libraries, stdlib, dynload)),
        tuple(dict.fromkeys(hidden)),
        shown,
        (stdlib, dynload, *folders),
        tuple(sorted(renamed.items(), key=lambda item: -len(item[0]))),
    )


def _parts(name: str) -> list[str]:
    """The files and folders of a distribution at the top of its site-packages."""
    try:
        found: Distribution = distribution(name)
    except PackageNotFoundError:
        return []
    tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
    return sorted(str(found.locate_file(top)) for top in tops)


def _outermost(paths: Sequence[str]) -> tuple[str, ...]:
    """The existing ones of these folders that are not inside another of them."""
    there = [p for p in dict.fromkeys(paths) if os.path.isdir(p)]
    return tuple(p for p in there if not any(p.startswith(q + "/") for q in there))
