"""No technique: the request goes to the upstream and its answer comes back, untouched.

The body of the answer is the upstream's own, byte for byte, with an ``optillm`` member added at its
end; a stream hands on each of the upstream's events as it arrives. ``n`` and every unknown field are
the upstream's business. What no client chose a technique for runs as ``none``.
"""

from __future__ import annotations

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams
from optillm.core.registry import approach
from optillm.core.reply import Answer
from optillm.core.task import Task


class Params(ApproachParams):
    """``none`` has no parameters."""


@approach(
    "none",
    family="prompting",
    title="Pass-through: one call, untouched",
    calls="1",
    depth="1",
    worst=lambda p, sigma: 1,
    handles_n=True,
)
async def none(task: Task, llm: LLM, p: Params) -> Answer:
    """Forward the request; ``n`` is the upstream's business."""
    return await llm.forward(task)
