"""Techniques on problems, as results to train on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from optillm.core.tools import Tools
from optillm.core.trace import CallRecord
from optillm.core.usage import Usage
from optillm.evals.routing.problems import Problem
from optillm.evals.routing.results import Result
from optillm.evals.routing.world import SimulatedSandbox, World
from optillm.library import solve
from optillm.plugins import builtin_registry
from optillm.protocol.errors import OptiError

APPROACHES = (
    "none",
    "self_consistency",
    "adaptive_consistency",
    "bon",
    "bon(n=8,judge=verify)",
    "mcts(simulations=12,depth=0)",
    "z3",
)
"""What the shipped model can choose: techniques whose gain follows from sampling, judging or computing."""
_AT_ONCE = 32


@dataclass(frozen=True)
class Source:
    """A model to be asked.

    Args:
        upstream: an ``Upstream``.
        model: its name.
        tools: what techniques may use.
        runs: how often each technique is asked each question.
        fields: of every request.
        instruction: a system message of every question; empty for none.
        at_once: questions under way at the same time.
    """

    upstream: Any
    model: str
    tools: Tools
    runs: int = 1
    fields: tuple[tuple[str, Any], ...] = ()
    instruction: str = ""
    at_once: int = _AT_ONCE

    def prompt(self, problem: Problem) -> str | tuple[dict[str, Any], ...]:
        """What is asked."""
        if not self.instruction:
            return problem.text
        told = {"role": "system", "content": self.instruction}
        return (told, {"role": "user", "content": problem.text})


def simulated(problems: Sequence[Problem], *, seed: int, runs: int) -> Source:
    """The simulated model of some problems."""
    return Source(World(problems, seed=seed), "simulated", Tools(SimulatedSandbox()), runs)


async def collect(
    source: Source, problems: Sequence[Problem], approaches: Sequence[str]
) -> AsyncIterator[Result]:
    """Ask everything, technique by technique; a result per problem and technique, in order.

    A run that fails counts as a wrong answer. Requests have seeds of their own, so that a simulated model
    answers the same whenever it is asked the same.
    """
    registry = builtin_registry()

    async def one(number: int, problem: Problem, approach: str) -> tuple[bool, int, int]:
        calls: list[Any] = []
        try:
            solution = await solve(
                source.prompt(problem),
                approach=approach,
                model=source.model,
                upstream=source.upstream,
                registry=registry,
                tools=source.tools,
                seed=number,
                observer=calls.append,
                **dict(source.fields),
            )
            right = problem.is_right(solution.text)
        except OptiError:
            right = False
        made = [c for c in calls if isinstance(c, CallRecord)]
        replies = sum(max(len(c.replies), 1) for c in made)
        return right, replies, sum((c.usage for c in made), Usage()).total

    for approach in approaches:
        asked = [(i, p) for i, p in enumerate(problems) for _ in range(source.runs)]
        outcomes: list[tuple[bool, int, int]] = []
        for start in range(0, len(asked), source.at_once):
            some = [
                one(start + k, problem, approach)
                for k, (_, problem) in enumerate(asked[start : start + source.at_once])
            ]
            outcomes += await asyncio.gather(*some)
        for i, problem in enumerate(problems):
            mine = outcomes[i * source.runs : (i + 1) * source.runs]
            right, calls, tokens = (sum(column) / source.runs for column in zip(*mine, strict=True))
            yield Result(
                prompt=source.prompt(problem),
                approach=approach,
                score=right,
                calls=calls,
                tokens=tokens,
                model=source.model,
                kind=problem.kind,
                runs=source.runs,
            )
