"""Adaptive consistency: self-consistency that stops sampling as soon as the majority is settled.

The paper (arXiv:2305.11860) draws reasoning paths one at a time and, after each, asks how sure it is that
the most frequent answer so far is the most frequent one in truth. It stops above a threshold (0.95) or at
40 paths, and returns the majority's answer: the same as ``self_consistency`` in nearly all cases, with a
fraction of the samples. Rules:

- ``beta``, the paper's own choice: P(p1 > p2) of the two most frequent answers, with p from
  Beta(v1 + 1, v2 + 1); four paths that agree are enough.
- ``dirichlet``: the same against all other answers at once, with p from a Dirichlet distribution.
- ``window``: early-stopping self-consistency (arXiv:2401.10480): windows of w paths (5), until all answers
  of a window are the same; then the vote is over all paths so far.

Different from the paper: paths are drawn in batches, each as large as the votes still missing to settle
the matter if all went to the leader. No path is drawn that one at a time would not have drawn, and there
are far fewer rounds to wait for. The probabilities are computed exactly, not by random numbers. Paths
without a readable answer, and truncated ones, have no vote; a question whose answers cannot be compared
therefore takes all samples, and is then decided by likeness as in ``self_consistency``.

Use it instead of ``self_consistency`` when the number of samples is large. A failure after the first batch
ends the sampling with a vote over what is there. The response says how many samples were saved
(``samples_saved``).
"""

from __future__ import annotations

from typing import Literal

from optillm.core.llm import LLM
from optillm.core.params import field
from optillm.core.registry import approach
from optillm.core.reply import Answer
from optillm.core.stopping import StopParams
from optillm.core.task import Task
from optillm.core.voting import majority, sample_until, worst_samples


class Params(StopParams):
    """Parameters of ``adaptive_consistency``."""

    stop: Literal["beta", "dirichlet", "window"] = field(
        "beta", "settled against the second answer, against all others, or by a unanimous window"
    )
    samples: int = field(40, "reasoning paths at most", ge=1, le=64)
    temperature: float = field(0.7, "of the samples", ge=0, le=2)


@approach(
    "adaptive_consistency",
    family="sampling",
    title="Adaptive consistency",
    paper="arXiv:2305.11860, arXiv:2401.10480",
    calls="σ of each batch, together at most K samples; 4 samples when they agree (beta, dirichlet)",
    depth="the number of batches",
    worst=lambda p, sigma: worst_samples(p, sigma),
)
async def adaptive_consistency(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample until the majority is settled, return the first path of it."""
    samples = await sample_until(llm, "adaptive.sample", task.messages, p, temperature=p.temperature)
    return samples.told(await majority(llm, "adaptive.votes", samples.replies))
