"""Universal self-consistency: sample, and let the model select the most consistent reply.

Self-consistency needs answers that can be compared. The paper (arXiv:2311.17311) replaces its vote by one
call: the model reads all K replies and says which agrees best with the majority of them. That works for
summaries, code and open questions too, and needs neither a parser nor the execution of code. The reply
chosen is returned word for word.

As in the paper 8 replies are sampled (section 4.1), and the selection is nearly greedy. Truncated replies
are shown only when no complete one is there. When the choice cannot be read, or the call fails, replies
are clustered by likeness and the first of the largest cluster is returned: the first reply, if no two are
alike.

Use it where ``self_consistency`` has nothing to count. All replies must fit into the model's context.
"""

from __future__ import annotations

from collections.abc import Sequence

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, eligible
from optillm.core.task import Task
from optillm.core.voting import majority, most_consistent


class Params(ApproachParams):
    """Parameters of ``usc``."""

    samples: int = field(8, "replies to sample", ge=1, le=64)
    temperature: float = field(1.0, "of the samples", ge=0, le=2)
    select_model: str | None = field(None, "model that selects; the same if null")
    select_temperature: float = field(0.1, "of the selection", ge=0, le=2)
    similarity_threshold: float = field(
        0.8, "word similarity that makes two texts one, when the choice cannot be read", ge=0, le=1
    )


def worst_selections(p: Params, candidates: int) -> int:
    """Calls at most to choose from so many candidates."""
    return int(candidates > 1)


async def select(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Let the model say which candidate is the most consistent."""
    voters = eligible(candidates)
    if len(voters) < 2:
        return Answer(tuple(voters))
    chosen = await most_consistent(
        llm, "usc.select", task, voters, model=p.select_model, temperature=p.select_temperature
    )
    if chosen is None:
        return await majority(llm, "usc.votes", voters, "similarity", p.similarity_threshold)
    await llm.note("usc.selected", candidates=len(voters), choice=chosen)
    return Answer((voters[chosen],))


@approach(
    "usc",
    family="sampling",
    title="Universal self-consistency",
    paper="arXiv:2311.17311",
    calls="σ(K) + 1 (no selection if only one sample is usable)",
    depth="2",
    worst=lambda p, sigma: sigma(p.samples) + worst_selections(p, p.samples),
    reduce=select,
    worst_reduce=worst_selections,
)
async def usc(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample K replies, return the one that the model finds most consistent."""
    samples = await llm.sample("usc.sample", task.messages, p.samples, temperature=p.temperature)
    return await select(task, llm, p, samples)
