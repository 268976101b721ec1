"""Tournament: candidates meet in pairs, and the one that wins its matches is returned.

The paper (arXiv:2411.19477) shows that with nothing but a model that is right sometimes, and compares
better than by chance, the chance of a wrong final answer falls to zero as candidates and comparisons grow.
Two forms:

- ``knockout``: N candidates are paired at random, winners go on, until one is left. Of an odd number one
  has a bye.
- ``league``: each candidate meets some others drawn at random, and the one with the highest average win
  rate is returned. It forgives a comparison that goes wrong.

Each match is K comparisons (``judge_samples``), and each comparison is made in both orders, for models
favour a position: 2K calls. A comparison that follows the position is half a win for both.

Different from the paper: exact repetitions of a candidate enter once; a match drawn from both its sides is
played once, and counts for both. Ties, and matches without a readable verdict, go to the candidate sampled
first, so that a run can be repeated. When the budget ends in the middle, the first candidate still
standing (knockout), or the leader so far (league), is returned.

Use it where two answers are easier to compare than to rate: ``bon`` with better comparisons, fewer of them
than ``bon(judge=pairwise)``, which plays everyone against everyone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

from optillm.core.judges import ComparisonParams, compare
from optillm.core.llm import LLM
from optillm.core.params import field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply, distinct, eligible
from optillm.core.task import Task

Pair = tuple[int, int]


class Params(ComparisonParams):
    """Parameters of ``tournament``."""

    n: int = field(4, "candidates to sample", ge=2, le=64)
    mode: Literal["knockout", "league"] = field("knockout", "losers go out, or all meet some others")
    opponents: int = field(
        3, "whom each candidate meets in a league; all others if there are fewer", ge=1, le=63
    )
    temperature: float = field(1.0, "of the samples", ge=0, le=2)


def matches(p: Params, candidates: int) -> int:
    """Matches at most among so many candidates."""
    if p.mode == "knockout":
        return max(0, candidates - 1)
    return min(candidates * p.opponents, candidates * (candidates - 1) // 2)


def worst_matches(p: Params, candidates: int) -> int:
    """Calls at most to choose from so many candidates."""
    return matches(p, candidates) * 2 * p.times


def pairings(standing: Sequence[int]) -> tuple[list[Pair], list[int]]:
    """The matches of a knockout round, neighbours against each other, and who has a bye."""
    pairs = list(zip(standing[::2], standing[1::2], strict=False))
    return pairs, list(standing[2 * len(pairs) :])


def fixtures(players: int, opponents: int, rng: Random) -> list[Pair]:
    """The matches of a league: each player against so many others, each pair once."""
    pairs = set[Pair]()
    for player in range(players):
        others = [other for other in range(players) if other != player]
        for other in rng.sample(others, min(opponents, len(others))):
            pairs.add((min(player, other), max(player, other)))
    return sorted(pairs)


def win_rates(players: int, results: dict[Pair, float | None]) -> list[float | None]:
    """Each player's average result; None for one without a readable match."""
    points: list[list[float]] = [[] for _ in range(players)]
    for (a, b), result in results.items():
        if result is not None:
            points[a].append(result)
            points[b].append(1 - result)
    return [sum(own) / len(own) if own else None for own in points]


def winner_of(pair: Pair, result: float | None) -> int:
    """Who goes on: of a tie, or a match without a verdict, the one sampled first."""
    a, b = pair
    return min(pair) if result is None or result == 0.5 else a if result > 0.5 else b


async def champion(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Let the distinct usable candidates meet, return the winner."""
    rivals = distinct(eligible(candidates))
    if len(rivals) < 2:
        return Answer(tuple(rivals))
    play = _knockout if p.mode == "knockout" else _league
    return Answer((rivals[await play(task, llm, p, rivals)],))


async def _knockout(task: Task, llm: LLM, p: Params, rivals: Sequence[Reply]) -> int:
    standing = llm.rng.sample(range(len(rivals)), len(rivals))
    bracket = []
    while len(standing) > 1:
        pairs, byes = pairings(standing)
        results = await _play(task, llm, p, rivals, pairs)
        standing = [*(winner_of(pair, results[pair]) for pair in pairs), *byes]
        bracket.append({"matches": list(_report(results)), "byes": byes})
        llm.keep(rivals[min(standing)])
    await llm.note("tournament.bracket", rounds=bracket, winner=standing[0])
    return standing[0]


async def _league(task: Task, llm: LLM, p: Params, rivals: Sequence[Reply]) -> int:
    results = await _play(task, llm, p, rivals, fixtures(len(rivals), p.opponents, llm.rng))
    rates = win_rates(len(rivals), results)
    winner = max(range(len(rivals)), key=lambda i: (-1.0 if (r := rates[i]) is None else r, -i))
    await llm.note("tournament.league", matches=list(_report(results)), rates=rates, winner=winner)
    return winner


async def _play(
    task: Task, llm: LLM, p: Params, rivals: Sequence[Reply], pairs: Sequence[Pair]
) -> dict[Pair, float | None]:
    """All matches of a round at once: how much the first beat the second."""
    results = await llm.gather(
        *(
            compare(llm, task, rivals[a], rivals[b], p, stage="tournament.compare", tag=f"{a}-{b}")
            for a, b in pairs
        )
    )
    return dict(zip(pairs, results, strict=True))


def _report(results: dict[Pair, float | None]) -> Iterator[dict[str, object]]:
    """JSON of the matches."""
    for (a, b), result in results.items():
        yield {"a": a, "b": b, "result": result, "winner": winner_of((a, b), result)}


@approach(
    "tournament",
    family="sampling",
    title="Tournament of candidates",
    paper="arXiv:2411.19477",
    calls="σ(N) + 2K·M, K = judge_samples; M = U−1 matches (knockout) or at most U·opponents (league) of U "
    "distinct usable samples",
    depth="1 + ⌈log2 U⌉ (knockout) or 2 (league)",
    worst=lambda p, sigma: sigma(p.n) + worst_matches(p, p.n),
    reduce=champion,
    worst_reduce=worst_matches,
)
async def tournament(task: Task, llm: LLM, p: Params) -> Answer:
    """Sample N candidates, return the winner of their matches."""
    samples = await llm.sample("tournament.sample", task.messages, p.n, temperature=p.temperature)
    return await champion(task, llm, p, samples)
