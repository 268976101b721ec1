"""Scoring candidates: the one place that techniques ask.

A technique that needs scores declares ``class Params(JudgeParams)`` and calls :func:`score`; then its
clients choose the judge: ``bon(judge=pairwise)``, ``mcts(judge=tests)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from optillm.core.judges.absolute import absolute
from optillm.core.judges.checks import ASPECTS, aspects, checklist, verify
from optillm.core.judges.facts import exact, reward, tests
from optillm.core.judges.pairwise import compare, pairwise
from optillm.core.judges.params import ComparisonParams, JudgeParams
from optillm.core.llm import LLM
from optillm.core.reply import Reply
from optillm.core.task import Task

__all__ = ["ComparisonParams", "JudgeParams", "compare", "judge_calls", "score"]


async def score(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """Score candidates for the next reply, all concurrently.

    Args:
        task: what was asked; the candidates answer its messages.
        p: the judge and its parameters.
        stage: the technique's label of these calls, as in ``bon.rate``.

    Returns:
        Per candidate a score from 0 to 1, or None where none could be had.

    Raises:
        UpstreamError: the upstream refused a call for good.
    """
    judges = {
        "absolute": absolute,
        "pairwise": pairwise,
        "aspects": aspects,
        "verify": verify,
        "checklist": checklist,
        "tests": tests,
        "exact": exact,
        "reward": reward,
    }
    return await judges[p.judge](llm, task, candidates, p, stage=stage)


def judge_calls(p: JudgeParams, k: int) -> int:
    """The most upstream calls that scoring k candidates takes."""
    calls = {
        "pairwise": k * (k - 1) * p.times,
        "aspects": k * len(p.judge_aspects or ASPECTS) * p.times,
        "checklist": 1 + k * p.times,
        "tests": 1,
        "exact": 0,
        "reward": k,
    }
    return calls.get(p.judge, k * p.times)
