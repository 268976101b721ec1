"""How many of a question's own tests candidates pass, in the run's sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from optillm.core.llm import LLM
from optillm.core.public_tests import PublicTests, candidate_code, passed, program
from optillm.core.reply import Reply
from optillm.protocol.errors import OptiError

SECONDS = 10.0
MEMORY_MB = 512


class Sandbox(Protocol):
    """Where a program runs that nobody trusts."""

    async def run(self, code: str, *, timeout: float, memory_mb: int) -> Ran:
        """Run Python; timeout in seconds."""
        ...


class Ran(Protocol):
    """What became of a program."""

    @property
    def stdout(self) -> str:
        """What it printed, also if it failed or was stopped."""
        ...


def sandbox_of(llm: LLM) -> Sandbox | None:
    """The run's sandbox; an OptiError, or None, where there is none."""
    return getattr(llm, "sandbox", None)


async def pass_rates(llm: LLM, tests: PublicTests, candidates: Sequence[Reply]) -> list[float] | None:
    """The share of the tests that each candidate passes, 0 to 1; None if they cannot be run."""
    codes = await asyncio.to_thread(
        lambda: [candidate_code(c.text, truncated=c.truncated) for c in candidates]
    )

    async def rate(sandbox: Sandbox, index: int, code: str | None) -> float:
        if code is None:
            return 0.0
        # Not the mark of the prompts: whoever wrote the candidate has seen that one.
        mark = f"{llm.run.rng(f'tests/{llm.pipeline}/{index}').getrandbits(64):016x}"
        ran = await sandbox.run(program(code, tests, mark), timeout=SECONDS, memory_mb=MEMORY_MB)
        return passed(ran.stdout, mark)

    try:
        sandbox = sandbox_of(llm)
        if sandbox is None:
            return None
        return await llm.gather(*(rate(sandbox, i, code) for i, code in enumerate(codes)))
    except OptiError as error:
        await llm.note("tests.not_run", reason=error.message)
        return None
