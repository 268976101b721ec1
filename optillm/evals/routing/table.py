"""Results as numbers: questions by techniques."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from optillm.core.routing.features import BUCKETS, DENSE, Features, features
from optillm.evals.routing.results import Result, ResultsError

Unit = Literal["calls", "tokens", "cost"]
FEWEST = 20
"""Questions that training needs."""


@dataclass(frozen=True)
class Table:
    """Questions in rows, techniques in columns; what was not measured is NaN.

    Args:
        features: of each question.
        kinds: of each question, empty if not known.
        approaches: the columns.
        score: 0 to 1.
        cost: in plain replies: 1 is the mean cost of the baseline.
        baseline: the technique that is one plain reply.
        matrix: all features, a sparse row per question: counts and flags, then n-grams.
    """

    features: tuple[Features, ...]
    kinds: tuple[str, ...]
    approaches: tuple[str, ...]
    score: Any
    cost: Any
    baseline: str
    matrix: Any

    def of(self, rows: Any) -> Table:
        """Some of the questions."""
        return Table(
            tuple(self.features[i] for i in rows),
            tuple(self.kinds[i] for i in rows),
            self.approaches,
            self.score[rows],
            self.cost[rows],
            self.baseline,
            self.matrix[rows],
        )

    @property
    def complete(self) -> Any:
        """The questions on which every technique was measured."""
        return np.flatnonzero(~np.isnan(self.score).any(axis=1))


def table(results: Sequence[Result], unit: Unit = "calls") -> Table:
    """The results of questions, those of the same question and technique averaged.

    Args:
        results: in any order.
        unit: what costs are counted in.

    Raises:
        ResultsError: too few questions or techniques, no plain replies, or costs that are not known.
    """
    approaches = tuple(dict.fromkeys(r.approach for r in results))
    if len(approaches) < 2:
        raise ResultsError("results of at least two techniques are needed to choose between them")
    cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for r in results:
        cells[r.key, r.approach].append(r)
    questions = {r.key: r for r in reversed(results)}
    keys = list(dict.fromkeys(r.key for r in results))
    if len(keys) < FEWEST:
        raise ResultsError(f"at least {FEWEST} questions are needed, and there are {len(keys)}")
    score, cost = (np.full((len(keys), len(approaches)), np.nan) for _ in range(2))
    for i, key in enumerate(keys):
        for j, approach in enumerate(approaches):
            if mine := cells.get((key, approach)):
                runs = sum(r.runs for r in mine)
                score[i, j] = sum(r.score * r.runs for r in mine) / runs
                cost[i, j] = sum(_amount(r, unit) * r.runs for r in mine) / runs
    means = np.nanmean(cost, axis=0)
    baseline = "none" if "none" in approaches else approaches[int(np.argmin(means))]
    plain = means[approaches.index(baseline)]
    if not plain > 0:
        raise ResultsError(
            f"'{baseline}' costs nothing in {unit}: other costs cannot be told in plain replies"
        )
    seen = tuple(features(questions[k].task) for k in keys)
    return Table(
        seen,
        tuple(questions[k].kind or "" for k in keys),
        approaches,
        score,
        cost / plain,
        baseline,
        _matrix(seen),
    )


def _matrix(seen: Sequence[Features]) -> Any:
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for i, f in enumerate(seen):
        rows += [i] * (len(f.dense) + len(f.hashed))
        columns += [*range(len(f.dense)), *(len(DENSE) + bucket for bucket in f.hashed)]
        values += [*f.dense, *f.hashed.values()]
    return csr_matrix((values, (rows, columns)), shape=(len(seen), len(DENSE) + BUCKETS))


def _amount(r: Result, unit: Unit) -> float:
    if unit == "calls":
        return r.calls
    if unit == "tokens":
        return r.tokens
    if r.cost is None:
        raise ResultsError(f"a result of '{r.approach}' has no 'cost'; train by --unit calls or tokens")
    return r.cost
