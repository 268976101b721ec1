"""Stopping rules, against closed forms and against drawing one sample at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, product
from math import factorial, prod
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optillm.core.stopping import StopParams, batch, beta_confidence, dirichlet_confidence, worst_batches

Rule = Literal["beta", "dirichlet", "window"]


def exact(counts: Sequence[int]) -> Fraction:
    """P(the first is the largest) under Dirichlet(counts + 1), by inclusion and exclusion.

    Of independent Poisson streams, the chance that the first one's a-th event comes before the others'
    b-th events is a finite multinomial sum.
    """
    first, *others = (c + 1 for c in counts)
    total = Fraction(0)
    for size in range(len(others) + 1):
        for rivals in combinations(others, size):
            for events in product(*(range(b) for b in rivals)):
                number = first - 1 + sum(events)
                ways = factorial(number) // (factorial(first - 1) * prod(map(factorial, events)))
                total += (-1) ** size * Fraction(ways, (size + 1) ** (number + 1))
    return total


def beta_integral(first: int, second: int) -> Fraction:
    """P(p > 1/2) under Beta, by integrating the polynomial term by term."""

    def integral(low: Fraction) -> Fraction:
        terms = (
            Fraction((-1) ** k * factorial(second), factorial(k) * factorial(second - k))
            * (1 - low ** (first + k + 1))
            / (first + k + 1)
            for k in range(second + 1)
        )
        return sum(terms, Fraction(0))

    return integral(Fraction(1, 2)) / integral(Fraction(0))


@given(st.integers(0, 40), st.integers(0, 40))
def test_beta_is_the_integral_of_its_density(first: int, second: int) -> None:
    assert beta_confidence(first, second) == pytest.approx(float(beta_integral(first, second)), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_dirichlet_is_the_closed_form(counts: list[int]) -> None:
    counts.sort(reverse=True)
    assert dirichlet_confidence(counts) == pytest.approx(float(exact(counts)), abs=1e-8)


@pytest.mark.parametrize("counts", [(64,), (63, 1), (32, 32), (30, 20, 10), (1,) * 40, (24, *(1,) * 40)])
def test_dirichlet_is_a_probability_for_any_counts(counts: tuple[int, ...]) -> None:
    confidence = dirichlet_confidence(counts)
    assert 1 / len(counts) - 1e-8 <= confidence <= 1
    if len(counts) == 2:
        assert confidence == pytest.approx(beta_confidence(*counts), abs=1e-9)
    if len(set(counts)) == 1 < len(counts):
        assert confidence == pytest.approx(1 / len(counts), abs=1e-8)


def test_dirichlet_is_stricter_than_beta() -> None:
    assert (
        dirichlet_confidence([6, 2, 2, 2])
        < dirichlet_confidence([6, 2])
        == pytest.approx(beta_confidence(6, 2), abs=1e-9)
    )


def rule(**values: Any) -> StopParams:
    """Parameters with the other values at their defaults."""
    return StopParams(**values)


def drawn(p: StopParams, answers: Sequence[str | None]) -> tuple[list[int], int]:
    """The batches in which a rule draws these answers, and how many it draws."""
    batches: list[Sequence[str | None]] = []
    at = 0
    while size := batch(p, batches, p.samples - at):
        batches.append(answers[at : at + size])
        at += size
    return [len(b) for b in batches], at


def one_at_a_time(p: StopParams, answers: Sequence[str | None]) -> int:
    """How many samples the paper's loop draws."""
    for i in range(1, p.samples):
        ranked = [n for _, n in Counter(a for a in answers[:i] if a is not None).most_common()] or [0]
        sure = (
            beta_confidence(ranked[0], ranked[1] if len(ranked) > 1 else 0)
            if p.stop == "beta"
            else dirichlet_confidence(ranked)
        )
        if sure > p.stop_threshold:
            return i
    return p.samples


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["beta", "dirichlet"]),
    st.lists(st.sampled_from(["1", "2", "3", None]), min_size=24, max_size=24),
    st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.99]),
)
def test_batches_draw_what_one_at_a_time_draws(
    stop: Rule, answers: list[str | None], threshold: float
) -> None:
    p = rule(samples=24, stop=stop, stop_threshold=threshold)
    assert drawn(p, answers)[1] == one_at_a_time(p, answers)


@pytest.mark.parametrize("stop", ["beta", "dirichlet"])
def test_four_that_agree_are_enough(stop: Rule) -> None:
    p = rule(samples=40, stop=stop)
    assert drawn(p, ["7"] * 40) == ([4], 4)
    assert drawn(p, ["7", "7.0", "$7", "7 dollars", *"x" * 36]) == ([4], 4)
    assert drawn(p, ["7", "8", "7", "7", *["7"] * 36]) == ([4, 3], 7)


def test_certainty_is_never_reached() -> None:
    for stop in ("beta", "dirichlet"):
        p = rule(samples=64, stop=stop, stop_threshold=1)
        assert drawn(p, ["7"] * 64) == ([64], 64)


def test_a_window_must_be_whole_and_of_one_answer() -> None:
    p = rule(samples=8, stop="window", stop_window=3)
    assert drawn(p, ["1", "1", "2", "3", "3", "3.0", "9", "9"]) == ([3, 3], 6)
    assert drawn(p, ["1", "1", None, "3", "1", "3", "9", "9"]) == ([3, 3, 2], 8)
    assert batch(p, [["1", "1"]], 5) == 3, "a window of which one sample failed is not unanimous"


def test_without_a_rule_all_are_drawn_at_once() -> None:
    assert drawn(rule(samples=9), ["1"] * 9) == ([9], 9)


def adversary(length: int) -> Iterator[list[str | None]]:
    """Answers that keep a majority one vote short for as long as they can."""
    for start in range(length):
        yield [*["1"] * start, *[None] * (length - start)]


@pytest.mark.parametrize("stop", ["beta", "dirichlet", "window"])
def test_the_worst_case_is_reached_and_not_passed(stop: Rule) -> None:
    p = rule(samples=16, stop=stop)
    most = max(len(drawn(p, answers)[0]) for answers in adversary(16))
    assert most == len(worst_batches(p))
    assert sum(worst_batches(p)) == 16
