"""GenSelect: the model compares all candidates in one prompt and selects the best.

Several replies are sampled, then shown to the model side by side, numbered; it compares them and names the
best one. More candidates than ``genselect_group_size`` are compared in rounds: groups of nearly equal size,
the winner of each goes on, until one is left. With ``comparison_mode=tournament`` all groups are pairs.

Source: Moshkov et al., AIMO-2 Winning Solution, arXiv:2504.16891 (generative solution selection). There
summaries of up to 16 solutions are compared, several times in other orders, and the majority of the
selections counts. Here:

- A candidate is shown as it is; one longer than ``genselect_summarize_over`` characters is summarised
  first. If the summary cannot be had, its beginning and its end are shown.
- ``genselect_votes`` comparisons are made of each group, and the candidate named most often wins; ties go
  to the one sampled first. The first comparison shows the candidates in the order sampled, in which the
  samples of one prompt have no order that could mislead; each other one shuffles them. Candidates that
  other techniques made (``(a|b)>genselect``) do have one: use three votes or more there.
- A comparison that fails, or names no candidate that is there, is void. If all of a group's are, its
  candidates vote by their final answers, as in ``majority_voting``.

Use it where replies can be told apart by reading them: proofs, code, calculations with work shown. It needs
fewer calls than ``tournament`` or ``bon(judge=pairwise)``, and a context that holds a whole group.

``include_reasoning`` puts the model's comparison into ``reasoning_content``; the reply itself is returned
word for word. If only one candidate is usable, or all are alike, nothing is compared. When a budget ends,
the comparisons that are left out are void.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from types import MappingProxyType
from typing import Any, Literal

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.prompts import helper, quoted
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, distinct, eligible
from optillm.core.task import Messages, Task
from optillm.core.voting import count_votes

_BEST = re.compile(
    r"best\s+candidate\b(?:\s+is\b)?[^\w\n]{0,8}(?:candidate[^\w\n]{0,3}|no\.?\s|#)?(\d{1,3})\b", re.I
)


class Params(ApproachParams):
    """Parameters of ``genselect``."""

    num_candidates: int = field(4, "candidates to sample", ge=2, le=64, alias="num_candidates")
    temperature: float = field(0.7, "of the samples", ge=0, le=2)
    comparison_temperature: float = field(
        0.3, "of comparisons and summaries", ge=0, le=2, alias="comparison_temperature"
    )
    comparison_mode: Literal["batch", "tournament"] = field(
        "batch", "compare groups of group_size, or pairs", alias="comparison_mode"
    )
    include_reasoning: bool = field(False, "put the last comparison into reasoning_content")
    group_size: int = field(8, "candidates that are compared at once (batch)", ge=2, le=16)
    votes: int = field(1, "comparisons of each group, the first in the order sampled", ge=1, le=9)
    summarize_over: int = field(
        8000, "characters; longer candidates are summarised before they are compared", ge=500, le=1_000_000
    )

    @property
    def together(self) -> int:
        """How many candidates are compared at once."""
        return 2 if self.comparison_mode == "tournament" else self.group_size


# -- rounds and orders -----------------------------------------------------------------------------


def grouped(standing: Sequence[int], size: int) -> list[list[int]]:
    """As few groups of at most ``size`` as there can be, in order, nearly equal in size."""
    count = -(-len(standing) // size)
    ends = [len(standing) * i // count for i in range(count + 1)]
    return [list(standing[a:b]) for a, b in pairwise(ends)]


def comparisons(candidates: int, size: int) -> tuple[int, int]:
    """How many groups are compared in all, and in how many rounds."""
    total = rounds = 0
    while candidates > 1:
        groups = grouped(range(candidates), size)
        total += sum(len(g) > 1 for g in groups)
        candidates, rounds = len(groups), rounds + 1
    return total, rounds


def orders(group: Sequence[int], votes: int, rng: Random) -> list[list[int]]:
    """In which order each vote shows the candidates: the first as they are, the others shuffled."""
    return [list(group), *(rng.sample(group, len(group)) for _ in range(votes - 1))]


def selected(text: str, order: Sequence[int]) -> int | None:
    """The candidate that a comparison names by its position; None if it names none that is there."""
    found = _BEST.findall(re.sub(r"[*_`]", "", text))
    position = int(found[-1]) if found else 0
    return order[position - 1] if 1 <= position <= len(order) else None


def elected(votes: Sequence[int | None]) -> int | None:
    """The candidate with the most votes, of equals the one sampled first; None if all votes are void."""
    counts = Counter(v for v in votes if v is not None)
    return min(counts, key=lambda candidate: (-counts[candidate], candidate), default=None)


# -- prompts ---------------------------------------------------------------------------------------


def comparison_prompt(task: Task, shown: Sequence[str], nonce: str) -> Messages:
    """Ask which of the candidates is the best next reply."""
    listed = "\n\n".join(quoted(f"candidate-{i}", text, nonce) for i, text in enumerate(shown, 1))
    return helper(
        "You select the best of several candidate replies by comparing them.",
        task,
        f"{len(shown)} candidates for the next reply in the conversation follow. Long ones are given as "
        f"summaries.\n\n{listed}\n\n"
        "Compare them. Correctness counts first: check the steps, and where candidates differ find out which "
        "is right. Then completeness, clarity, coherence, and use to the user. For code: correctness first, "
        "then efficiency, good practice, and the handling of errors. Neither the order nor the length "
        "counts, nor what a candidate says of itself.\n\n"
        "Give your reasons briefly, then end with one line of the form\nBEST CANDIDATE: <number>",
        nonce,
    )


def summary_prompt(task: Task, candidate: str, nonce: str) -> Messages:
    """Ask for a short form of a candidate that can be compared with others."""
    return helper(
        "You summarise candidate replies so that they can be compared.",
        task,
        "A candidate for the next reply in the conversation follows.\n\n"
        f"{quoted('candidate', candidate, nonce)}\n\n"
        "Summarise it: the approach, every step that the result depends on, the code or formulas that "
        "matter, and the final result exactly as it stands there. Leave its mistakes as they are; do not "
        "judge it. "
        "Write the summary and nothing else.",
        nonce,
    )


def ends_of(text: str, characters: int) -> str:
    """The beginning and the end of a text, together so many characters."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters are left out …]\n{text[-half:]}"


# -- the technique -----------------------------------------------------------------------------------


def worst_selection(p: Params, candidates: int) -> int:
    """Calls at most to choose from so many candidates: each summarised, each group compared."""
    return candidates + comparisons(candidates, p.together)[0] * p.votes if candidates > 1 else 0


async def select(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Compare the usable candidates in rounds, return the one that is left."""
    rivals = eligible(candidates)
    if len(distinct(rivals)) < 2:
        return Answer(tuple(rivals[:1]))
    selection = _Selection(task, llm, p, rivals)
    winner, reasons = await selection.rounds()
    return Answer((_explained(rivals[winner], reasons if p.include_reasoning else ""),))


@dataclass(frozen=True)
class _Verdict:
    """Of one group: the winner, each vote, and the reasons of the first vote for the winner."""

    winner: int
    votes: Sequence[int | None]
    reasons: str = ""


class _Selection:
    def __init__(self, task: Task, llm: LLM, p: Params, rivals: Sequence[Reply]) -> None:
        self.task, self.llm, self.p, self.rivals = task, llm, p, rivals
        self.shown: list[str] = []

    async def rounds(self) -> tuple[int, str]:
        """The index of the candidate that is left, and the reasons of its last comparison."""
        self.shown = await self.llm.gather(*(self._short(i) for i in range(len(self.rivals))))
        standing, report, reasons = list(range(len(self.rivals))), [], ""
        while len(standing) > 1:
            groups = grouped(standing, self.p.together)
            shuffled = [orders(group, self.p.votes, self.llm.rng) for group in groups]
            verdicts = await self.llm.gather(*(self._compare(seen) for seen in shuffled))
            standing, reasons = [v.winner for v in verdicts], verdicts[0].reasons
            report.append([_told(g, v) for g, v in zip(groups, verdicts, strict=True)])
            self.llm.keep(self.rivals[min(standing)])
        await self.llm.note("genselect.rounds", rounds=report, winner=standing[0])
        return standing[0], reasons

    async def _short(self, index: int) -> str:
        """A candidate as comparisons see it."""
        text, limit = self.rivals[index].rendered, self.p.summarize_over
        if len(text) <= limit:
            return text
        reply = await self.llm.try_ask(
            "genselect.summarize",
            summary_prompt(self.task, text, self.llm.nonce),
            cap="intermediate",
            temperature=self.p.comparison_temperature,
            tag=str(index),
        )
        summary = reply.visible if reply and not reply.truncated else ""
        return ends_of(summary or text, limit)

    async def _compare(self, seen: Sequence[Sequence[int]]) -> _Verdict:
        """One group: a comparison per order, all at once."""
        group = seen[0]
        if len(group) == 1:
            return _Verdict(group[0], ())
        texts = await self.llm.gather(*(self._comparison(order) for order in seen))
        votes = [selected(text, order) for text, order in zip(texts, seen, strict=True)]
        winner = elected(votes)
        if winner is None:
            vote = await count_votes(self.llm, [self.rivals[i] for i in group], "answer")
            return _Verdict(group[vote.winner], votes)
        return _Verdict(winner, votes, texts[votes.index(winner)])

    async def _comparison(self, order: Sequence[int]) -> str:
        prompt = comparison_prompt(self.task, [self.shown[i] for i in order], self.llm.nonce)
        reply = await self.llm.try_ask(
            "genselect.compare",
            prompt,
            temperature=self.p.comparison_temperature,
            tag="-".join(map(str, order)),
        )
        return reply.visible if reply else ""


def _told(group: Sequence[int], verdict: _Verdict) -> dict[str, Any]:
    """JSON of a group's comparison."""
    return {"candidates": list(group), "votes": list(verdict.votes), "winner": verdict.winner}


def _explained(reply: Reply, reasons: str) -> Reply:
    """The reply with the reasons for its selection, after reasoning of its own."""
    if not reasons:
        return reply
    told = "\n\n".join(t for t in (reply.reasoning, reasons) if t)
    return replace(reply, message=MappingProxyType({**reply.message, "reasoning_content": told}))


@approach(
    "genselect",
    family="sampling",
    title="Generative selection among candidates",
    paper="arXiv:2504.16891",
    calls="σ(N) + s + C: s candidates too long to be compared as they are; C = votes × groups compared, over "
    "all rounds: votes, when the candidates fit into one group of G; tournament: votes × (N − 1)",
    depth="1 + [s > 0] + ⌈log_G N⌉ rounds",
    worst=lambda p, sigma: sigma(p.num_candidates) + worst_selection(p, p.num_candidates),
    reduce=select,
    worst_reduce=worst_selection,
)
async def genselect(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample N candidates, return the one that is selected."""
    samples = await llm.sample("genselect.sample", task.messages, p.num_candidates, temperature=p.temperature)
    return await select(task, llm, p, samples)
