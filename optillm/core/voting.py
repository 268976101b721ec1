"""Votes over candidates, and sampling that stops once a vote is settled; shared by all that vote."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from optillm.core.answers import final_answer, group_by_answer, group_by_similarity, largest
from optillm.core.frozen import Frozen
from optillm.core.llm import LLM
from optillm.core.mathematics import merged
from optillm.core.prompts import helper, numbered
from optillm.core.registry import Sigma
from optillm.core.reply import Answer, Reply, eligible
from optillm.core.stopping import StopParams, batch, worst_batches
from optillm.core.task import Messages, Task

VoteMode = Literal["auto", "answer", "similarity"]
ReadAnswer = Callable[[str], str | None]
Draw = Callable[[int, int], Awaitable[Sequence[Reply]]]
"""Draw so many replies, with so many drawn before: ``draw(k, offset)``."""

_CHOICE = re.compile(r"choice\W{0,8}(\d{1,3})", re.I)


@dataclass(frozen=True)
class Samples:
    """What was drawn.

    Args:
        replies: in the order drawn.
        saved: how many were not needed; None when sampling was not to stop early.
    """

    replies: tuple[Reply, ...]
    saved: int | None = None

    def told(self, answer: Answer) -> Answer:
        """The answer with a note of the samples saved."""
        if self.saved is None:
            return answer
        return replace(answer, note=Frozen({**answer.note, "samples_saved": self.saved}))


async def draw_until(llm: LLM, draw: Draw, p: StopParams, *, answer: ReadAnswer = final_answer) -> Samples:
    """Draw replies in batches until the rule of ``p`` is satisfied, at most its ``samples``.

    Replies that are truncated or unusable do not vote. After the first batch a failure ends the drawing
    with what is there.

    Args:
        llm: of the technique; the rule's outcome goes into its trace.
        draw: draws one batch.
        p: the rule, and how many to draw if the vote is never settled.
        answer: reads what a text votes for.

    Raises:
        OptiError: the first batch failed, or the upstream refused a call for good.
    """
    replies: list[Reply] = []
    batches: list[list[str | None]] = []
    asked = 0
    while size := batch(p, batches, p.samples - asked):
        drawing = draw(size, asked)
        drawn = await (llm.attempt(drawing) if batches else drawing)
        if drawn is None:
            break
        asked += size
        replies += drawn
        batches.append([answer(r.text) if r.usable and not r.truncated else None for r in drawn])
    if p.stop == "no":
        return Samples(tuple(replies))
    # Samples that could not be had are not saved.
    saved = 0 if size else p.samples - asked
    await llm.note("stop", rule=p.stop, batches=[len(b) for b in batches], saved=saved)
    return Samples(tuple(replies), saved)


async def sample_until(
    llm: LLM,
    stage: str,
    messages: Messages,
    p: StopParams,
    *,
    temperature: float | None = None,
    answer: ReadAnswer = final_answer,
) -> Samples:
    """Samples of one prompt until the rule of ``p`` is satisfied; see :func:`draw_until`."""

    async def draw(k: int, offset: int) -> list[Reply]:
        return await llm.sample(stage, messages, k, temperature=temperature, offset=offset)

    return await draw_until(llm, draw, p, answer=answer)


def worst_samples(p: StopParams, sigma: Sigma) -> int:
    """Calls at most to draw the samples under the rule."""
    return sum(sigma(size) for size in worst_batches(p))


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Args:
        winner: the index of the first voter of the largest group.
        groups: voters that agree, by index, in order of their first members.
        answers: what each voter's short answer is, if it has one.
    """

    winner: int
    groups: Sequence[Sequence[int]]
    answers: Sequence[str | None]

    @property
    def votes(self) -> list[dict[str, Any]]:
        """JSON of the groups, for the trace."""
        return [{"answer": self.answers[g[0]], "samples": list(g)} for g in self.groups]


async def count_votes(
    llm: LLM, voters: Sequence[Reply], mode: VoteMode = "auto", threshold: float = 0.8
) -> Vote:
    """Vote over final answers (arXiv:2203.11171), or over texts that are alike.

    Answers that differ as numbers and texts are compared as mathematics, where there is a sandbox.

    Args:
        voters: one or more.
        mode: by answer, and the first voter if none has one; by similarity; or auto: by answer if at least
            half of them have one, else by similarity.
        threshold: word similarity that makes two texts one, 0 to 1.
    """
    answers = [final_answer(r.text) for r in voters]
    by_answer = mode == "answer" or (
        mode == "auto" and 2 * sum(a is not None for a in answers) >= len(answers)
    )
    groups = await merged(llm, group_by_answer(answers), answers) if by_answer else []
    if not groups and mode == "answer":
        groups = [[0]]
    if not groups:
        texts = [r.rendered for r in voters]
        # Comparing texts is quadratic in their length: not on the event loop.
        groups = await asyncio.to_thread(group_by_similarity, texts, threshold)
    return Vote(largest(groups)[0], groups, answers)


async def majority(
    llm: LLM, note: str, candidates: Sequence[Reply], mode: VoteMode = "auto", threshold: float = 0.8
) -> Answer:
    """The first of the eligible candidates that agree most, with the votes in the trace."""
    voters = eligible(candidates)
    if not voters:
        return Answer(())
    vote = await count_votes(llm, voters, mode, threshold)
    await llm.note(note, votes=vote.votes, winner=vote.winner)
    return Answer((voters[vote.winner],))


def consistency_prompt(task: Task, candidates: Sequence[Reply], nonce: str) -> Messages:
    """Ask which candidate agrees best with the others."""
    return helper(
        "You compare replies and find the one that agrees best with the majority of them.",
        task,
        f"Candidates for the next reply:\n\n{numbered(candidates, nonce)}\n\n"
        "Which is the most consistent with the others? End with one line of the form\nChoice: <k>",
        nonce,
    )


async def most_consistent(
    llm: LLM,
    stage: str,
    task: Task,
    candidates: Sequence[Reply],
    *,
    model: str | None = None,
    temperature: float = 0.1,
) -> int | None:
    """Universal self-consistency (arXiv:2311.17311): the index that a model finds most consistent.

    None when its choice cannot be read, or the call failed.
    """
    prompt = consistency_prompt(task, candidates, llm.nonce)
    reply = await llm.try_ask(stage, prompt, model=model, temperature=temperature)
    found = _CHOICE.findall(reply.visible) if reply else []
    index = int(found[-1]) - 1 if found else -1
    return index if 0 <= index < len(candidates) else None
