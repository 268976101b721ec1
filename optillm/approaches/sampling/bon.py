"""Best of n: sample, judge each, return the best."""

from __future__ import annotations

from collections.abc import Sequence

from optillm.core.judges import JudgeParams, judge_calls, score
from optillm.core.llm import LLM
from optillm.core.params import field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, distinct, eligible
from optillm.core.task import Task


class Params(JudgeParams):
    """Parameters of ``bon``."""

    n: int = field(3, "candidates to sample", ge=1, le=64, alias="best_of_n", env="OPTILLM_BEST_OF_N")
    temperature: float = field(1.0, "of the samples", ge=0, le=2)


def worst_ratings(p: Params, candidates: int) -> int:
    """Calls at most to choose from so many candidates."""
    return judge_calls(p, candidates) if candidates > 1 else 0


async def best(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Rate the distinct usable candidates concurrently, return the highest."""
    rivals = distinct(eligible(candidates))
    if len(rivals) < 2:
        return Answer(tuple(rivals))
    scores = await score(llm, task, rivals, p, stage="bon.rate")
    # An unrated candidate stands below every rated one; ties go to the lowest index.
    winner = max(range(len(rivals)), key=lambda i: (-1.0 if (s := scores[i]) is None else s, -i))
    await llm.note("bon.scores", scores=scores, winner=winner)
    return Answer((rivals[winner],))


@approach(
    "bon",
    family="sampling",
    title="Best of n",
    paper="arXiv:2110.14168",
    calls="σ(N) + the judge's: U·judge_samples (U distinct usable samples; none if only one)",
    depth="2",
    worst=lambda p, sigma: sigma(p.n) + worst_ratings(p, p.n),
    reduce=best,
    worst_reduce=worst_ratings,
)
async def bon(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample N candidates, return the best."""
    samples = await llm.sample("bon.sample", task.messages, p.n, temperature=p.temperature)
    return await best(task, llm, p, samples)
