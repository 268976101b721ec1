"""Self-consistency: sample reasoning paths, vote over their final answers.

The paper (arXiv:2203.11171) samples many reasoning paths, reads each one's final answer, and returns the
answer that most paths reach, whatever their reasoning. Here the reply returned is the first path of the
largest group, word for word; ties go to the group whose first path came first. Truncated paths vote only
when no complete one is there, paths without an answer do not vote. When fewer than half of the paths have
a short answer, as with free text, the vote is over texts that are alike; mode ``llm`` asks a model instead
(universal self-consistency, arXiv:2311.17311), and falls back to likeness when its choice cannot be read.

With ``stop`` sampling ends once the majority is settled, as in ``adaptive_consistency``.

Use it where answers are short and can be compared: arithmetic, multiple choice, facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from optillm.core.llm import LLM
from optillm.core.params import field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, eligible
from optillm.core.stopping import StopParams
from optillm.core.task import Task
from optillm.core.voting import majority, most_consistent, sample_until, worst_samples


class Params(StopParams):
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

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Early stopping counts answers."""
        yield from super().contradictions()
        if self.stop != "no" and self.mode in ("similarity", "llm"):
            yield "stop", f"counts answers, and mode={self.mode} does not: use mode=auto or answer"


def worst_selections(p: Params, candidates: int) -> int:
    """Calls at most to choose from so many candidates."""
    return int(p.mode == "llm" and candidates > 1)


async def elect(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Vote over the candidates' final answers; return the first candidate of the largest group."""
    if p.mode != "llm":
        return await majority(llm, "sc.votes", candidates, p.mode, p.similarity_threshold)
    voters = eligible(candidates)
    chosen = await most_consistent(llm, "sc.select", task, voters) if len(voters) > 1 else None
    if chosen is None:
        return await majority(llm, "sc.votes", voters, "similarity", p.similarity_threshold)
    await llm.note("sc.selected", choice=chosen)
    return Answer((voters[chosen],))


@approach(
    "self_consistency",
    family="sampling",
    title="Self-consistency",
    paper="arXiv:2203.11171",
    calls="σ(K) + λ (λ = 1 when a model selects); with stop: at most K samples, in batches",
    depth="1 + λ; with stop: the number of batches",
    worst=lambda p, sigma: worst_samples(p, sigma) + worst_selections(p, p.samples),
    reduce=elect,
    worst_reduce=worst_selections,
)
async def self_consistency(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample K paths, return the first of those that agree most."""
    samples = await sample_until(llm, "sc.sample", task.messages, p, temperature=p.temperature)
    return samples.told(await elect(task, llm, p, samples.replies))
