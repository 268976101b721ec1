"""How long the server's event loop stands still while it runs many searches at once."""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Any

from benchmarks import processes
from benchmarks.asking import ask, session
from benchmarks.processes import free_port, serve_arguments, server

REQUESTS, ROUNDS = 64, 5
APART = 0.005
"""Seconds between the arrivals of two requests."""


def measure() -> dict[str, Any]:
    """The longest standstill of each round of concurrent ``mcts`` requests; and the median of rounds."""
    return asyncio.run(_measure())


async def _measure() -> dict[str, Any]:
    with processes.upstream() as up:
        port = free_port()
        flags = serve_arguments(up, port)[3:]
        with server(["-m", "benchmarks.watched", *flags], port) as ours:
            async with session() as http:

                async def one(number: int) -> None:
                    # In turn: what is asked is how long the loop stands still, not how it takes a burst.
                    await asyncio.sleep(number * APART)
                    asked = await ask(
                        http, ours, "wait100spread", optillm_approach="mcts", mcts_simulations=8
                    )
                    assert not asked.fault, asked.fault

                rounds = []
                for _ in range(ROUNDS + 1):
                    async with http.get(ours.root + "/ticks") as response:
                        rounds.append(await response.json())
                    await asyncio.gather(*(one(i) for i in range(REQUESTS)))
                async with http.get(ours.root + "/ticks") as response:
                    rounds.append(await response.json())
    # The first answer is from before the first round; the second is of the round that warms up.
    rounds = rounds[2:]
    return {
        "requests": REQUESTS,
        "rounds": rounds,
        "wall_ms": median(r["wall_ms"] for r in rounds),
        "cpu_ms": median(r["cpu_ms"] for r in rounds),
    }
