"""What techniques gain over one reply on a simulated model is what theory says.

Each technique runs on some hundreds of questions with known chances of error; seeds are fixed. The measured
accuracy must lie within four standard errors of what the rule of the paper gives: of a closed form, or of
an independent simulation, whose own error is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from optillm.evals.simulated import Judge, SimulatedModel, sums
from tests.theory import expected
from tests.theory.measure import Measured, measure

pytestmark = pytest.mark.anyio

SIGMAS = 4
GRADED = Judge(right=(0.05, 0.15, 0.35, 0.45), wrong=(0.35, 0.35, 0.2, 0.1))

ERRATIC = Judge(right=(0, 1, 0), wrong=(0.5, 0, 0.5))
"""Wrong replies get the best grade or the worst: without forgeries to beat, one of them always wins."""


def binary(right: float, wrong: float) -> Judge:
    """A judge that says the best to a share of right replies and of wrong ones, else the worst."""
    return Judge(right=(1 - right, right), wrong=(1 - wrong, wrong))


def agrees(measured: Measured, theory: float, trials: float = math.inf) -> None:
    """The accuracy is what theory says; ``trials`` of it, if it was itself simulated."""
    questions = len(measured.right)
    error = math.sqrt(theory * (1 - theory) * (1 / questions + 1 / trials))
    off = (measured.accuracy - theory) / error
    assert abs(off) < SIGMAS, f"measured {measured.accuracy:.4f}, theory {theory:.4f}: {off:+.1f} sigma"


def costs(measured: Measured, calls: float, trials: float) -> None:
    """The mean number of calls is what so many simulated trials took."""
    spread = math.sqrt(mean([(r - measured.calls) ** 2 for r in measured.replies]))
    error = spread * math.sqrt(1 / len(measured.replies) + 1 / trials)
    assert abs(measured.calls - calls) <= SIGMAS * error, f"measured {measured.calls:.2f}, theory {calls:.2f}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


async def test_one_reply_is_as_good_as_the_model() -> None:
    measured = await measure(SimulatedModel(sums(1500, accuracy=(0.3, 0.5, 0.9), wrong=3)), "none")
    agrees(measured, mean((0.3, 0.5, 0.9)))
    for i, p in enumerate((0.3, 0.5, 0.9)):
        agrees(Measured(measured.right[i::3], measured.replies[i::3]), p)


@pytest.mark.parametrize(
    ("p", "wrong", "samples"),
    [
        (0.6, 1, 5),
        (0.6, 1, 6),
        (0.4, 1, 9),  # voting hurts below one half when there is one wrong answer
        (0.4, 4, 9),  # and helps when the wrong ones differ
        (0.5, 3, 2),  # two samples: the first wins
        (0.4, 2, 4),
    ],
)
async def test_self_consistency(p: float, wrong: int, samples: int) -> None:
    model = SimulatedModel(sums(1000, accuracy=p, wrong=wrong))
    measured = await measure(model, "self_consistency", samples=samples)
    theory = expected.majority(p, wrong, samples)
    agrees(measured, theory)
    if abs(theory - p) > 0.1:
        assert (measured.accuracy > p) == (theory > p)


async def test_self_consistency_on_questions_of_different_difficulty() -> None:
    chances = (0.2, 0.4, 0.6, 0.8)
    measured = await measure(
        SimulatedModel(sums(1200, accuracy=chances, wrong=2)), "self_consistency", samples=7
    )
    agrees(measured, mean([expected.majority(p, 2, 7) for p in chances]))


@pytest.mark.parametrize(("p", "n"), [(0.3, 4), (0.6, 6)])
async def test_bon_with_a_judge_that_says_yes_or_no(p: float, n: int) -> None:
    judge = binary(0.8, 0.3)
    measured = await measure(SimulatedModel(sums(800, accuracy=p, wrong=3), judge=judge), "bon", best_of_n=n)
    agrees(measured, expected.best_of(p, n, judge.right, judge.wrong))


async def test_bon_with_grades() -> None:
    model = SimulatedModel(sums(1000, accuracy=0.4), judge=GRADED)
    measured = await measure(model, "bon", best_of_n=4)
    agrees(measured, expected.best_of(0.4, 4, GRADED.right, GRADED.wrong))


async def test_bon_with_the_mean_of_several_judgements() -> None:
    judge = binary(0.7, 0.4)
    model = SimulatedModel(sums(500, accuracy=0.4), judge=judge)
    measured = await measure(model, "bon", best_of_n=4, judge_samples=3)
    grades = (expected.mean_grades(judge.right, 3), expected.mean_grades(judge.wrong, 3))
    agrees(measured, expected.best_of(0.4, 4, *grades))


async def test_bon_with_a_judge_that_knows_nothing_gains_nothing() -> None:
    judge = binary(0.5, 0.5)
    measured = await measure(SimulatedModel(sums(1000, accuracy=0.6), judge=judge), "bon", best_of_n=4)
    agrees(measured, 0.6)


@pytest.mark.parametrize(
    ("questions", "n", "better", "position", "times"),
    [
        (1000, 2, 0.8, 0.3, 1),
        (600, 4, 0.75, 0.0, 1),
        (600, 5, 0.9, 0.4, 1),
        (300, 4, 0.7, 0.2, 3),
        (300, 8, 0.9, 0.0, 1),
    ],
)
async def test_tournament(questions: int, n: int, better: float, position: float, times: int) -> None:
    model = SimulatedModel(
        sums(questions, accuracy=0.4, wrong=2), judge=Judge(better=better, position=position)
    )
    measured = await measure(model, "tournament", tournament_n=n, judge_samples=times)
    agrees(measured, expected.knockout(0.4, n, better, position, times))
    assert set(measured.replies) == {n + (n - 1) * 2 * times}


@pytest.mark.parametrize(
    ("p", "wrong", "rule", "samples"),
    [
        (0.55, 1, "beta", 20),
        (0.4, 3, "beta", 20),
        (0.4, 3, "dirichlet", 9),
        (0.5, 2, "window", 20),
    ],
)
async def test_adaptive_consistency(p: float, wrong: int, rule: str, samples: int) -> None:
    window = 3
    model = SimulatedModel(sums(600, accuracy=p, wrong=wrong))
    measured = await measure(
        model,
        "adaptive_consistency",
        adaptive_consistency_samples=samples,
        adaptive_consistency_stop=rule,
        stop_window=window,
    )
    trials = 5_000
    accuracy, drawn = expected.adaptive(p, wrong, samples, rule, trials, 1, window=window)
    agrees(measured, accuracy, trials)
    costs(measured, drawn, trials)


@pytest.mark.parametrize(("rounds", "solutions", "judge"), [(1, 3, GRADED), (3, 2, GRADED), (4, 1, ERRATIC)])
async def test_pvg(rounds: int, solutions: int, judge: Judge) -> None:
    model = SimulatedModel(sums(600, accuracy=0.4), judge=judge)
    measured = await measure(model, "pvg", rounds=rounds, solutions=solutions)
    trials = 400_000
    theory = expected.prover_verifier(0.4, rounds, solutions, judge.right, judge.wrong, trials, 1)
    agrees(measured, theory, trials)


async def test_pvg_with_a_judge_that_says_yes_or_no_is_best_of_n() -> None:
    """Whether a round's forgeries pass says nothing of its solutions then."""
    judge = binary(0.8, 0.3)
    measured = await measure(SimulatedModel(sums(600, accuracy=0.4), judge=judge), "pvg")
    agrees(measured, expected.best_of(0.4, 6, judge.right, judge.wrong))


@pytest.mark.parametrize("simulations", [2, 4])
async def test_mcts_with_no_more_simulations_than_actions_is_best_of_n(simulations: int) -> None:
    judge = binary(0.8, 0.3)
    model = SimulatedModel(sums(1000, accuracy=0.4), judge=judge)
    measured = await measure(model, "mcts", simulations=simulations, depth=0, actions=4)
    agrees(measured, expected.best_of(0.4, simulations, judge.right, judge.wrong))


@pytest.mark.parametrize(
    ("questions", "simulations", "depth", "keeps"),
    [(500, 8, 0, 1.0), (250, 14, 0, 1.0), (300, 6, 1, 0.6)],
)
async def test_mcts_that_grows_its_tree(questions: int, simulations: int, depth: int, keeps: float) -> None:
    model = SimulatedModel(sums(questions, accuracy=0.4), judge=binary(0.8, 0.3), keeps=keeps)
    measured = await measure(model, "mcts", simulations=simulations, depth=depth)
    trials = 3_000
    theory, calls = expected.tree_search(0.4, simulations, 0.8, 0.3, trials, 1, exchanges=depth, keeps=keeps)
    agrees(measured, theory, trials)
    costs(measured, calls, trials)


async def test_mcts_one_simulation_after_the_other() -> None:
    """Without waves, and without growing, it is a bandit over the first replies."""
    model = SimulatedModel(sums(500, accuracy=0.4), judge=binary(0.6, 0.2))
    shape = {"simulations": 16, "actions": 4, "parallel": 1, "exploration": 1.5}
    measured = await measure(model, "mcts", depth=0, tree_depth=1, **shape)
    trials = 3_000
    theory, calls = expected.tree_search(
        0.4, 16, 0.6, 0.2, trials, 1, actions=4, parallel=1, levels=1, exploration=1.5
    )
    agrees(measured, theory, trials)
    costs(measured, calls, trials)
