"""What happens to strategies, as pure functions: choosing, counting, merging, pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from optillm.approaches.learning.similarity import Nearness
from optillm.core.state import Strategy

TYPES = (
    "arithmetic_calculation", "algebraic_equation", "statistical_analysis", "logical_reasoning",
    "word_problem", "coding_problem", "algorithm_design", "creative_writing", "text_summarization",
    "information_retrieval", "planning_task", "decision_making", "knowledge_question",
    "language_translation", "sequence_completion", "general_problem",
)  # fmt: skip
"""The types of problems."""
SIMILAR, MERGED = 0.7, 0.6
"""From here on a query is one of a strategy's kind; two strategies are one."""
GOOD, BAD = 0.4, 0.3
"""Success rates: from GOOD on a strategy is used; below BAD it is dropped, once it had its TRIAL."""
TRIAL = 5
"""Attempts before a strategy is judged."""
USED = 3
"""Strategies for one request."""
MOST = 10
"""Strategies of a type."""
EXAMPLES, REASONING = 10, 5
"""Queries, and reasoning, kept with a strategy: the latest."""


def texts(strategies: Sequence[Strategy]) -> list[str]:
    """All that a query may be similar to: their texts and examples."""
    return [text for s in strategies for text in (s.text, *s.examples)]


def similarity(query: str, strategy: Strategy, near: Nearness) -> float:
    """How near a query is to the nearest of a strategy's text and examples."""
    return near.best(query, (strategy.text, *strategy.examples))


def fit(strategy: Strategy, learning: bool) -> bool:
    """Whether a strategy may be used: it helps often enough.

    While learning, one that has not had its trial may be used as well: else none would ever be tried.
    """
    return strategy.success_rate >= GOOD or (learning and strategy.total_attempts < TRIAL)


def ranked(
    strategies: Sequence[Strategy], query: str, near: Nearness, *, learning: bool
) -> list[tuple[float, Strategy]]:
    """The strategies to use, best first, each with its score: the mean of similarity and confidence.

    Of equals, the more confident one is first, then the older one.
    """
    able = [s for s in strategies if fit(s, learning)]
    scored = [((similarity(query, s, near) + s.confidence) / 2, s) for s in able]
    scored.sort(key=lambda item: (-item[0], -item[1].confidence, item[1].created, item[1].id))
    return scored[:USED]


def most_similar(strategies: Sequence[Strategy], query: str, near: Nearness) -> Strategy | None:
    """The strategy whose kind of problem a query is; None if it is of none's."""
    nearest = max(strategies, key=lambda s: similarity(query, s, near), default=None)
    return nearest if nearest and similarity(query, nearest, near) >= SIMILAR else None


def exemplified(strategy: Strategy, query: str, now: float) -> Strategy:
    """With a query as its latest example; one that it has is not added again."""
    if not query or query in strategy.examples:
        return strategy
    examples = (*strategy.examples, query)[-EXAMPLES:]
    return replace(strategy, examples=examples, last_updated=now)


def adopted(
    strategies: Sequence[Strategy], new: Strategy, query: str, near: Nearness, now: float
) -> tuple[Strategy, ...]:
    """With a new strategy, unless somebody else has brought a similar one meanwhile: that gets the query."""
    there = most_similar(strategies, query, near)
    if there is None:
        return (*strategies, new)
    return tuple(exemplified(s, query, now) if s is there else s for s in strategies)


def attempted(strategy: Strategy, success: bool, reasoning: str, now: float) -> Strategy:
    """After it was used; the reasoning is kept if it helped."""
    kept = strategy.reasoning_examples
    if success and reasoning and reasoning not in kept:
        kept = (*kept, reasoning)[-REASONING:]
    return replace(
        strategy,
        success_count=strategy.success_count + success,
        total_attempts=strategy.total_attempts + 1,
        confidence=0.9 * strategy.confidence + 0.1 * success,
        last_used=now,
        last_updated=now,
        reasoning_examples=kept,
    )


def tidied(strategies: Sequence[Strategy], near: Nearness, now: float) -> tuple[Strategy, ...]:
    """One type's strategies, put in order: equal ones merged, bad ones dropped, then the worst over MOST.

    What is dropped for its success goes first, so that it does not take the place of an untried one.
    """
    return limited(pruned(merged(strategies, near, now)))


def merged(strategies: Sequence[Strategy], near: Nearness, now: float) -> tuple[Strategy, ...]:
    """Pairs that are alike made one, the most alike first, until there is none; in the order given."""
    pairs = [(near(a.text, b.text), a.id, b.id) for a, b in combinations(strategies, 2)]
    alike = sorted((p for p in pairs if p[0] >= MERGED), key=lambda p: -p[0])
    left = {s.id: s for s in strategies}
    for _, first, second in alike:
        if first in left and second in left:
            # The text of the better one stays, so that its similarity to the others stays what it was.
            better, other = sorted((left[first], left[second]), key=_worth, reverse=True)
            left[better.id] = _united(better, other, now)
            del left[other.id]
    return tuple(left.values())


def pruned(strategies: Sequence[Strategy]) -> tuple[Strategy, ...]:
    """Without those that had their trial and fail too often."""
    return tuple(s for s in strategies if s.total_attempts < TRIAL or s.success_rate >= BAD)


def limited(strategies: Sequence[Strategy]) -> tuple[Strategy, ...]:
    """At most MOST: the worst by success go, of equals the oldest."""
    over = max(0, len(strategies) - MOST)
    gone = sorted(strategies, key=lambda s: (s.success_rate, s.created, s.id))[:over]
    return tuple(s for s in strategies if s not in gone)


def _worth(strategy: Strategy) -> tuple[float, int, float, str]:
    return (strategy.success_rate, strategy.total_attempts, -strategy.created, strategy.id)


def _united(better: Strategy, other: Strategy, now: float) -> Strategy:
    """The better one's text with what was counted for both."""
    attempts = (better.total_attempts, other.total_attempts)
    # One that was never tried still has a confidence.
    weights = [n + 1 for n in attempts]
    confidence = (better.confidence * weights[0] + other.confidence * weights[1]) / sum(weights)
    return replace(
        better,
        examples=_both(other.examples, better.examples, EXAMPLES),
        success_count=better.success_count + other.success_count,
        total_attempts=sum(attempts),
        confidence=confidence,
        last_used=_latest(better.last_used, other.last_used),
        last_updated=now,
        reasoning_examples=_both(other.reasoning_examples, better.reasoning_examples, REASONING),
        tags=_both(better.tags, other.tags, None),
    )


def _both(first: Sequence[str], second: Sequence[str], most: int | None) -> tuple[str, ...]:
    together = tuple(dict.fromkeys((*first, *second)))
    return together if most is None else together[-most:]


def _latest(a: float | None, b: float | None) -> float | None:
    times = [t for t in (a, b) if t is not None]
    return max(times, default=None)
