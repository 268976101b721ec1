"""A simulated model of many kinds of problems, and a simulated sandbox for the programs that it writes.

Techniques run on it as on any other model. It is right with each problem's own chance, judges by the
problem's own judge, and writes programs that settle a problem with the problem's own chance; nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from random import Random
from types import MappingProxyType

from optillm.core.task import SYSTEM_ROLES, Message
from optillm.core.tools import Outcome, Session
from optillm.evals.routing.problems import Problem
from optillm.evals.simulated import Judge, Question, SimulatedModel
from optillm.protocol.errors import SandboxUnavailable

_WRITES_PROGRAMS = ("into programs for solvers", "repair programs for solvers")
_PRINTED = re.compile(r"print\((?P<quote>\\?['\"])The answer is (?P<answer>.*?)(?P=quote)\)")
_OUTPUT = re.compile(r"<output-[0-9a-f]+>\nThe answer is (.*?)\s*\n</output-")


class World(SimulatedModel):
    """The simulated model; see :class:`optillm.evals.simulated.SimulatedModel`.

    Args:
        problems: what it knows.
        seed: of its draws.
    """

    def __init__(self, problems: Iterable[Problem], *, seed: int) -> None:
        super().__init__(problems, seed=seed, keeps=0.0)

    def write(self, question: Question, answer: str, rng: Random) -> str:
        """A reply that ends in an answer, or a text that is good or poor."""
        if not (isinstance(question, Problem) and question.open):
            return super().write(question, answer, rng)
        words = " ".join(f"{rng.getrandbits(24):06x}" for _ in range(8))
        sign = 2 * rng.getrandbits(40) + (answer != question.answer)
        return f"{words}\n{words[::-1]}\n(draft {sign:012x})"

    def judge_of(self, question: Question) -> Judge:
        """The problem's own judge."""
        return question.judge if isinstance(question, Problem) else self.judge

    def _reply(self, messages: Sequence[Message], rng: Random) -> str:
        told = "\n".join(m.text for m in messages if m.role in SYSTEM_ROLES)
        if any(words in told for words in _WRITES_PROGRAMS):
            return self._program(messages, rng)
        if found := _OUTPUT.search(messages[-1].text):
            return f"Computed {rng.getrandbits(48):012x}.\nThe answer is {found[1]}"
        return super()._reply(messages, rng)

    def _program(self, messages: Sequence[Message], rng: Random) -> str:
        question = self._question([("user", messages[-1].text)])
        if not isinstance(question, Problem) or rng.random() >= 2 * question.solver:
            return "<solver>no</solver>"
        # Some programs are wrong, the more so the fewer problems of the kind can be put into one.
        right = rng.random() < max(question.solver, 0.5)
        answer = question.answer if right else rng.choice(question.wrong)
        return f"<solver>yes</solver>\n```python\nprint({'The answer is ' + answer!r})\n```"


class SimulatedSandbox:
    """A sandbox that runs nothing: it prints what a program of :class:`World` would print."""

    async def start(self) -> tuple[str, ...]:
        """The libraries that programs may ask for."""
        return ("z3", "sympy")

    async def run(
        self,
        code: str,
        *,
        timeout: float = 30.0,
        memory_mb: int = 1024,
        files: Mapping[str, bytes] = MappingProxyType({}),
        stdin: str = "",
        keep_files: bool = False,
    ) -> Outcome:
        """What the program prints; an error if it is none of ours."""
        found = _PRINTED.search(code)
        if found is None:
            return Outcome("error", 1, "", "not a simulated program", 0.0, MappingProxyType({}))
        return Outcome("ok", 0, f"The answer is {found['answer']}\n", "", 0.0, MappingProxyType({}))

    def session(
        self,
        *,
        timeout: float = 30.0,
        memory_mb: int = 1024,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> AbstractAsyncContextManager[Session]:
        """There is none: no technique that the simulation covers explores by code."""
        raise SandboxUnavailable("a simulated sandbox has no sessions")

    async def aclose(self) -> None:
        """Nothing to close."""
