"""Self-consistency: sample reasoning paths, vote over their final answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Literal

from optillm.core.answers import (
    final_answer,
    group_by_answer,
    group_by_similarity,
    largest,
)
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.prompts import helper, numbered
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, eligible
from optillm.core.task import Task

_CHOICE = re.compile(r"choice\W{0,8}(\d{1,3})", re.I)


class Params(ApproachParams):
    """Parameters of ``self_consistency``."""

    samples: int = field(5, "reasoning paths to sample", ge=1, le=64, alias="sc_samples")
    similarity_threshold: float = field(
        0.8, "word similarity that makes two texts one", ge=0, le=1, alias="sc_similarity_threshold"
    )
    mode: Literal["auto", "answer", "similarity", "llm"] = field(
        "auto",
        "vote over extracted answers, cluster by similarity, or let a model select; auto: answers "
        "if at least half of the samples have one, else similarity",
        alias="sc_mode",
    )
    temperature: float = field(
        1.0, "of the samples; the paper uses 0.5 to 0.7", ge=0, le=2, alias="sc_temperature"
    )


def worst_selections(p: Params, candidates: int) -> int:
    """Calls at most to choose from so many candidates."""
    return int(p.mode == "llm" and candidates > 1)


async def most_consistent(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Vote over the candidates' final answers; return the first candidate of the largest group."""
    voters = eligible(candidates)
    if not voters:
        return Answer(())
    if p.mode == "llm" and len(voters) > 1:
        chosen = await _selected(task, llm, voters)
        if chosen is not None:
            await llm.note("sc.selected", choice=chosen)
            return Answer((voters[chosen],))
    answers = [final_answer(r.text) for r in voters]
    by_answer = p.mode == "answer" or (
        p.mode == "auto" and 2 * sum(a is not None for a in answers) >= len(answers)
    )
    groups = group_by_answer(answers) if by_answer else []
    if not groups:
        texts = [r.rendered for r in voters]
        # Comparing texts is quadratic in their length: not on the event loop.
        groups = await asyncio.to_thread(group_by_similarity, texts, p.similarity_threshold)
    winner = largest(groups)
    votes = [{"answer": answers[g[0]], "samples": g} for g in groups]
    await llm.note("sc.votes", votes=votes, winner=winner[0])
    return Answer((voters[winner[0]],))


@approach(
    "self_consistency",
    family="sampling",
    title="Self-consistency",
    paper="arXiv:2203.11171",
    calls="σ(K) + λ (λ = 1 when a model selects)",
    depth="1 + λ",
    worst=lambda p, sigma: sigma(p.samples) + worst_selections(p, p.samples),
    reduce=most_consistent,
    worst_reduce=worst_selections,
)
async def self_consistency(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample K paths, return the first of those that agree most."""
    samples = await llm.sample("sc.sample", task.messages, p.samples, temperature=p.temperature)
    return await most_consistent(task, llm, p, samples)


async def _selected(task: Task, llm: LLM, voters: Sequence[Reply]) -> int | None:
    """Universal self-consistency (arXiv:2311.17311): the index a model finds most consistent."""
    prompt = helper(
        "You compare replies and find the one that agrees best with the majority of them.",
        task,
        f"Candidates for the next reply:\n\n{numbered(voters, llm.nonce)}\n\n"
        "Which is the most consistent with the others? End with one line of the form\nChoice: <k>",
        llm.nonce,
    )
    reply = await llm.try_ask("sc.select", prompt, temperature=0.1)
    found = _CHOICE.findall(reply.visible) if reply else []
    index = int(found[-1]) - 1 if found else -1
    return index if 0 <= index < len(voters) else None
