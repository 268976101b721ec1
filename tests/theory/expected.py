"""What techniques must gain on a simulated model: closed forms, and simulations of the rules as published.

Nothing here comes from the techniques' code. Chances are of one question: ``p`` of one reply to be right,
``m`` equally likely wrong answers; a judge's ``right`` and ``wrong`` are the chances of its grades, from
the worst to the best.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

Grades = Sequence[float]


def majority(p: float, m: int, k: int) -> float:
    """K samples, the most frequent answer; of t tied answers each is as likely to come first.

    A sum over all ways in which k samples fall on m + 1 answers. With one wrong answer it is the binomial
    majority.
    """
    total = 0.0
    for right in range(k + 1):
        for wrong in _counts(k - right, m):
            most = max(wrong)
            if right < most:
                continue
            ways = math.factorial(k) / math.prod(math.factorial(c) for c in (right, *wrong))
            share = 1.0 if right > most else 1 / (1 + wrong.count(most))
            total += ways * p**right * ((1 - p) / m) ** (k - right) * share
    return total


def _counts(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All tuples of so many counts with this sum."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _counts(total - first, parts - 1):
            yield (first, *rest)


def best_of(p: float, n: int, right: Grades, wrong: Grades) -> float:
    """N candidates, the first of those with the highest grade.

    The best grade is g with the chance that all are at most g and not all below. Whoever has it is right
    with the chance of a candidate of that grade, wherever it stands.
    """
    total, below = 0.0, 0.0
    for r, w in zip(right, wrong, strict=True):
        here = p * r + (1 - p) * w
        if here:
            total += ((below + here) ** n - below**n) * p * r / here
        below += here
    return total


def mean_grades(grades: Grades, times: int) -> list[float]:
    """The chances of the sum of several independent grades: what a mean of judgements can be."""
    sums = np.array([1.0])
    for _ in range(times):
        sums = np.convolve(sums, np.array(grades))
    return [float(s) for s in sums]


Bracket = int | frozenset["Bracket"]


def knockout(p: float, n: int, better: float, position: float, times: int = 1) -> float:
    """N candidates in a random bracket; of a tied match the one sampled first goes on.

    Who wins a tied match depends on when it was sampled, so the recursion carries both: for each part of
    a bracket, the chance of each candidate to come out of it, right or wrong. Averaged over all brackets.
    """
    wins = _match(better, position, times)

    @cache
    def winners(bracket: Bracket) -> dict[tuple[int, bool], float]:
        if isinstance(bracket, int):
            return {(bracket, True): p, (bracket, False): 1 - p}
        one, other = bracket
        out: defaultdict[tuple[int, bool], float] = defaultdict(float)
        for (a, chance_a), (b, chance_b) in product(winners(one).items(), winners(other).items()):
            won, tied = wins(a[1], b[1])
            first = won + tied * (a[0] < b[0])
            out[a] += chance_a * chance_b * first
            out[b] += chance_a * chance_b * (1 - first)
        return dict(out)

    brackets = Counter(_bracket(order) for order in permutations(range(n)))
    right = sum(
        times * sum(c for (_, is_right), c in winners(bracket).items() if is_right)
        for bracket, times in brackets.items()
    )
    return right / math.factorial(n)


def _bracket(order: Sequence[Bracket]) -> Bracket:
    """Neighbours meet; of an odd number the last has a bye."""
    if len(order) == 1:
        return order[0]
    pairs = [frozenset(order[i : i + 2]) for i in range(0, len(order) - 1, 2)]
    return _bracket([*pairs, *order[2 * len(pairs) :]])


def _match(better: float, position: float, times: int) -> Callable[[bool, bool], tuple[float, float]]:
    """The chances that a wins a match with b, and that it is tied, by whether they are right."""

    def chances(a: bool, b: bool) -> tuple[float, float]:
        fair = 0.5 if a == b else better if a else 1 - better
        shown_first = position + (1 - position) * fair
        shown_second = (1 - position) * fair
        points = np.array([1.0])
        for chance in [shown_first, shown_second] * times:
            points = np.convolve(points, [1 - chance, chance])
        return float(points[times + 1 :].sum()), float(points[times])

    return chances


# -- simulations: each follows the rule as published, one question at a time ---------------------


def adaptive(
    p: float,
    m: int,
    samples: int,
    rule: str,
    trials: int,
    seed: int,
    *,
    threshold: float = 0.95,
    window: int = 5,
) -> tuple[float, float]:
    """Adaptive consistency, one sample at a time: accuracy, and mean number of samples."""
    rng = np.random.default_rng(seed)

    @cache
    def sure(first: int, *others: int) -> bool:
        return (_leads_second(first, others[0]) if rule == "beta" else _leads_all(first, others)) >= threshold

    right = drawn = 0
    for answers in _answers(rng, p, m, (trials, samples)):
        counts = [0] * (m + 1)
        for used, answer in enumerate(answers, 1):
            counts[answer] += 1
            if rule == "window":
                if used % window == 0 and len(set(answers[used - window : used])) == 1:
                    break
            else:
                # An answer that nobody has given is not known to exist: of those only one counts.
                first, *others = sorted((c for c in counts if c), reverse=True)
                others = others or [0]
                if sure(first, *(others[:1] if rule == "beta" else others)):
                    break
        drawn += used
        most = max(counts)
        right += next(a for a in answers if counts[a] == most) == 0
    return right / trials, drawn / trials


def _leads_second(first: int, second: int) -> float:
    """P(p > 1/2) for p from Beta(first + 1, second + 1), by integration on a grid."""
    x = (np.arange(20_000) + 0.5) / 20_000
    density = x**first * (1 - x) ** second
    return float(density[x > 0.5].sum() / density.sum())


def _leads_all(first: int, others: Sequence[int]) -> float:
    """P(p1 is the greatest) for p from a Dirichlet distribution, by drawing it."""
    shapes = np.array([first, *others]) + 1.0
    draws = np.random.default_rng(first).gamma(shapes, size=(50_000, len(shapes)))
    return float((draws.argmax(axis=1) == 0).mean())


def prover_verifier(
    p: float, rounds: int, k: int, right: Grades, wrong: Grades, trials: int, seed: int
) -> float:
    """The game: in each round k helpful and k wrong solutions are graded; a helpful one above all wrong
    ones is accepted; the answer is the first of the highest grade among the accepted, else among all.
    """
    rng = np.random.default_rng(seed)
    is_right = rng.random((trials, rounds, k)) < p
    grades = np.where(is_right, _graded(rng, right, is_right.shape), _graded(rng, wrong, is_right.shape))
    forged = _graded(rng, wrong, is_right.shape).max(axis=2, keepdims=True)
    merit = grades + len(right) * (grades > forged)
    best = merit.reshape(trials, -1).argmax(axis=1)
    return float(is_right.reshape(trials, -1)[np.arange(trials), best].mean())


def tree_search(
    p: float,
    simulations: int,
    right: float,
    wrong: float,
    trials: int,
    seed: int,
    *,
    actions: int = 3,
    parallel: int = 3,
    levels: int = 3,
    exploration: float = 0.2,
    exchanges: int = 0,
    keeps: float = 1.0,
) -> tuple[float, float]:
    """Monte Carlo tree search with a judge that says 1 to a share of right dialogues, and of wrong ones.

    Waves of ``parallel`` simulations; within a wave each one chosen counts as a visit without value.

    Returns:
        The accuracy, and the mean number of calls.
    """
    rng = np.random.default_rng(seed)
    found = calls = 0
    for _ in range(trials):
        search = _Search(rng, p, right, wrong, actions, parallel, levels, exploration, exchanges, keeps)
        found += search.run(simulations)
        # A reply each node, but the question; a judgement and the exchanges each simulation; and the
        # simulated user's message before all replies but the first ones.
        grown = (len(search.n) - 1) // actions
        calls += len(search.n) - 1 + simulations * (1 + 2 * exchanges) + grown - 1
    return found / trials, calls / trials


class _Search:
    """One search. A node is its place in lists; node 0 is the question."""

    def __init__(
        self,
        rng: np.random.Generator,
        p: float,
        right: float,
        wrong: float,
        actions: int,
        parallel: int,
        levels: int,
        exploration: float,
        exchanges: int,
        keeps: float,
    ) -> None:
        self.random = rng.random
        self.p, self.says_yes, self.levels = p, (wrong, right), levels
        self.actions, self.parallel = actions, parallel
        self.exploration, self.exchanges, self.keeps = exploration, exchanges, keeps
        self.right, self.level, self.parents = [False], [0], [-1]
        self.children: list[list[int]] = [[]]
        self.n, self.w = [0], [0.0]
        self.grow(0)

    def grow(self, node: int) -> None:
        for _ in range(self.actions):
            held = node > 0 and self.random() < self.keeps
            self.right.append(self.right[node] if held else self.random() < self.p)
            self.level.append(self.level[node] + 1)
            self.parents.append(node)
            self.children.append([])
            self.n.append(0)
            self.w.append(0.0)
            self.children[node].append(len(self.n) - 1)

    def run(self, simulations: int) -> bool:
        while simulations > 0:
            chosen = self.wave(min(self.parallel, simulations))
            grown = [self.arrive(leaf) for leaf in chosen]
            for node, value in [(node, self.value(node)) for node in grown]:
                self.count(node, 1, value)
            simulations -= len(chosen)
        best = max(self.children[0], key=lambda c: (self.n[c], self.w[c] / max(1, self.n[c]), -c))
        return self.right[best]

    def wave(self, size: int) -> list[int]:
        """The leaves that sequential selection would take if each taken one had come back with nothing."""
        chosen: list[int] = []
        while len(chosen) < size:
            leaf = self.descend(0, chosen)
            if leaf < 0:
                break
            chosen.append(leaf)
            self.count(leaf, 1, 0.0)
        for leaf in chosen:
            self.count(leaf, -1, 0.0)
        return chosen

    def descend(self, node: int, taken: Sequence[int]) -> int:
        if not self.children[node]:
            return -1 if node in taken else node
        for child in sorted(self.children[node], key=lambda c: (-self.bound(c), c)):
            leaf = self.descend(child, taken)
            if leaf >= 0:
                return leaf
        return -1

    def bound(self, node: int) -> float:
        if self.n[node] == 0:
            return math.inf
        around = max(1, self.n[self.parents[node]])
        return self.w[node] / self.n[node] + self.exploration * math.sqrt(math.log(around) / self.n[node])

    def arrive(self, leaf: int) -> int:
        """A leaf seen before grows, and its first child is looked at."""
        if self.n[leaf] == 0 or self.level[leaf] == self.levels:
            return leaf
        self.grow(leaf)
        return self.children[leaf][0]

    def value(self, node: int) -> float:
        last = self.right[node]
        for _ in range(self.exchanges):
            last = last if self.random() < self.keeps else self.random() < self.p
        return float(self.random() < self.says_yes[last])

    def count(self, node: int, visits: int, value: float) -> None:
        while node >= 0:
            self.n[node] += visits
            self.w[node] += value
            node = self.parents[node]


def _answers(rng: np.random.Generator, p: float, m: int, shape: tuple[int, int]) -> list[list[int]]:
    """Answers: 0 is right, 1 to m are wrong."""
    wrong = rng.integers(1, m + 1, shape)
    answers: list[list[int]] = np.where(rng.random(shape) < p, 0, wrong).tolist()
    return answers


def _graded(rng: np.random.Generator, grades: Grades, shape: tuple[int, ...]) -> NDArray[np.int64]:
    return rng.choice(len(grades), shape, p=np.array(grades))
