"""Each technique's wall time over what its chain of calls must take: depth × upstream latency."""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Any

import aiohttp

from benchmarks import processes
from benchmarks.asking import Asked, ask, session
from benchmarks.processes import Server
from optillm.plugins import builtin_registry

LATENCY = 0.1
ROUNDS = 3
LONGEST = 3.0
"""Seconds after which a technique is not measured again."""

FIXED = (
    ("self_consistency", {"sc_samples": 5}),
    ("bon", {"best_of_n": 3}),
    ("mcts", {"mcts_simulations": 2, "mcts_depth": 1}),
)
"""Those of the speed table, with the parameters that it names."""


def measure() -> dict[str, Any]:
    """All techniques of the registry with their defaults, and the speed table's three."""
    return asyncio.run(_measure())


async def _measure() -> dict[str, Any]:
    with processes.upstream() as up, processes.optillm(up) as ours:
        async with session() as http:
            # A model that ignores n is learned once, by whichever technique comes first.
            for model in ("wait0single", "wait100single"):
                await ask(http, ours, model, optillm_approach="self_consistency")
            table = {
                slug: await _wall(http, ours, "wait100single", optillm_approach=slug, **fields)
                for slug, fields in FIXED
            }
            every = {}
            for item in builtin_registry():
                every[item.slug] = {
                    "native": await _wall(http, ours, "wait100", optillm_approach=item.slug),
                    "fanout": await _wall(http, ours, "wait100single", optillm_approach=item.slug),
                }
    return {"latency_ms": LATENCY * 1000, "table": table, "every": every}


async def _wall(http: aiohttp.ClientSession, ours: Server, model: str, **fields: Any) -> dict[str, Any]:
    """One technique on one model: medians of a few rounds after a quick one that warms it up."""
    warm = await ask(http, ours, model.replace("100", "0"), **fields)
    if warm.fault:
        return {"fault": warm.fault}
    rounds: list[Asked] = []
    while len(rounds) < ROUNDS and sum(r.seconds for r in rounds) < LONGEST:
        rounds.append(await ask(http, ours, model, **fields))
        if rounds[-1].fault:
            return {"fault": rounds[-1].fault}
    walls = [r.seconds / LATENCY for r in rounds]
    return {
        "calls": rounds[-1].about["calls"],
        "depth": rounds[-1].about["depth"],
        "wall_over_latency": median(walls),
        "wall_over_chain": median(w / r.about["depth"] for w, r in zip(walls, rounds, strict=True)),
    }
