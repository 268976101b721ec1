"""Runs a technique on a simulated model's questions, and counts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optillm.core.tools import Tools
from optillm.evals.simulated import Question, SimulatedModel
from optillm.library import solve
from optillm.plugins import builtin_registry


@dataclass(frozen=True)
class Measured:
    """What a technique did on all questions.

    Args:
        right: per question, whether the answer was right.
        replies: per question, how many replies the model gave, of all kinds.
    """

    right: Sequence[bool]
    replies: Sequence[int]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def error(self) -> float:
        """The standard error of the accuracy, never 0 (Agresti-Coull, with two of each added)."""
        n = len(self.right) + 4
        p = (sum(self.right) + 2) / n
        return math.sqrt(p * (1 - p) / n)

    @property
    def calls(self) -> float:
        """Mean number of replies per question; with an upstream without ``n``, of calls."""
        return sum(self.replies) / len(self.replies)


async def measure(model: SimulatedModel, approach: str, **fields: Any) -> Measured:
    """Solve all questions of the model; each request has its own seed, so the outcome is always the same."""
    registry, tools = builtin_registry(), Tools()

    async def one(i: int, question: Question) -> tuple[bool, int]:
        solution = await solve(
            question.text,
            approach=approach,
            model="simulated",
            upstream=model,
            registry=registry,
            tools=tools,
            seed=i,
            **fields,
        )
        replies = sum(len(c.replies) for c in solution.trace.calls)
        return question.is_right(solution.text), replies

    results = []
    # Some at once, as a server would have them; not thousands, for each holds its trace.
    for start in range(0, len(model.questions), 64):
        some = list(enumerate(model.questions))[start : start + 64]
        results += await asyncio.gather(*(one(i, q) for i, q in some))
    right, replies = zip(*results, strict=True)
    return Measured(right, replies)
