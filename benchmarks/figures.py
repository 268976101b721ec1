"""The pictures of docs/theory.md: accuracy against calls, measured on a simulated model, with theory.

Run by ``make figures``. Seeds are fixed, and the pictures hold no date: the same code draws the same files.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optillm.evals.simulated import Judge, SimulatedModel, sums
from tests.theory import expected
from tests.theory.measure import measure

FOLDER = Path(__file__).parent.parent / "docs" / "figures"
QUESTIONS = 600
TRIALS = 10_000
BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f6feb", "#d1690e", "#1a7f37", "#8250df", "#8c959f"
GOOD, POOR = Judge(right=(0.2, 0.8), wrong=(0.7, 0.3)), Judge(right=(0.4, 0.6), wrong=(0.6, 0.4))

Point = tuple[float, float]
"""Calls, accuracy."""


@dataclass(frozen=True)
class Curve:
    """A technique with growing effort.

    Args:
        label: of the line.
        model: what it runs on.
        approach: slug of the technique.
        runs: its parameters, one point each.
        theory: calls and accuracy that the line goes through.
    """

    label: str
    color: str
    model: Callable[[], SimulatedModel]
    approach: str
    runs: Sequence[dict[str, Any]]
    theory: Sequence[Point] = field(default=())

    def draw(self, axes: Axes) -> None:
        axes.plot(*zip(*self.theory, strict=True), color=self.color, linewidth=1.6, zorder=2)
        measured = [asyncio.run(measure(self.model(), self.approach, **run)) for run in self.runs]
        axes.errorbar(
            [m.calls for m in measured],
            [m.accuracy for m in measured],
            [1.96 * m.error for m in measured],
            color=self.color,
            fmt="o",
            markersize=4.5,
            capsize=2.5,
            linewidth=1.1,
            label=self.label,
            zorder=3,
        )


def main(names: Sequence[str]) -> None:
    """Draw the pictures, or those named."""
    FOLDER.mkdir(exist_ok=True)
    for make, title, single in (
        (voting, "Voting; one reply is right in 40 %", 0.4),
        (stopping, "Voting with early stopping; one reply is right in 70 %", 0.7),
        (judging, "Choosing by a judge; one reply is right in 40 %", 0.4),
        (search, "Search and rounds, the same judge; one reply is right in 40 %", 0.4),
    ):
        if not names or make.__name__ in names:
            draw(FOLDER / f"{make.__name__}.png", make(), title, single)


def draw(path: Path, curves: Iterable[Curve], title: str, single: float) -> None:
    """One picture: lines are theory, points with bars are measured."""
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(8.2, 4.2), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.axhline(single, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for curve in curves:
            curve.draw(axes)
        axes.annotate(
            "one reply", (1, single), xycoords=("axes fraction", "data"), xytext=(-4, 4), ha="right",
            textcoords="offset points", color="#57606a", fontsize=9,
        )  # fmt: skip
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("calls per question (each sample and each judgement is one)")
        axes.set_ylabel("questions answered right")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#eaeef2", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def voting() -> list[Curve]:
    """Self-consistency by how many wrong answers there are."""

    def curve(wrong: int, color: str) -> Curve:
        return Curve(
            f"{wrong} wrong answer{'s' * (wrong > 1)}",
            color,
            lambda: SimulatedModel(sums(QUESTIONS, accuracy=0.4, wrong=wrong)),
            "self_consistency",
            [{"samples": k} for k in (1, 2, 3, 5, 9, 15, 21)],
            [(k, expected.majority(0.4, wrong, k)) for k in range(1, 22)],
        )

    return [curve(4, GREEN), curve(2, BLUE), curve(1, ORANGE)]


def stopping() -> list[Curve]:
    """Adaptive consistency against all samples."""

    def model() -> SimulatedModel:
        return SimulatedModel(sums(QUESTIONS, accuracy=0.7))

    def adaptive(label: str, color: str, rule: str, sizes: Sequence[int]) -> Curve:
        runs = [{"adaptive_consistency_samples": k, "adaptive_consistency_stop": rule} for k in sizes]
        theory = [expected.adaptive(0.7, 1, k, rule, TRIALS, 1) for k in sizes]
        points = [(calls, accuracy) for accuracy, calls in theory]
        return Curve(label, color, model, "adaptive_consistency", runs, points)

    return [
        Curve(
            "all samples (self_consistency)",
            BLUE,
            model,
            "self_consistency",
            [{"samples": k} for k in (3, 5, 9, 15, 25)],
            [(k, expected.majority(0.7, 1, k)) for k in range(1, 26, 2)],
        ),
        adaptive("until 95 % sure (beta)", GREEN, "beta", (3, 5, 9, 15, 25)),
        adaptive("until 5 agree (window)", ORANGE, "window", (5, 10, 15, 25)),
    ]


def judging() -> list[Curve]:
    """Best of n and the knockout."""
    sizes = (2, 3, 4, 6, 8)

    def model(judge: Judge) -> Callable[[], SimulatedModel]:
        return lambda: SimulatedModel(sums(QUESTIONS, accuracy=0.4), judge=judge)

    rated = [
        Curve(
            label,
            color,
            model(judge),
            "bon",
            [{"best_of_n": n} for n in (*sizes, 12)],
            [(2 * n, expected.best_of(0.4, n, judge.right, judge.wrong)) for n in range(2, 13)],
        )
        for label, color, judge in (
            ("bon, judge 80 % / 30 %", BLUE, GOOD),
            ("bon, judge 60 % / 40 %", ORANGE, POOR),
        )
    ]
    compared = [
        Curve(
            label,
            color,
            model(Judge(better=0.75)),
            "tournament",
            [{"tournament_n": n, "judge_samples": times} for n in sizes],
            [
                (n + (n - 1) * 2 * times, expected.knockout(0.4, n, 0.75, 0, times))
                for n in (2, 3, 4, 5, 6, 7, 8)
            ],
        )
        for label, color, times in (
            ("tournament, right wins 75 %", GREEN, 1),
            ("the same, 3 comparisons a match", PURPLE, 3),
        )
    ]
    return [*rated, *compared]


def search() -> list[Curve]:
    """Mcts, pvg and bon with the same judge."""

    def model() -> SimulatedModel:
        return SimulatedModel(sums(QUESTIONS, accuracy=0.4), judge=GOOD)

    def best_of(n: int) -> float:
        return expected.best_of(0.4, n, GOOD.right, GOOD.wrong)

    sizes = (1, 2, 3, 6, 9, 12, 15, 18)
    searched = [expected.tree_search(0.4, s, 0.8, 0.3, TRIALS, 1) for s in sizes]
    return [
        Curve(
            "mcts, 1 to 18 simulations",
            GREEN,
            model,
            "mcts",
            [{"simulations": s, "depth": 0} for s in sizes],
            [(calls, accuracy) for accuracy, calls in searched],
        ),
        Curve(
            "bon, n = 2 to 24",
            BLUE,
            model,
            "bon",
            [{"best_of_n": n} for n in (2, 4, 8, 16, 24)],
            [(2 * n, best_of(n)) for n in range(2, 25)],
        ),
        Curve(
            "pvg, 1 to 4 rounds",
            ORANGE,
            model,
            "pvg",
            [{"rounds": r} for r in (1, 2, 3, 4)],
            [(13 * r - 1, best_of(3 * r)) for r in (1, 2, 3, 4)],
        ),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
