"""``make bench``: measure everything, write the figures, the chart and the documentation's tables.

    python -m benchmarks [PART…]

With the names of parts only these are measured, and printed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import blocking, chart, memory, passthrough, report, startup, techniques
from optillm import __version__

ROOT = Path(__file__).parents[1]
PARTS: Mapping[str, Callable[[], dict[str, Any]]] = MappingProxyType(
    {
        "startup": startup.measure,
        "memory": memory.measure,
        "passthrough": passthrough.measure,
        "blocking": blocking.measure,
        "techniques": techniques.measure,
    }
)


def main(wanted: Sequence[str]) -> int:
    """Measure; 1 if a part is not known."""
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"no such part: {', '.join(unknown)}; parts: {', '.join(PARTS)}", file=sys.stderr)
        return 1
    figures: dict[str, Any] = {"machine": machine()}
    for name in wanted or PARTS:
        begun = time.monotonic()
        figures[name] = PARTS[name]()
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    if wanted:
        print(json.dumps(figures, indent=2))
        return 0
    out = ROOT / "benchmarks" / "out"
    out.mkdir(exist_ok=True)
    (out / "performance.json").write_text(json.dumps(figures, indent=2) + "\n")
    chart.draw(ROOT / "docs" / "performance.svg", figures)
    report.write(ROOT / "docs" / "performance.md", figures)
    for row in report.rows(figures):
        print(f"{row.name:75} {row.target:>8} {row.value:>9}  {'' if row.met else 'MISSED'}")
    print("written: benchmarks/out/performance.json, docs/performance.md, docs/performance.svg")
    return 0


def machine() -> dict[str, Any]:
    """What kind of machine this is; not which."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "system": platform.system(),
        "python": platform.python_version(),
        "optillm": __version__,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
