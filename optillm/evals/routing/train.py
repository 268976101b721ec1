"""``optillm train-router``: from results to a model, with a report of what it gains on held-out questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import sklearn
from threadpoolctl import threadpool_limits

from optillm.approaches.routing.router import pick, price
from optillm.core.routing.model import Confidence, Estimate, RoutingModel
from optillm.evals.routing.fit import EFFORT, fit, fit_confidence, held_out
from optillm.evals.routing.results import Result, ResultsError
from optillm.evals.routing.table import FEWEST, Table, Unit, table
from optillm.version import __version__

EFFORTS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
THRESHOLD = 0.5
"""The confidence below which the fall-back runs, as by default."""
NEAR = 0.02
"""A choice is right if it is worth at most this much less than the best one."""
BANDS = MappingProxyType({"easy": (0.8, 1.01), "medium": (0.4, 0.8), "hard": (0.0, 0.4)})
"""Difficulty, by the expected score of one plain reply."""

Guesses = Sequence[tuple[tuple[Estimate, ...], float]]


@dataclass(frozen=True)
class Line:
    """What a way to choose comes to on held-out questions.

    Args:
        name: a technique that always runs, the router, or the oracle.
        score: mean, 0 to 1.
        cost: mean, in plain replies.
        worth: score − λ · cost.
        chosen: share of the questions by technique.
    """

    name: str
    score: float
    cost: float
    worth: float
    chosen: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """How good a model's choices are on questions that it was not trained on.

    Args:
        questions: on which every technique was measured.
        effort: of the first lines.
        lines: each technique always, the router, the oracle that knows the results.
        efforts: the router at other efforts, by effort.
        oracles: the oracle at those.
        accuracy: share of choices that are worth as much as the oracle's, but for :data:`NEAR`.
        of_oracle: the router's score as a share of the oracle's.
        saved: cost saved against the technique with the best score, as a share.
        bands: by difficulty: questions, gain of each technique over a plain reply, and what was chosen.
        unseen: the router on kinds of question that were held out as a whole; None without kinds.
    """

    questions: int
    effort: float
    lines: tuple[Line, ...]
    efforts: Mapping[str, Line]
    oracles: Mapping[str, Line]
    accuracy: float
    of_oracle: float
    saved: float
    bands: Mapping[str, Mapping[str, Any]]
    unseen: Line | None

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Trained:
    """A model and its report."""

    model: RoutingModel
    report: Report


def train(results: Sequence[Result], *, when: str, unit: Unit = "calls", seed: int = 0) -> Trained:
    """A model of results.

    Args:
        results: of two techniques or more on :data:`FEWEST` questions or more.
        when: the date that the model shall tell.
        unit: what costs are counted in.
        seed: of the splits; the same results and seed give the same model.

    Raises:
        ResultsError: the results are too few, or do not belong together.
    """
    t = table(results, unit)
    if len(t.complete) < FEWEST:
        raise ResultsError(
            f"only {len(t.complete)} questions have results of every technique, and {FEWEST} are needed"
        )
    # Many small problems: threads would wait for each other, and their order would show in the last digits.
    with threadpool_limits(1):
        guesses = [held_out(t, seed)]
        if len(set(t.kinds)) >= 3:
            guesses.append(held_out(t, seed, by_kind=True))
        confidence = fit_confidence(t, guesses)
        model = fit(t, seed, confidence=confidence)
    report = _report(t, guesses, confidence)
    metadata = {
        "trained": when,
        "by": f"optillm {__version__}, scikit-learn {sklearn.__version__}",
        "unit": unit,
        "seed": seed,
        "questions": len(t.features),
        "results": len(results),
        "models": sorted({r.model for r in results}),
        "kinds": dict(sorted(Counter(t.kinds).items())),
        "held_out": {
            "questions": report.questions,
            "accuracy": report.accuracy,
            "of_oracle": report.of_oracle,
            "saved": report.saved,
        },
    }
    return Trained(replace(model, metadata=MappingProxyType(_rounded(metadata))), report)


def _report(t: Table, guesses: Sequence[Guesses], confidence: Confidence) -> Report:
    rows = t.complete
    whole = t.of(rows)
    seen = [[guess[i] for i in rows] for guess in guesses]
    costs = price(EFFORT)
    always = [_line(whole, a, np.full(len(rows), j), costs) for j, a in enumerate(t.approaches)]
    choices = _choices(whole, seen[0], confidence, costs)
    router = _line(whole, "router", choices, costs)
    oracle = _line(whole, "oracle", _best(whole, costs), costs)
    worth = whole.score - costs * whole.cost
    mine = worth[np.arange(len(rows)), choices]
    best_always = max(always, key=lambda line: (line.score, -line.cost))
    unseen = None
    if len(seen) > 1:
        unseen = _line(whole, "router, unseen kinds", _choices(whole, seen[1], confidence, costs), costs)
    by_effort = {
        f"{e:g}": (
            _line(whole, f"router, effort {e:g}", _choices(whole, seen[0], confidence, price(e)), price(e)),
            _line(whole, f"oracle, effort {e:g}", _best(whole, price(e)), price(e)),
        )
        for e in EFFORTS
    }
    return Report(
        questions=len(rows),
        effort=EFFORT,
        lines=(*always, router, oracle),
        efforts={e: pair[0] for e, pair in by_effort.items()},
        oracles={e: pair[1] for e, pair in by_effort.items()},
        accuracy=float(np.mean(mine >= worth.max(axis=1) - NEAR)),
        of_oracle=router.score / oracle.score if oracle.score else 1.0,
        saved=1 - router.cost / best_always.cost if best_always.cost else 0.0,
        bands=_bands(whole, seen[0], choices),
        unseen=unseen,
    )


def _choices(t: Table, guesses: Guesses, confidence: Confidence, costs: float) -> Any:
    """What the router picks on each question."""
    at = {a: j for j, a in enumerate(t.approaches)}
    picks = [pick(estimates, confidence, familiar, costs, THRESHOLD) for estimates, familiar in guesses]
    return np.array([at[p.choice.approach] for p in picks])


def _best(t: Table, costs: float) -> Any:
    """What somebody would pick who knows the results: no router can do better."""
    return np.argmax(t.score - costs * t.cost, axis=1)


def _line(t: Table, name: str, choices: Any, costs: float) -> Line:
    rows = np.arange(len(choices))
    score, cost = float(t.score[rows, choices].mean()), float(t.cost[rows, choices].mean())
    return Line(name, score, cost, score - costs * cost, _shares(t, choices))


def _shares(t: Table, choices: Any) -> dict[str, float]:
    counts = Counter(t.approaches[j] for j in choices)
    return {a: counts[a] / len(choices) for a in t.approaches if counts[a]}


def _bands(t: Table, guesses: Guesses, choices: Any) -> dict[str, dict[str, Any]]:
    plain = t.approaches.index(t.baseline)
    expected = np.array([estimates[plain].score for estimates, _ in guesses])
    out: dict[str, dict[str, Any]] = {}
    for name, (low, high) in BANDS.items():
        rows = np.flatnonzero((expected >= low) & (expected < high))
        if len(rows):
            gains = t.score[rows] - t.score[rows, plain][:, None]
            out[name] = {
                "questions": len(rows),
                "plain": float(t.score[rows, plain].mean()),
                "gain": dict(zip(t.approaches, map(float, gains.mean(axis=0)), strict=True)),
                "chosen": _shares(t, choices[rows]),
            }
    return out


def _rounded(value: Any) -> Any:
    """Plain JSON, with four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value


def rendered(report: Report) -> str:
    """The report as a table for a terminal."""
    width = max(len(line.name) for line in (*report.lines, *report.efforts.values()))
    width = max(width, len(report.unseen.name) if report.unseen else 0)
    head = f"{'on held-out questions':{width}}  score   cost  worth  chosen"
    out = [f"{report.questions} questions, effort {report.effort:g}; cost in plain replies", "", head]
    out += [_row(line, width) for line in report.lines]
    out += ["", *(_row(line, width) for line in report.efforts.values())]
    if report.unseen:
        out += ["", _row(report.unseen, width)]
    out += ["", "by difficulty:"]
    out += [
        f"  {name}: {band['questions']} questions, one reply {band['plain']:.0%}; {listed(band['chosen'])}"
        for name, band in report.bands.items()
    ]
    out += [
        "",
        f"the choice is worth as much as the best one (within {NEAR}) in {report.accuracy:.1%}; score "
        f"{report.of_oracle:.1%} of the oracle's; {report.saved:.1%} of the cost of the best technique saved",
    ]
    return "\n".join(out)


def _row(line: Line, width: int) -> str:
    chosen = listed(line.chosen) if len(line.chosen) > 1 else ""
    return f"{line.name:{width}}  {line.score:.3f} {line.cost:6.2f}  {line.worth:.3f}  {chosen}".rstrip()


def listed(shares: Mapping[str, float]) -> str:
    """Shares as one line, the largest first."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ranked if share >= 0.005)
