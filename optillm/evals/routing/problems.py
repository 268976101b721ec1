"""Problems of many kinds and difficulties, made by a generator.

They stand for what people ask, and come from no data set. Each has a known answer, wrong ones, and
assumptions about a model: how likely one reply is right, how well the model judges replies, and whether it
can put the problem into a program. That a longer problem is a harder one is built in; so is noise that the
prompt does not show. The numbers of :func:`kinds` are assumptions about a model of middle size, made up and
not measured; docs/router.md shows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from optillm.core.routing.model import logistic
from optillm.evals.routing import texts
from optillm.evals.routing.texts import Posed
from optillm.evals.simulated import Judge, Question


@dataclass(frozen=True)
class Problem(Question):
    """A question with what a model makes of it.

    Args:
        kind: of :func:`kinds`.
        judge: how well the model judges replies to it.
        solver: the chance that the model writes a program that settles it.
        open: whether its replies are texts that cannot be compared, such as code or a poem.
        invented: whether only a simulated model can know the answer.
    """

    kind: str
    judge: Judge
    solver: float
    open: bool
    invented: bool = False

    def is_right(self, text: str) -> bool:
        """Whether a reply is right; of texts that cannot be compared, by the sign that it carries."""
        if not self.open:
            return super().is_right(text)
        sign = SIGN.search(text)
        return sign is not None and int(sign[1], 16) % 2 == 0


SIGN = re.compile(r"\(draft ([0-9a-f]+)\)")
"""Whether a simulated text is good, without words that a technique could compare."""


@dataclass(frozen=True)
class Kind:
    """Problems of a kind.

    Args:
        pose: makes one, with its size.
        easy: log-odds of one reply to be right at size 0.
        harder: by how much they fall with each unit of size.
        noise: standard deviation of what the prompt does not tell.
        judge: chances of a right and of a wrong reply to be found good.
        solver: the chance that a program settles one.
        open: see :class:`Problem`.
    """

    pose: Callable[[Random], Posed]
    easy: float
    harder: float
    judge: tuple[float, float] = (0.5, 0.5)
    noise: float = 0.5
    solver: float = 0.0
    open: bool = False

    def problem(self, name: str, rng: Random) -> Problem:
        """One of them."""
        posed = self.pose(rng)
        accuracy = logistic(self.easy - self.harder * posed.size + rng.gauss(0, self.noise))
        return Problem(
            text=posed.text,
            answer=posed.answer,
            wrong=posed.wrong,
            accuracy=round(accuracy, 4),
            kind=name,
            judge=_judge(*self.judge),
            solver=self.solver,
            open=self.open,
            invented=posed.invented,
        )


def kinds() -> dict[str, Kind]:
    """The kinds, with what is assumed about a model, by name."""
    return {
        "arithmetic": Kind(texts.arithmetic, 4.0, 0.24, (0.6, 0.5), solver=0.95),
        "word_problem": Kind(texts.word_problem, 3.0, 0.7, (0.7, 0.45), solver=0.6),
        "equation": Kind(texts.equation, 2.0, 0.6, (0.8, 0.3), solver=0.95),
        "letters": Kind(texts.letters, 2.0, 0.3, (0.55, 0.5), solver=0.1),
        "logic": Kind(texts.logic, 2.6, 0.7, (0.7, 0.4), solver=0.85),
        "planning": Kind(texts.planning, 0.6, 0.6, (0.95, 0.05), solver=0.1, open=True),
        "code": Kind(texts.code, 2.2, 0.8, (0.85, 0.25), open=True),
        "choice": Kind(texts.choice, 1.6, 0.6, (0.65, 0.5)),
        "fact": Kind(texts.fact, 3.5, 2.4),
        "creative": Kind(texts.creative, 1.8, 0.0, (0.55, 0.5), open=True),
        "language": Kind(texts.language, 2.8, 0.0, (0.55, 0.5), open=True),
        "talk": Kind(texts.talk, 3.2, 0.0, (0.55, 0.5), open=True),
    }


def problems(count: int, seed: int) -> tuple[Problem, ...]:
    """Different problems, the kinds in turn; the same seed makes the same ones."""
    out: dict[str, Problem] = {}
    known = kinds()
    names = list(known)
    rng = Random(f"problems/{seed}")
    tries = 0
    while len(out) < count:
        name = names[len(out) % len(names)]
        problem = known[name].problem(name, rng)
        out.setdefault(problem.text, problem)
        tries += 1
        if tries > 100 * count:
            raise ValueError(f"there are fewer than {count} different problems")
    return tuple(out.values())


def _judge(right: float, wrong: float) -> Judge:
    """A judge that finds so many right and wrong replies good, with better or worse grades."""
    return Judge(
        right=(0.4 * (1 - right), 0.6 * (1 - right), 0.6 * right, 0.4 * right),
        wrong=(0.4 * (1 - wrong), 0.6 * (1 - wrong), 0.6 * wrong, 0.4 * wrong),
        better=min(max(0.5 + (right - wrong) / 2, 0.0), 1.0),
    )
