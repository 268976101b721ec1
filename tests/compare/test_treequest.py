"""AB-MCTS against the library of its authors: the same scores and random numbers, the same choices."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from optillm.approaches.search.ab_mcts import PRIORS, Tree, Trial
from optillm.core.reply import Reply
from tests.compare.treequest_choices import RECORDED, Case, cases, path_of, seeded, treequest_choices

CASES = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
ANSWER = Reply.of("an answer")


def our_choices(case: Case) -> list[list[Any]]:
    tree = Tree(PRIORS[case.prior](), case.models, Random(0))
    chosen: list[list[Any]] = []
    while len(chosen) < len(case.scores):
        trials = []
        for _ in range(min(case.batch, len(case.scores) - len(chosen))):
            tree.rng = seeded(case, len(chosen))
            trials.append(tree.ask())
            chosen.append([list(trials[-1].node.path), trials[-1].model])
        for number, trial in enumerate(trials, len(chosen) - len(trials)):
            tree.tell(trial, ANSWER, case.scores[number])
    return chosen


@CASES
def test_choices_are_those_of_treequest(case: Case) -> None:
    assert our_choices(case) == json.loads(RECORDED.read_text())[case.name]


def test_the_recorded_searches_go_wide_and_deep() -> None:
    """What is compared has both kinds of choices, every model, and trees of several levels."""
    recorded = json.loads(RECORDED.read_text())
    for prior in PRIORS:
        chosen = [c for name, made in recorded.items() if name.startswith(prior) for c in made]
        levels = Counter(len(path) for path, _ in chosen)
        assert min(levels[0], levels[1], levels[2]) > 50
        assert levels[3] > 0
        assert {model for _, model in chosen} == {"a", "b", "c"}


@CASES
def test_the_record_is_what_treequest_chooses(case: Case) -> None:
    pytest.importorskip("treequest", reason="needs the group 'compare'")
    assert treequest_choices(case) == json.loads(RECORDED.read_text())[case.name]


@pytest.mark.parametrize("prior", PRIORS)
def test_with_its_own_random_numbers_treequest_chooses_as_often(prior: str) -> None:
    """Wide against deep at a given state, ours against the library as it is (chi-square, 1 in 10,000)."""
    treequest = pytest.importorskip("treequest", reason="needs the group 'compare'")
    numpy = pytest.importorskip("numpy")
    numpy.random.seed(1)
    scores = [0.2, 0.9, 0.6, 0.7, 0.3, 0.8]
    places = [(), (), (0,), (0,), (1,), (0, 0)]
    algorithm = treequest.ABMCTSA(dist_type=prior)
    state, tree = algorithm.init_tree(), Tree(PRIORS[prior](), ("a",), Random(1))
    for place, score in zip(places, scores, strict=True):
        ours, theirs = tree.root, state.tree.root
        for number in place:
            ours, theirs = ours.children[number], theirs.children[number]
        # A trial at the place wanted, however the algorithms would have chosen.
        tree.tell(Trial(ours, "a"), ANSWER, score)
        state.thompson_states.get_or_create(theirs, ["a"])
        trial = state.trial_store.create_trial(theirs, "a")
        state = algorithm.tell(state, trial.trial_id, ("an answer", score))
    times = 4000
    mine = Counter(tree.ask().node.path for _ in range(times))
    other: Counter[tuple[int, ...]] = Counter()
    state.all_rewards_store.setdefault("a", [])
    for _ in range(times):
        state, trial = algorithm.ask(state, ["a"])
        other[tuple(path_of(state.tree, trial.node_to_expand))] += 1
    cells = [(mine[place], other[place]) for place in mine.keys() | other.keys()]
    statistic = sum((a - b) ** 2 / (a + b) for a, b in cells)
    assert len(cells) == 7
    assert statistic < 27.9  # the 0.9999 quantile with six degrees of freedom
