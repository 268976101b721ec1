"""Best of n: sample, judge each, return the best."""

from __future__ import annotations

from optillm.core.judges import JudgeParams, judge_calls, score
from optillm.core.llm import LLM
from optillm.core.params import field
from optillm.core.registry import approach
from optillm.core.reply import Answer, distinct, eligible
from optillm.core.task import Task


class Params(JudgeParams):
    """Parameters of ``bon``."""

    n: int = field(3, "candidates to sample", ge=1, le=64, alias="best_of_n", env="OPTILLM_BEST_OF_N")
    temperature: float = field(1.0, "of the samples", ge=0, le=2)


@approach(
    "bon",
    family="sampling",
    title="Best of n",
    paper="arXiv:2110.14168",
    calls="σ(N) + the judge's: U·judge_samples (U distinct usable samples; none if only one)",
    depth="2",
    worst=lambda p, sigma: sigma(p.n) + (judge_calls(p, p.n) if p.n > 1 else 0),
)
async def bon(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample N candidates, rate the distinct usable ones concurrently, return the highest."""
    samples = await llm.sample("bon.sample", task.messages, p.n, temperature=p.temperature)
    candidates = distinct(eligible(samples))
    if len(candidates) < 2:
        return Answer(tuple(candidates))
    scores = await score(llm, task, candidates, p, stage="bon.rate")
    # An unrated candidate stands below every rated one; ties go to the lowest index.
    winner = max(range(len(candidates)), key=lambda i: (-1.0 if (s := scores[i]) is None else s, -i))
    await llm.note("bon.scores", scores=scores, winner=winner)
    return Answer((candidates[winner],))
