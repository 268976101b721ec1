"""DeepThink: a self-discovered reasoning structure, several solutions along it, and their agreement.

First the model discovers a structure for the task as in ``self_discover``: it SELECTs ways to reason, ADAPTs
them to the task and IMPLEMENTs them as a JSON plan. Then several solutions that follow the structure are
sampled at once. The share of the largest group of equal final answers is the confidence. If it reaches the
threshold, the first solution of that group is returned; if not, the samples are not trusted, and one more
solution is made greedily, at temperature 0.

Sources: Zhou et al., Self-Discover, arXiv:2402.03620, section 2; Gemini Team, arXiv:2312.11805
(uncertainty-routed chain of thought: the majority's answer above a threshold, else the greedy one). Gemini
samples 8 or 32 times and tunes the threshold on validation data; a request has none, so here it is a
parameter. Gemini's greedy answer is one without chain of thought; here it follows the structure too, which
is what the structure is for.

Only final answers count for the agreement; a sample without one agrees with none. Of groups equally large the
one whose solutions share most words with the others comes first. Truncated solutions count only when no
complete one is there. Use it for problems that need several kinds of thinking and have a short answer. With
free text there is nothing to compare, and the greedy solution is the answer.

Without a structure, because no module was selected or no JSON was written, the task is solved as it is, and
the response says why (``deepthink_unstructured``); how far the samples agreed is ``deepthink_confidence``. If
the greedy call fails, or its reply is empty or cut off while the majority's is complete, the majority's is
returned. The stages of discovery leave one call of the budget for the solutions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from optillm.approaches.prompting.discovering import Discovered, discover, following
from optillm.approaches.prompting.separated import free_text, shown
from optillm.core.answers import final_answer, group_by_answer, similarity
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, eligible
from optillm.core.task import Messages, Task

DISCOVERY_TEMPERATURE = 0.3


class Params(ApproachParams):
    """Parameters of ``deepthink``."""

    samples: int = field(3, "solutions to sample", ge=1, le=10)
    confidence_threshold: float = field(
        0.7,
        "share of the samples that must agree, else a greedy solution is made",
        ge=0,
        le=1,
        alias="confidence_threshold",
    )
    temperature: float = field(0.7, "of the samples", ge=0, le=2)
    top_p: float = field(0.95, "of the solutions, unless the client gives its own", ge=0, le=1)
    enable_self_discover: bool = field(
        True, "discover a reasoning structure first", alias="enable_self_discover"
    )
    reasoning_modules_limit: int = field(
        7, "most reasoning modules to select", ge=3, le=15, alias="reasoning_modules_limit"
    )
    max_tokens: int = field(
        16382, "tokens of a solution at most, unless the client gives its own limit", ge=1, le=1_000_000
    )


@dataclass(frozen=True)
class Agreement:
    """How far solutions agree.

    Args:
        confidence: the share of the largest group of equal answers, 0 to 1.
        leader: the index of the first solution of that group; 0 if none has an answer.
        groups: solutions that agree, by index.
        answers: what each solution's short answer is, if it has one.
    """

    confidence: float
    leader: int
    groups: Sequence[Sequence[int]]
    answers: Sequence[str | None]


def agreement(answers: Sequence[str], solutions: Sequence[str]) -> Agreement:
    """Compare solutions by their final answers; of groups equally large the best supported one leads.

    Args:
        answers: the texts whose final answers are compared; one or more.
        solutions: the same with all their reasoning, for the support of a group: the mean likeness of its
            members to all other solutions.
    """
    found = [final_answer(text) for text in answers]
    groups = group_by_answer(found)
    most = max(map(len, groups), default=0)
    tied = [group for group in groups if len(group) == most]
    if len(tied) > 1:
        tied = [max(tied, key=lambda group: (_support(group, solutions), -group[0]))]
    return Agreement(most / len(answers), tied[0][0] if tied else 0, groups, found)


def _support(group: Sequence[int], solutions: Sequence[str]) -> float:
    pairs = [(i, j) for i in group for j in range(len(solutions)) if i != j]
    return sum(similarity(solutions[i], solutions[j]) for i, j in pairs) / len(pairs)


@approach(
    "deepthink",
    family="prompting",
    title="Self-discovered structure and uncertainty-routed sampling",
    paper="arXiv:2402.03620, arXiv:2312.11805",
    calls="3 + σ(N) + [confidence below the threshold]; 3 less without self-discovery",
    depth="4 + [confidence below the threshold]; 3 less without self-discovery",
    worst=lambda p, sigma: 3 * p.enable_self_discover + sigma(p.samples) + 1,
)
async def deepthink(task: Task, llm: LLM, p: Params) -> Answer:
    """Discover a structure, sample solutions along it, route by their agreement."""
    found = Discovered()
    if p.enable_self_discover:
        most = p.reasoning_modules_limit
        found = await discover(task, llm, "deepthink", most=most, temperature=DISCOVERY_TEMPERATURE)
    solver = _Solver(task, llm, p, found.structure)
    whole = await solver.solve("deepthink.sample", p.samples, p.temperature)
    seen = [solver.seen(r) for r in whole]
    candidates = eligible(seen)
    if not candidates:
        return Answer(())
    reasoning = [w.text for w, s in zip(whole, seen, strict=True) if s in candidates]
    # Comparing texts is quadratic in their length: not on the event loop.
    agreed = await asyncio.to_thread(agreement, [r.text for r in candidates], reasoning)
    best = candidates[agreed.leader]
    llm.keep(best)
    confident = agreed.confidence >= p.confidence_threshold
    await llm.note(
        "deepthink.agreement",
        answers=agreed.answers,
        groups=agreed.groups,
        confidence=agreed.confidence,
        leader=agreed.leader,
        greedy=not confident,
    )
    if not confident:
        best = await solver.greedy(best)
    return Answer((best,), _note(agreed, found, p))


class _Solver:
    """Solves the task along the structure, or as it is if there is none."""

    def __init__(self, task: Task, llm: LLM, p: Params, structure: str | None) -> None:
        self.llm, self.p = llm, p
        self.messages: Messages = (
            following(task, structure, llm.nonce).messages if structure else task.messages
        )
        self.separated = structure is not None and free_text(task)

    async def solve(self, stage: str, k: int, temperature: float) -> list[Reply]:
        defaults = {"top_p": self.p.top_p, "max_tokens": self.p.max_tokens}
        return await self.llm.sample(stage, self.messages, k, temperature=temperature, defaults=defaults)

    def seen(self, reply: Reply) -> Reply:
        """The reply as its client sees it, without the filled-in structure."""
        return shown(reply, False) if self.separated else reply

    async def greedy(self, best: Reply) -> Reply:
        """One solution at temperature 0, if it is no worse than what is there."""
        made = await self.llm.attempt(self.solve("deepthink.greedy", 1, 0.0)) or []
        usable = eligible([*map(self.seen, made), best])
        return usable[0] if usable else best


def _note(agreed: Agreement, found: Discovered, p: Params) -> MappingProxyType[str, Any]:
    note: dict[str, Any] = {"deepthink_confidence": round(agreed.confidence, 4)}
    if p.enable_self_discover and found.structure is None:
        note["deepthink_unstructured"] = "no JSON was written" if found.modules else "no module was selected"
    return MappingProxyType(note)
