"""A population of solutions: who wrote each, what its checks said, which are the best. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from optillm.core.answers import group_by_answer
from optillm.core.reply import Reply

Word = Literal["correct", "incorrect", "incomplete"]


@dataclass(frozen=True)
class Verdict:
    """What one check said.

    Args:
        verifier: the agent that checked.
        word: its verdict; None if it could not be had or read.
        said: all it said: issues and suggestions.
    """

    verifier: int
    word: Word | None
    said: str


@dataclass(frozen=True)
class Solution:
    """One solution with its author and the checks of this very text.

    Args:
        name: tells it apart in the trace: where it was made, and its number there.
        author: the number of the agent that wrote it.
        reply: what it wrote.
        answer: what it stands for in a vote, or None.
        stage: how often solutions had been made anew when it was made; later ones are the more refined.
        verdicts: in the order of the checks.
    """

    name: str
    author: int
    reply: Reply
    answer: str | None
    stage: int = 0
    verdicts: tuple[Verdict, ...] = ()

    def checked(self, verdicts: Sequence[Verdict]) -> Solution:
        """The same solution with further checks."""
        return replace(self, verdicts=(*self.verdicts, *verdicts))

    @property
    def run(self) -> int:
        """How many of the last checks in a row found it correct; those without a verdict say nothing."""
        count = 0
        for verdict in reversed([v for v in self.verdicts if v.word]):
            if verdict.word != "correct":
                break
            count += 1
        return count

    def verified(self, passes: int) -> bool:
        """Whether so many checks in a row found it correct."""
        return self.run >= passes

    @property
    def confidence(self) -> float:
        """The share of its checks that found it correct, 0 to 1; 0 without any."""
        words = [v.word for v in self.verdicts if v.word]
        return words.count("correct") / len(words) if words else 0.0

    @property
    def objections(self) -> list[Verdict]:
        """The checks that found something wrong or missing."""
        return [v for v in self.verdicts if v.word in ("incorrect", "incomplete")]

    @property
    def told(self) -> dict[str, Any]:
        """For the trace."""
        checks = [{"by": v.verifier, "verdict": v.word} for v in self.verdicts]
        return {"name": self.name, "author": self.author, "answer": self.answer, "checks": checks}


def fit(old: Reply, new: Reply) -> bool:
    """Whether a reply may take another's place: it says something, and is no more cut off than that."""
    return new.usable and (old.truncated or not new.truncated)


def support(solutions: Sequence[Solution]) -> list[int]:
    """For each solution, how many have its answer; 0 without an answer."""
    out = [0] * len(solutions)
    for group in group_by_answer([s.answer for s in solutions]):
        for i in group:
            out[i] = len(group)
    return out


def ranked(solutions: Sequence[Solution]) -> list[Solution]:
    """Best first: complete, most confirmed, most agreed with, most refined, earliest."""
    agreed = support(solutions)

    def rank(i: int) -> tuple[bool, float, int, int, int]:
        s = solutions[i]
        return s.reply.truncated, -s.confidence, -agreed[i], -s.stage, i

    return [solutions[i] for i in sorted(range(len(solutions)), key=rank)]


def groups(solutions: Sequence[Solution], count: int, size: int, rng: random.Random) -> list[list[Solution]]:
    """What is aggregated in one loop: the best, then of different authors, then at random.

    While nothing is verified the best are the first, of different authors: then the second group is of the
    others, if there are any.

    Args:
        solutions: one or more.
        count: how many groups, 1 to 3.
        size: solutions per group; fewer if there are not so many.
        rng: draws the random group.
    """
    best = ranked(solutions)
    size = min(size, len(best))
    first, second = best[:size], diverse(best)[:size]
    if {s.name for s in first} == {s.name for s in second}:
        second = diverse([*best[size:], *first])[:size]
    out = [first, second]
    if count > 2:
        out.append(rng.sample(best, size))
    return out[:count]


def diverse(best: Sequence[Solution]) -> list[Solution]:
    """Each author's best, then each one's second, and so on."""
    seen: dict[int, int] = {}
    order: list[tuple[int, int]] = []
    for i, solution in enumerate(best):
        seen[solution.author] = seen.get(solution.author, -1) + 1
        order.append((seen[solution.author], i))
    return [best[i] for _, i in sorted(order)]


def succession(
    old: Sequence[Solution], new: Sequence[Solution], size: int, replaced: Sequence[Solution] = ()
) -> list[Solution]:
    """The population with new members: they take the place of what they replace, then of the worst.

    Args:
        old, new: members; the new ones all stay.
        size: of the population, at least the number of the new.
        replaced: old members that leave in any case.
    """
    leaving = {s.name for s in replaced}
    staying = {s.name for s in [s for s in ranked(old) if s.name not in leaving][: size - len(new)]}
    return [*(s for s in old if s.name in staying), *new]


def latest_of(solutions: Sequence[Solution], author: int) -> Solution | None:
    """The author's best solution, or None if it has none."""
    return next((s for s in ranked(solutions) if s.author == author), None)


def agreeing(solutions: Sequence[Solution]) -> list[list[Solution]]:
    """Solutions with the same answer, the strongest group first.

    Strong is what has many members, then what its checks confirm, then what comes first.
    """
    found = [[solutions[i] for i in g] for g in group_by_answer([s.answer for s in solutions])]
    return sorted(found, key=lambda g: (-len(g), -sum(s.confidence for s in g)))


def consensus(solutions: Sequence[Solution], passes: int, threshold: int) -> bool:
    """Whether so many verified solutions have one answer.

    Those without a short answer cannot be seen to differ: they count together.
    """
    verified = [s for s in solutions if s.verified(passes)]
    silent = sum(s.answer is None for s in verified)
    sizes = [len(g) for g in agreeing(verified)]
    return max([silent, *sizes]) >= threshold


def choose(solutions: Sequence[Solution], passes: int) -> tuple[Solution | None, str]:
    """The solution that wins without another call, and why: verified, or by vote; or None.

    The vote is settled by two equal answers; of those the most confirmed solution wins.
    """
    verified = [s for s in solutions if s.verified(passes)]
    if verified:
        names = {s.name for s in verified}
        return next(s for s in ranked(solutions) if s.name in names), "verified"
    strongest = next(iter(agreeing([s for s in solutions if not s.reply.truncated])), [])
    if len(strongest) > 1:
        return ranked(strongest)[0], "vote"
    return None, "none"


def best_of(solutions: Sequence[Solution], passes: int) -> Solution:
    """The answer if the run had to end now; one or more solutions."""
    return choose(solutions, passes)[0] or ranked(solutions)[0]
