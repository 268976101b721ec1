"""How ``cepo`` makes a call: with how much reasoning effort, and what if it fails or is cut off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from optillm.approaches.planning.cepo_presets import Params
from optillm.core.llm import LLM, degradable
from optillm.core.reply import Reply
from optillm.protocol.errors import BudgetExceeded, OptiError, UpstreamEmpty, UpstreamError

EFFORT = "reasoning_effort"
LEVELS = ("high", "medium")
DIRECT_LEVELS = ("high", "medium", "low")

Make = Callable[[Mapping[str, Any]], Awaitable[Reply]]
"""Makes a call with these further body fields."""


def efforts(p: Params, levels: Sequence[str]) -> tuple[str | None, ...]:
    """The reasoning efforts of a call, the first one first; None sends none."""
    if not p.use_reasoning:
        return (None,)
    return tuple(levels) if p.config.use_reasoning_fallback else (levels[0],)


def most_tries(p: Params, levels: Sequence[str] = LEVELS) -> int:
    """How often a call is made at most."""
    return len(efforts(p, levels)) + p.config.num_of_retries


async def insist(
    llm: LLM, p: Params, make: Make, *, levels: Sequence[str | None] = LEVELS, model: str | None = None
) -> Reply:
    """The reply of a call; if it comes to nothing, of the same call again.

    A call that fails (429, 5xx, time-out) or is empty is made again ``num_of_retries`` times. Then, or at
    once if it was cut off or answered 400, it is made with the next lower effort, as long as there is one
    and the model takes efforts.

    Returns:
        A usable reply; a truncated one only if there was none better.

    Raises:
        OptiError: none was usable: the last failure.
    """
    left, spare, cut = list(levels), p.config.num_of_retries, None
    while True:
        error: OptiError
        try:
            reply = await make({} if left[0] is None else {EFFORT: left[0]})
        except BudgetExceeded:
            if cut is not None:
                return cut
            raise
        except OptiError as failure:
            error, lower = failure, isinstance(failure, UpstreamError) and failure.upstream_status == 400
            if not (lower or degradable(failure)):
                raise
        else:
            if reply.usable and not reply.truncated:
                return reply
            cut = reply if reply.usable else cut
            error, lower = UpstreamEmpty("the upstream returned an empty reply"), reply.truncated
        if spare and not lower:
            spare -= 1
        elif len(left) > 1 and llm.accepts(EFFORT, model):
            left.pop(0)
        elif cut is not None:
            return cut
        else:
            raise error
