"""When to stop sampling: the votes so far settle the majority.

Three rules, all pure functions of the answers so far:

- ``beta`` (adaptive consistency, arXiv:2305.11860, section 3): of the two most frequent answers, the
  probability that the first is the more frequent one in truth, under a uniform prior, is over a threshold;
- ``dirichlet`` (the same paper): the same against all other answers at once;
- ``window`` (early-stopping self-consistency, arXiv:2401.10480): sampling goes on in windows, and stops
  when all answers of one window are the same.

The paper of the first two draws one sample at a time. Here a batch is as large as it can be without ever
drawing a sample that one at a time would not have drawn: as many as it takes at least to settle.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Literal

from optillm.core.answers import group_by_answer
from optillm.core.params import ApproachParams, field

Answers = Sequence[str | None]


class StopParams(ApproachParams):
    """The switch for early stopping, declared once for all techniques that vote."""

    samples: int = field(5, "samples at most", ge=1, le=64)
    stop: Literal["no", "beta", "dirichlet", "window"] = field(
        "no",
        "stop sampling when the majority is settled: against the second answer, against all others, or "
        "when a window is unanimous",
    )
    stop_threshold: float = field(
        0.95, "how sure the majority must be (beta, dirichlet); with 1 never", ge=0.5, le=1
    )
    stop_window: int = field(5, "samples that must agree (window)", ge=2, le=64)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """A window must fit into the samples."""
        if self.stop == "window" and self.stop_window > self.samples:
            yield "stop_window", f"is {self.stop_window}, but there are only {self.samples} samples at most"


def beta_confidence(first: int, second: int) -> float:
    """The probability that the first of two answers is the more frequent one in truth.

    This is P(p > 1/2) for p from Beta(first + 1, second + 1). Its parameters are whole numbers, so the
    regularised incomplete beta function is a binomial sum, and exact.

    Args:
        first, second: how often each was given.
    """
    tosses = first + second + 1
    return math.fsum(math.comb(tosses, heads) / (1 << tosses) for heads in range(first + 1))


def dirichlet_confidence(counts: Sequence[int]) -> float:
    """The probability that the most frequent answer so far is the most frequent one in truth.

    This is P(p1 > all others) for p from Dirichlet(counts + 1). Such a p is a vector of independent gamma
    variables divided by their sum, which leaves one integral: of the first one's density times the others'
    distribution functions. Both are smooth in log x and vanish at its ends, where the trapezoidal rule
    converges exponentially: the error is below 1e-6 for 64 different answers, 1e-9 for a few.

    Args:
        counts: how often each answer was given; one or more.
    """
    first, *others = sorted(counts, reverse=True)
    # Without a second answer, the one that was never given stands against the first.
    rivals = Counter(others or [0])
    shape = first + 1
    step = 0.25 / math.sqrt(shape)
    total = 0.0
    for i in range(-96, 25):
        log_x = math.log(shape) + i * step
        x = math.exp(log_x)
        density = math.exp(shape * log_x - x - math.lgamma(shape))
        if density < 1e-16:
            continue
        below = _gamma_below(x, max(rivals) + 1)
        total += density * math.prod(below[count] ** times for count, times in rivals.items())
    return min(1.0, total * step)


def _gamma_below(x: float, most: int) -> list[float]:
    """P(X < x) for X from Gamma(1), Gamma(2), … Gamma(most)."""
    terms = accumulate(range(1, most), lambda term, i: term * x / i, initial=math.exp(-x))
    return [max(0.0, 1 - tail) for tail in accumulate(terms)]


def batch(p: StopParams, batches: Sequence[Answers], left: int) -> int:
    """How many samples to draw next: 0 when the majority is settled.

    Args:
        p: the rule.
        batches: the answers so far, by batches; None is a sample without an answer.
        left: how many may still be drawn.
    """
    if p.stop == "no":
        return left
    if p.stop == "window":
        last = batches[-1] if batches else ()
        return 0 if _unanimous(last, p.stop_window) else min(p.stop_window, left)
    counts = [len(g) for g in group_by_answer([a for answers in batches for a in answers])]
    confidence = _after(p.stop, sorted(counts, reverse=True))
    # The confidence grows with every vote for the leader, and no other votes make it grow faster.
    return bisect_right(range(left), p.stop_threshold, key=confidence)


def _after(rule: str, counts: list[int]) -> Callable[[int], float]:
    """The confidence after so many more votes for the first answer."""
    first, *others = counts or [0]
    if rule == "beta":
        return lambda votes: beta_confidence(first + votes, max(others, default=0))
    return lambda votes: dirichlet_confidence([first + votes, *others])


def _unanimous(answers: Answers, window: int) -> bool:
    return len(answers) == window and [len(g) for g in group_by_answer(answers)] == [window]


def worst_batches(p: StopParams) -> list[int]:
    """The batches of a run that stops as late as it can, with as many batches as it can."""
    if p.stop == "window":
        full, rest = divmod(p.samples, p.stop_window)
        return [p.stop_window] * full + [rest] * (rest > 0)
    first = batch(p, [], p.samples)
    # One vote short of the majority, samples without an answer are drawn one at a time.
    return [first] + [1] * (p.samples - first)
