"""The bug as first reported: concurrent ``mcts`` requests were computed with each other's parameters."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes import Said, ScriptedUpstream, Seen
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

ACTIONS = 3
"""The default of ``mcts_actions``."""


@dataclass(frozen=True)
class Wanted:
    """One request: its marker and its own parameters."""

    number: int
    simulations: int
    depth: int
    exploration: float

    @property
    def marker(self) -> str:
        return f"marker-{self.number}-"

    @property
    def calls(self) -> int:
        """σ(a) + S(2d+1), and one expansion of 1 + σ(a) for each simulation beyond a."""
        beyond = max(0, self.simulations - ACTIONS)
        return 1 + self.simulations * (2 * self.depth + 1) + 2 * beyond

    async def ask(self, proxy: Proxy, **more: Any) -> Answer:
        return await proxy.ask(
            "mcts-test-model",
            f"{self.marker} How do I say goodbye?",
            mcts_simulations=self.simulations,
            mcts_depth=self.depth,
            mcts_exploration=self.exploration,
            **more,
        )


def dialogue(call: Seen) -> Said:
    """Root replies R0, R1, R2 with ever better scores; below them everything is the same."""
    if call.stage == "user":
        return "more?"
    if call.stage == "eval":
        return f"Score: {next(s for r, s in (('R0', 0.2), ('R1', 0.5), ('R2', 0.9)) if r in call.text)}"
    return [f"R{i}" for i in range(call.n)] if len(call.messages) == 1 else "ok"


async def test_each_of_120_is_computed_with_its_own_parameters() -> None:
    rng = random.Random(304)
    wanted = [
        Wanted(i, rng.randint(1, 2 * ACTIONS), rng.randint(0, 3), rng.choice([0.0, 0.2, 1.4, 9.5]))
        for i in range(120)
    ]
    async with ScriptedUpstream(dialogue) as up, serving(up) as proxy:
        answers = await asyncio.gather(*(w.ask(proxy) for w in wanted))
        for w, answer in zip(wanted, answers, strict=True):
            used = answer.info["params"]["mcts"]
            assert (used["simulations"], used["depth"], used["exploration"]) == (
                w.simulations,
                w.depth,
                w.exploration,
            )
            assert len(up.stages(marker=w.marker)) == answer.info["calls"] == w.calls
    assert len(up.calls) == sum(w.calls for w in wanted)


async def test_each_explores_as_much_as_it_asked_for() -> None:
    """One rollout at a time: without exploration the best reply gets all visits, with much all share them."""
    wanted = [Wanted(i, 8, 0, 10.0 if i % 2 else 0.0) for i in range(60)]
    async with ScriptedUpstream(dialogue) as up, serving(up) as proxy:
        answers = await asyncio.gather(*(w.ask(proxy, mcts_parallel=1) for w in wanted))
        for w, answer in zip(wanted, answers, strict=True):
            assert answer.text == "R2"
            run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
            tree = [r for r in run["records"] if r.get("name") == "mcts.tree"][-1]["data"]["nodes"]
            visits = [n["visits"] for n in tree if "." not in n["path"]]
            assert visits == ([2, 3, 3] if w.exploration else [1, 1, 6])
