"""Ranked-voting consistency: every sample ranks several possible answers, and the rankings are counted.

Self-consistency lets each reasoning path vote for one answer; what a path thought second best is lost. In
the paper (arXiv:2505.10772) each path ends with a ranking of its possible answers, and an election picks
the winner:

- ``irv``, instant-runoff voting: while no answer is first on more than half of the ballots, the one that is
  first on the fewest goes out, and its ballots pass on to their next answer;
- ``borda``: an answer gets as many points as it leaves places behind it, and one more;
- ``mrr``, mean reciprocal rank: an answer gets 1, 1/2, 1/3… by its rank.

Different from the paper: the ranked-list format is asked for in the prompt, without examples of worked
questions. Ballots may be of different lengths, so Borda points count from the longest. Ballots pass on in
the runoff as its definition has it (in the authors' code they are lost). Ties go to the answer with more
Borda points, then to the one that was named first.

What is returned is the first sample that ranks the winner first, without its ranking and with the winner
as its last line; the line alone, if no sample ranks the winner first. When fewer than half of the usable
samples have a readable ranking (free text, a tool call, a format of the client's own), the samples vote as
in ``self_consistency`` and the winner is returned word for word.

With ``stop`` sampling ends once the majority of the first choices is settled. Use it where the right
answer is often the model's second: multiple choice, short answers to open questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from optillm.core.answers import group_by_answer, strip_think
from optillm.core.llm import LLM
from optillm.core.params import field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, eligible
from optillm.core.stopping import StopParams
from optillm.core.task import Task
from optillm.core.voting import majority, sample_until, worst_samples

_HEADING = re.compile(r"^[^\w\n]{0,8}ranking\b[^\w\n]{0,8}$", re.I | re.M)
_ITEM = re.compile(r"[ \t*_]{0,8}\d{1,2}[.):][ \t*_]{0,8}(?P<answer>\S[^\n]{0,500})")

Ballot = Sequence[int]
"""Candidates by number, best first, each once."""


class Params(StopParams):
    """Parameters of ``ranked_vote``."""

    samples: int = field(5, "rankings to sample", ge=1, le=64)
    method: Literal["irv", "borda", "mrr"] = field(
        "irv", "how they are counted: instant runoff, Borda count or mean reciprocal rank"
    )
    answers: int = field(4, "answers that a ranking may have", ge=2, le=10)
    temperature: float = field(0.7, "of the samples", ge=0, le=2)


def ranking_task(task: Task, answers: int) -> Task:
    """The task with the ranked-list format asked for."""
    return task.asking(
        "Reason step by step and consider which answers are possible. Then rank them, the most likely "
        f"first: each a short final answer, one to {answers} of them (of given options name the option). "
        "End with the ranking in exactly this form:\n"
        "Ranking:\n1. <most likely answer>\n2. <next answer>"
    )


def read_ranking(text: str) -> tuple[str, list[str]]:
    """What stands before the last ranking in a text, and the ranked answers."""
    text = strip_think(text)
    headings = list(_HEADING.finditer(text))
    if not headings:
        return text, []
    ranked: list[str] = []
    for line in text[headings[-1].end() :].strip().splitlines():
        item = _ITEM.fullmatch(line.rstrip())
        if item is None:
            break
        ranked.append(item["answer"].strip("*_ "))
    return text[: headings[-1].start()].rstrip(), ranked


def numbered_ballots(rankings: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The different answers in order of naming, and the rankings in terms of their numbers."""
    flat = [answer for ranking in rankings for answer in ranking]
    groups = group_by_answer(flat)
    number = {index: group for group, members in enumerate(groups) for index in members}
    ballots, at = list[list[int]](), 0
    for ranking in rankings:
        ballots.append(list(dict.fromkeys(number[at + i] for i in range(len(ranking)))))
        at += len(ranking)
    return [flat[members[0]] for members in groups], ballots


def borda(ballots: Sequence[Ballot], candidates: int) -> list[Fraction]:
    """Points by the places that a candidate leaves behind it, counted from the longest ballot."""
    places = max(len(b) for b in ballots)
    points = [Fraction(0)] * candidates
    for ballot in ballots:
        for rank, candidate in enumerate(ballot):
            points[candidate] += places - rank
    return points


def reciprocal_rank(ballots: Sequence[Ballot], candidates: int) -> list[Fraction]:
    """The mean of 1/rank over all ballots; 0 where a ballot does not name the candidate."""
    points = [Fraction(0)] * candidates
    for ballot in ballots:
        for rank, candidate in enumerate(ballot, 1):
            points[candidate] += Fraction(1, rank * len(ballots))
    return points


def runoff(ballots: Sequence[Ballot], candidates: int) -> list[dict[int, int]]:
    """Instant runoff: the first choices of each round; the winner leads the last one."""
    points = borda(ballots, candidates)
    standing = set(range(candidates))
    rounds: list[dict[int, int]] = []
    while True:
        firsts = [next((c for c in ballot if c in standing), None) for ballot in ballots]
        votes = {c: firsts.count(c) for c in sorted(standing)}
        rounds.append(votes)
        # A ballot whose candidates are all out does not count any more.
        if 2 * max(votes.values()) > sum(votes.values()) or len(standing) == 1:
            return rounds
        standing.remove(min(standing, key=lambda c: (votes[c], points[c], -c)))


def elected(method: str, ballots: Sequence[Ballot], candidates: int) -> tuple[int, list[object]]:
    """The winner, and for the trace each candidate's points or each round's first choices."""
    points = borda(ballots, candidates)
    if method == "irv":
        rounds = runoff(ballots, candidates)
        last = rounds[-1]
        winner = max(last, key=lambda c: (last[c], points[c], -c))
        return winner, [{str(c): n for c, n in votes.items()} for votes in rounds]
    scores = reciprocal_rank(ballots, candidates) if method == "mrr" else points
    winner = max(range(candidates), key=lambda c: (scores[c], points[c], -c))
    return winner, [float(s) for s in scores]


def first_choice(text: str) -> str | None:
    """The answer that a text ranks first."""
    return next(iter(read_ranking(text)[1]), None)


async def count(llm: LLM, p: Params, samples: Sequence[Reply]) -> Answer:
    """Count the rankings; without enough of them, vote over the samples."""
    voters = eligible(samples)
    read = [read_ranking(r.text) for r in voters]
    ranking = [i for i, (_, ranked) in enumerate(read) if ranked]
    if not ranking or 2 * len(ranking) < len(voters):
        return await majority(llm, "ranked.votes", voters)
    names, ballots = numbered_ballots([read[i][1][: p.answers] for i in ranking])
    winner, counted = elected(p.method, ballots, len(names))
    await llm.note("ranked.ballots", answers=names, ballots=ballots, counted=counted, winner=names[winner])
    first = next((i for i, b in zip(ranking, ballots, strict=True) if b[0] == winner), None)
    line = f"The answer is {names[winner]}"
    if first is None:
        return Answer((Reply.of(line),))
    reasons = read[first][0]
    return Answer((voters[first].with_text(f"{reasons}\n\n{line}" if reasons else line),))


@approach(
    "ranked_vote",
    family="sampling",
    title="Ranked-voting consistency",
    paper="arXiv:2505.10772",
    calls="σ(K); with stop: at most K samples, in batches",
    depth="1; with stop: the number of batches",
    worst=worst_samples,
)
async def ranked_vote(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample K rankings of possible answers, return the answer that they elect."""
    messages = ranking_task(task, p.answers).messages
    samples = await sample_until(
        llm, "ranked.sample", messages, p, temperature=p.temperature, answer=first_choice
    )
    return samples.told(await count(llm, p, samples.replies))
