"""Fitting a routing model: one logistic regression per technique, calibrated on what it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import vstack
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, KFold

from optillm.approaches.routing.router import best, margin, price, rival_of
from optillm.core.routing.features import DENSE, WORDS
from optillm.core.routing.model import Confidence, Estimate, Head, RoutingModel
from optillm.evals.routing.table import Table

STRENGTH = 3.0
"""Inverse strength of the regularisation of scores."""
INNER, OUTER = 3, 5
"""Parts that questions are split into: for calibration, and to hold out."""
BINS = 12
"""Steps of a calibration at most."""
SOFT = 0.01
"""No question is taken as certain: scores count as this much less than 1, and more than 0."""
EFFORT = 0.7
"""The effort for which the confidence is calibrated."""
_LEAST_COST = 1e-3


def fit(t: Table, seed: int, *, confidence: Confidence | None = None) -> RoutingModel:
    """A model of all questions of a table.

    Args:
        t: the results.
        seed: of the splits.
        confidence: of choices; fitted by :func:`fit_confidence`.
    """
    heads = [_head(t, j, seed) for j in range(len(t.approaches))]
    sure = confidence or Confidence(0.0, 0.0, 0.0)
    return RoutingModel(tuple(heads), t.baseline, sure, _seen(t), {})


def held_out(t: Table, seed: int, *, by_kind: bool = False) -> list[tuple[tuple[Estimate, ...], float]]:
    """Per question the estimates, and its familiarity, by a model that has not seen it.

    Args:
        t: the results.
        seed: of the splits.
        by_kind: whole kinds are held out: what the model says of questions like none that it knows.
    """
    rows = np.arange(len(t.features))
    parts: Any
    if by_kind:
        parts = GroupKFold(min(OUTER - 1, len(set(t.kinds)))).split(rows, groups=t.kinds)
    else:
        parts = KFold(OUTER, shuffle=True, random_state=seed).split(rows)
    out: dict[int, tuple[tuple[Estimate, ...], float]] = {}
    for known, unknown in parts:
        model = fit(t.of(known), seed)
        for i in unknown:
            f = t.features[i]
            out[int(i)] = model.estimates(f), model.familiar(f)
    return [out[i] for i in range(len(rows))]


def fit_confidence(t: Table, guesses: Sequence[Sequence[tuple[tuple[Estimate, ...], float]]]) -> Confidence:
    """How sure a choice is to do at least as well as its rival, by margin and familiarity (Platt).

    Questions count by what is at stake on them: at one half, choice and rival are expected to be worth the
    same.

    Args:
        t: the results.
        guesses: per way of holding out, per question: estimates and familiarity.
    """
    costs = price(EFFORT)
    at = {a: j for j, a in enumerate(t.approaches)}
    rows, gains = [], []
    for guess in guesses:
        for i, (estimates, familiar) in enumerate(guess):
            choice = best(estimates, costs)
            rival = rival_of(choice, estimates, costs)
            if rival is None:
                continue
            a, b = at[choice.approach], at[rival.approach]
            gained = (t.score[i, a] - costs * t.cost[i, a]) - (t.score[i, b] - costs * t.cost[i, b])
            if not np.isnan(gained) and gained:
                rows.append((margin(choice, rival, costs), familiar))
                gains.append(gained)
    won, stakes = np.array(gains) > 0, np.abs(gains)
    if won.all() or not won.any():
        return Confidence(4.0 if won.all() else -4.0, 0.0, 0.0)
    curve = LogisticRegression(C=100.0).fit(np.array(rows), won, sample_weight=stakes / stakes.mean())
    margins, familiar = (max(float(w), 0.0) for w in curve.coef_[0])
    return Confidence(_short(curve.intercept_[0]), _short(margins), _short(familiar))


def _head(t: Table, j: int, seed: int) -> Head:
    rows = np.flatnonzero(~np.isnan(t.score[:, j]))
    x = t.matrix[rows]
    score, cost = t.score[rows, j], np.maximum(t.cost[rows, j], _LEAST_COST)
    weights, bias = _logistic(x, score)
    costs = Ridge(alpha=1.0).fit(x[:, : len(DENSE)].toarray(), np.log(cost))
    size = len(DENSE)
    return Head(
        approach=t.approaches[j],
        bias=_short(bias),
        dense=tuple(map(_short, weights[:size])),
        hashed=tuple(map(_short, weights[size:])),
        steps=_steps(x, score, seed),
        cost_bias=_short(costs.intercept_),
        cost_dense=tuple(map(_short, costs.coef_)),
        cost_range=(_short(cost.min()), _short(cost.max())),
    )


def _logistic(x: Any, score: Any) -> tuple[Any, float]:
    """Weights and bias of a logistic regression on shares instead of classes.

    Every question counts as a right one by its score, and as a wrong one by the rest.
    """
    soft = SOFT + (1 - 2 * SOFT) * score
    classes = np.concatenate([np.ones(len(score)), np.zeros(len(score))])
    model = LogisticRegression(C=STRENGTH, solver="newton-cg", max_iter=1000)
    model.fit(vstack([x, x]), classes, sample_weight=np.concatenate([soft, 1 - soft]))
    return model.coef_[0], float(model.intercept_[0])


def _steps(x: Any, score: Any, seed: int) -> tuple[tuple[float, float], ...]:
    """What raw scores mean: means of score in bins of equal size, made to rise (isotonic regression)."""
    raw = np.zeros(len(score))
    for known, unknown in KFold(INNER, shuffle=True, random_state=seed + 1).split(raw):
        weights, bias = _logistic(x[known], score[known])
        raw[unknown] = x[unknown] @ weights + bias
    bins = np.array_split(np.argsort(raw, kind="stable"), min(BINS, max(len(raw) // 8, 1)))
    middles = np.array([raw[b].mean() for b in bins])
    # As if one more question of each bin had been half right: no bin is certain.
    means = np.array([(score[b].sum() + 0.5) / (len(b) + 1) for b in bins])
    rising = IsotonicRegression().fit_transform(middles, means, sample_weight=[len(b) for b in bins])
    points: dict[float, float] = {}
    for middle, mean in zip(middles, rising, strict=True):
        points.setdefault(_short(middle), _short(mean))
    return tuple(points.items())


def _seen(t: Table) -> bytes:
    """Words that stood in two prompts or more, as bits."""
    counts = np.bincount([w for f in t.features for w in f.words], minlength=WORDS)
    bits = bytearray(WORDS // 8)
    for word in np.flatnonzero(counts >= 2):
        bits[word >> 3] |= 1 << (word & 7)
    return bytes(bits)


def _short(value: Any) -> float:
    """A weight with four digits; what is next to nothing is nothing."""
    return float(f"{value:.4g}") if abs(value) >= 5e-4 else 0.0
