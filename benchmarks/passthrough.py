"""Pass-through against calling the upstream directly, and against the least a proxy can do."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks import processes
from benchmarks.processes import Server, load

CLIENTS, ROUNDS, SECONDS = 64, 7, 3.0
SINGLE_ROUNDS, SINGLE_SECONDS = 5, 1.0


def measure() -> dict[str, Any]:
    """Requests per second with many clients, and latency with one; medians of alternating rounds."""
    with processes.upstream() as up, processes.echo(up) as echo, processes.optillm(up) as ours:
        targets = {"direct": up, "echo": echo, "optillm": ours}
        for target in targets.values():
            load(target, "wait0", CLIENTS, 2)
        many = _rounds(targets, CLIENTS, ROUNDS, SECONDS)
        single = _rounds(targets, 1, SINGLE_ROUNDS, SINGLE_SECONDS)
    rps = {name: median(r["rps"] for r in rounds) for name, rounds in many.items()}
    p50 = {name: median(r["p50_ms"] for r in rounds) for name, rounds in single.items()}
    return {
        "clients": CLIENTS,
        "rps": rps,
        "rounds_rps": {name: [r["rps"] for r in rounds] for name, rounds in many.items()},
        "cpu_us": {name: median(r["cpu_us"] for r in rounds) for name, rounds in many.items()},
        "of_direct": _ratio(many, "optillm", "direct"),
        "of_echo": _ratio(many, "optillm", "echo"),
        "echo_of_direct": _ratio(many, "echo", "direct"),
        "p50_ms": p50,
        "added_p50_ms": p50["optillm"] - p50["direct"],
        "echo_added_p50_ms": p50["echo"] - p50["direct"],
    }


def _rounds(
    targets: Mapping[str, Server], clients: int, rounds: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    """All targets in turn, again and again, so that a slow moment of the machine hits all of them."""
    out: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
    for _ in range(rounds):
        for name, target in targets.items():
            before = target.cpu_seconds
            result = load(target, "wait0", clients, seconds)
            result["cpu_us"] = (target.cpu_seconds - before) / result["answered"] * 1e6
            out[name].append(result)
    return out


def _ratio(rounds: Mapping[str, list[dict[str, float]]], ours: str, other: str) -> float:
    """The median of the ratios within each round."""
    return median(a["rps"] / b["rps"] for a, b in zip(rounds[ours], rounds[other], strict=True))
