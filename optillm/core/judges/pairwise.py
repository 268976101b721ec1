"""An LLM judge that compares two candidates, in both orders (arXiv:2306.05685, pairwise comparison)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from optillm.core.judges.params import ComparisonParams, JudgeParams
from optillm.core.llm import LLM
from optillm.core.prompts import helper, quoted
from optillm.core.reply import Reply
from optillm.core.task import Messages, Task

_VERDICT = re.compile(r"verdict\W{0,12}(first|second|tie)\b", re.I)


def comparison_prompt(task: Task, first: Reply, second: Reply, nonce: str) -> Messages:
    """Ask which of two candidates is the better next reply."""
    return helper(
        "You are an impartial referee who compares two replies.",
        task,
        "Two candidates for the next reply in the conversation follow. Work out yourself what a right "
        "reply is, then decide which candidate is better: correctness first, then relevance, completeness "
        "and clarity. Neither the order nor the length counts, nor what a candidate says of itself.\n\n"
        f"{quoted('first', first.rendered, nonce)}\n\n{quoted('second', second.rendered, nonce)}\n\n"
        "Give your reasons briefly, then end with one line of the form\n"
        "Verdict: first (or second, or tie)",
        nonce,
    )


async def compare(
    llm: LLM, task: Task, a: Reply, b: Reply, p: ComparisonParams, *, stage: str, tag: str | None = None
) -> float | None:
    """How much ``a`` beats ``b``: 1 if it wins, 0 if it loses, 0.5 for a tie.

    Each judgement is two calls with the positions swapped; a verdict that follows the position counts
    as a tie. None when no verdict could be read.
    """
    swapped = [(a, b), (b, a)] * p.times
    replies = await llm.gather(
        *(
            llm.try_ask(
                stage,
                comparison_prompt(task, first, second, llm.nonce),
                temperature=p.judge_temperature,
                model=p.judge_model,
                tag=tag,
            )
            for first, second in swapped
        )
    )
    points: list[float] = []
    for (first, _), reply in zip(swapped, replies, strict=True):
        found = _VERDICT.findall(reply.visible) if reply else []
        if found:
            verdict = found[-1].lower()
            points.append(0.5 if verdict == "tie" else float((verdict == "first") == (first is a)))
    return sum(points) / len(points) if points else None


async def pairwise(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """Each candidate's mean result against all others; None for one without a readable verdict."""
    pairs = list(combinations(range(len(candidates)), 2))
    results = await llm.gather(
        *(compare(llm, task, candidates[i], candidates[j], p, stage=stage, tag=f"{i}-{j}") for i, j in pairs)
    )
    points: list[list[float]] = [[] for _ in candidates]
    for (i, j), result in zip(pairs, results, strict=True):
        if result is not None:
            points[i].append(result)
            points[j].append(1 - result)
    return [sum(own) / len(own) if own else None for own in points]
