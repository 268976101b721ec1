"""What the library of the AB-MCTS authors chooses, given scores and random numbers that are known.

``treequest`` draws its random numbers from numpy and scipy; here they come from a generator that is seeded
before every choice, so that another implementation can be given the same ones. Run as a program it writes
the choices of all cases to ``treequest_choices.json``, which the tests without the library read:
``python -m tests.compare.treequest_choices``, with the group ``compare`` installed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

RECORDED = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Case:
    """A search with recorded scores: the i-th answer has the i-th score.

    Args:
        batch: choices made before any of their scores is told.
    """

    prior: str
    models: tuple[str, ...]
    batch: int
    seed: int
    scores: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.prior}-{len(self.models)}-{self.batch}-{self.seed}"


def cases() -> list[Case]:
    """Searches of 48 answers: scores spread out, coarse as a judge's, rising, or all or nothing."""
    made = []
    for prior in ("gaussian", "beta"):
        for models in (("a",), ("a", "b", "c")):
            for batch in (1, 4):
                for seed in range(4):
                    rng = Random(f"{prior}/{models}/{batch}/{seed}")
                    drawn = (
                        [rng.random() for _ in range(48)],
                        [rng.randint(0, 10) / 10 for _ in range(48)],
                        [min(1.0, i / 60 + 0.2 * rng.random()) for i in range(48)],
                        [float(rng.random() < 0.3) for _ in range(48)],
                    )[seed]
                    made.append(Case(prior, models, batch, seed, tuple(drawn)))
    return made


def seeded(case: Case, choice: int) -> Random:
    """The random numbers of one choice."""
    return Random(f"{case.name}/{choice}")


class Randomness:
    """Stands in for numpy.random and the distributions of scipy inside treequest."""

    def __init__(self) -> None:
        self.rng = Random(0)

    def beta(self, a: float, b: float) -> float:
        return self.rng.betavariate(a, b)

    def inverse_gamma(self, a: float, scale: float) -> float:
        return scale / max(self.rng.gammavariate(a, 1), 1e-300)

    def normal(self, mean: float, deviation: float) -> float:
        return self.rng.gauss(mean, deviation)


def treequest_choices(case: Case) -> list[list[Any]]:
    """The node (child numbers from the root) and the model that treequest chooses for each answer."""
    import numpy
    import treequest
    from treequest.algos.ab_mcts_a import prob_state

    random = Randomness()
    saved = {name: getattr(prob_state, name) for name in ("np", "beta", "invgamma")}
    draw = prob_state.NodeProbState.thompson_sampling

    def sampling(self: Any, beliefs: Any) -> Any:
        """At a leaf there is nothing to continue: what the library draws there decides nothing."""
        if self.node_probas["shared"]:
            return draw(self, beliefs)
        kept, random.rng = random.rng, Random(0)
        try:
            return draw(self, beliefs)
        finally:
            random.rng = kept

    prob_state.np = SimpleNamespace(
        mean=numpy.mean, var=numpy.var, sqrt=numpy.sqrt, random=SimpleNamespace(normal=random.normal)
    )
    prob_state.beta = SimpleNamespace(rvs=random.beta)
    prob_state.invgamma = SimpleNamespace(rvs=random.inverse_gamma)
    prob_state.NodeProbState.thompson_sampling = sampling
    try:
        return _search(treequest.ABMCTSA(dist_type=case.prior), case, random)
    finally:
        prob_state.NodeProbState.thompson_sampling = draw
        for name, value in saved.items():
            setattr(prob_state, name, value)


def _search(algorithm: Any, case: Case, random: Randomness) -> list[list[Any]]:
    state = algorithm.init_tree()
    chosen: list[list[Any]] = []
    while len(chosen) < len(case.scores):
        trials = []
        for _ in range(min(case.batch, len(case.scores) - len(chosen))):
            random.rng = seeded(case, len(chosen))
            state, trial = algorithm.ask(state, list(case.models))
            trials.append(trial)
            chosen.append([path_of(state.tree, trial.node_to_expand), trial.action])
        for number, trial in enumerate(trials, len(chosen) - len(trials)):
            state = algorithm.tell(state, trial.trial_id, ("an answer", case.scores[number]))
    return chosen


def path_of(tree: Any, number: int) -> list[int]:
    """A node of treequest's tree as child numbers from the root."""
    node = tree.get_node(number)
    path: list[int] = []
    while node.parent is not None:
        path.insert(0, next(i for i, child in enumerate(node.parent.children) if child is node))
        node = node.parent
    return path


if __name__ == "__main__":
    choices = {case.name: treequest_choices(case) for case in cases()}
    lines = [f'"{name}": {json.dumps(made, separators=(",", ":"))}' for name, made in choices.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
