"""Majority voting: sample several replies, return the first of those with the most frequent final answer.

This is self-consistency (arXiv:2203.11171) in its plain form, with the name and the parameter ``k`` that it
has always had here: the same as ``self_consistency(mode=answer)`` with 8 samples at temperature 0.6. The
final answer of each reply is read (a ``\\boxed{}``, an "answer is" line, a lone option letter…), answers
that are the same number or text are one group, and the first reply of the largest group is returned word
for word. Ties go to the group whose first reply came first.

Replies without a final answer do not vote, truncated ones only when no complete one is there; if no reply
has an answer, the first is returned. A sample that fails is left out. Replies may be as long as the client
says, else as the server's default (4096 tokens).

Use it where answers are short and can be compared. For free text ``self_consistency`` compares whole
texts; ``adaptive_consistency`` stops sampling as soon as the majority is settled.
"""

from __future__ import annotations

from collections.abc import Sequence

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply
from optillm.core.task import Task
from optillm.core.voting import majority


class Params(ApproachParams):
    """Parameters of ``majority_voting``."""

    k: int = field(8, "replies to sample", ge=1, le=64, alias="k")
    temperature: float = field(0.6, "of the samples", ge=0, le=2)


async def vote(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """The first of the candidates whose final answer is the most frequent."""
    return await majority(llm, "majority_voting.votes", candidates, "answer")


@approach(
    "majority_voting",
    family="sampling",
    title="Majority voting over final answers",
    paper="arXiv:2203.11171",
    calls="σ(K)",
    depth="1",
    worst=lambda p, sigma: sigma(p.k),
    reduce=vote,
    worst_reduce=lambda p, candidates: 0,
)
async def majority_voting(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample K replies, return the first of those that agree most."""
    samples = await llm.sample("majority_voting.sample", task.messages, p.k, temperature=p.temperature)
    return await vote(task, llm, p, samples)
