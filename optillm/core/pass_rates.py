"""How many of a question's own tests candidates pass, in the run's sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from optillm.core.llm import LLM
from optillm.core.public_tests import PublicTests, candidate_code, failures, passed, program
from optillm.core.reply import Reply
from optillm.protocol.errors import SandboxUnavailable

SECONDS = 10.0
MEMORY_MB = 512


@dataclass(frozen=True, slots=True)
class Results:
    """How a candidate did.

    Args:
        rate: the share of the tests that it passes, 0 to 1.
        failures: the tests that it does not pass, each with what happened instead.
    """

    rate: float
    failures: tuple[str, ...]


async def pass_rates(llm: LLM, tests: PublicTests, candidates: Sequence[Reply]) -> list[float] | None:
    """The share of the tests that each candidate passes, 0 to 1; None if they cannot be run here."""
    results = await run_tests(llm, tests, candidates)
    return None if results is None else [result.rate for result in results]


async def run_tests(llm: LLM, tests: PublicTests, candidates: Sequence[Reply]) -> list[Results] | None:
    """How each candidate does; None if tests cannot be run here."""
    codes = await asyncio.to_thread(
        lambda: [candidate_code(c.text, truncated=c.truncated) for c in candidates]
    )

    async def run(index: int, code: str | None) -> Results:
        if code is None:
            return Results(0.0, ("There is no complete Python program in it.",))
        # Not the mark of the prompts: whoever wrote the candidate has seen that one.
        mark = f"{llm.run.rng(f'tests/{llm.pipeline}/{index}').getrandbits(64):016x}"
        ran = await llm.sandbox.run(program(code, tests, mark), timeout=SECONDS, memory_mb=MEMORY_MB)
        return Results(passed(ran.stdout, mark), tuple(failures(ran.stdout, tests, mark)))

    try:
        return await llm.gather(*(run(i, code) for i, code in enumerate(codes)))
    except SandboxUnavailable as error:
        await llm.note("tests.not_run", reason=error.message)
        return None
