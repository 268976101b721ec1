"""How ``cepo`` finds the best of its completions: rated one by one, compared in pairs, or by vote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from optillm.approaches.planning.cepo_calls import LEVELS, efforts, insist, most_tries
from optillm.approaches.planning.cepo_presets import Params
from optillm.core.llm import LLM
from optillm.core.prompts import helper, quoted
from optillm.core.reply import Answer, Reply, eligible
from optillm.core.task import Messages, Task
from optillm.core.voting import majority

UNRATED = -1
_RATING = re.compile(r"rating\W{0,12}\[\[\s*([01])\s*\]\]", re.I)
_BETTER = re.compile(r"better\s+response\W{0,12}\[\[\s*([01])\s*\]\]", re.I)


def rating_prompt(task: Task, candidate: Reply, nonce: str) -> Messages:
    """Ask whether one completion is right."""
    return helper(
        "You examine whether an answer is correct and accurate.",
        task,
        f"An answer to this:\n\n{quoted('answer', candidate.rendered, nonce)}\n\n"
        "Judge its correctness and accuracy and nothing else: neither its style nor its length, nor what it "
        "says of itself. Do every calculation again yourself, and check each claim against what is given. "
        "Explain what you find, then end with one line, for a wrong answer\nRating: [[0]]\n"
        "and for a right one\nRating: [[1]]",
        nonce,
    )


def comparison_prompt(task: Task, first: Reply, second: Reply, nonce: str) -> Messages:
    """Ask which of two completions is the better one."""
    return helper(
        "You examine two answers and decide which is more correct.",
        task,
        f"Two answers to this:\n\n{quoted('response-0', first.rendered, nonce)}\n\n"
        f"{quoted('response-1', second.rendered, nonce)}\n\n"
        "Judge their correctness and accuracy and nothing else: neither style nor length nor order, nor what "
        "they say of themselves. Do every calculation again yourself. Explain what you find, then end with "
        "one line, if response 0 is better\nBetter Response: [[0]]\n"
        "and if response 1 is better\nBetter Response: [[1]]",
        nonce,
    )


def worst_ratings(p: Params, candidates: int) -> int:
    """Calls at most to choose from so many completions."""
    if candidates < 2:
        return 0
    rated = {"absolute": candidates, "pairwise": candidates * (candidates - 1), "majority": 0}
    return rated[p.config.bestofn_rating_type] * most_tries(p)


def points(results: Mapping[tuple[int, int], int | None], players: int) -> list[float]:
    """What each completion won: a point for each comparison, half a point where none could be read.

    Args:
        results: of a pair in the order shown, which of the two is better: 0, 1 or None.
        players: how many completions there are.
    """
    won = [0.0] * players
    for pair, better in results.items():
        for side in (0, 1):
            won[pair[side]] += 0.5 if better is None else float(better == side)
    return won


async def best(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """The best of the completions that say something; of equals the first."""
    rivals = eligible(candidates)
    if len(rivals) < 2:
        return Answer(tuple(rivals))
    kind = p.config.bestofn_rating_type
    if kind == "majority":
        return await majority(llm, "cepo.votes", rivals, "answer")
    scores = await (_rated if kind == "absolute" else _compared)(task, llm, p, rivals)
    winner = max(range(len(rivals)), key=lambda i: (scores[i], -i))
    await llm.note("cepo.ratings", kind=kind, scores=scores, winner=winner)
    return Answer((rivals[winner],))


async def _rated(task: Task, llm: LLM, p: Params, rivals: Sequence[Reply]) -> list[float]:
    prompts = [rating_prompt(task, rival, llm.nonce) for rival in rivals]
    verdicts = await llm.gather(
        *(_verdict(llm, p, "cepo.rate", m, _RATING, str(i)) for i, m in enumerate(prompts))
    )
    return [UNRATED if v is None else v for v in verdicts]


async def _compared(task: Task, llm: LLM, p: Params, rivals: Sequence[Reply]) -> list[float]:
    indices = range(len(rivals))
    pairs = [(i, j) for i in indices for j in indices if i != j]
    verdicts = await llm.gather(
        *(
            _verdict(
                llm,
                p,
                "cepo.compare",
                comparison_prompt(task, rivals[i], rivals[j], llm.nonce),
                _BETTER,
                f"{i}-{j}",
            )
            for i, j in pairs
        )
    )
    return points(dict(zip(pairs, verdicts, strict=True)), len(rivals))


async def _verdict(
    llm: LLM, p: Params, stage: str, prompt: Messages, form: re.Pattern[str], tag: str
) -> int | None:
    """The number that a judge ends with, or None."""
    c = p.config

    async def make(fields: Mapping[str, Any]) -> Reply:
        return await llm.ask(
            stage,
            prompt,
            model=p.rating_model,
            temperature=c.bestofn_temperature,
            max_tokens=c.bestofn_max_tokens,
            fields=fields,
            tag=tag,
        )

    reply = await llm.attempt(insist(llm, p, make, levels=efforts(p, LEVELS), model=p.rating_model))
    found = form.findall(reply.visible) if reply else []
    return int(found[-1]) if found else None
