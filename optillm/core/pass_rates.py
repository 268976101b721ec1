"""How many of a question's own tests candidates pass, in the run's sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from optillm.core.llm import LLM
from optillm.core.public_tests import PublicTests, candidate_code, passed, program
from optillm.core.reply import Reply
from optillm.protocol.errors import SandboxUnavailable

SECONDS = 10.0
MEMORY_MB = 512


async def pass_rates(llm: LLM, tests: PublicTests, candidates: Sequence[Reply]) -> list[float] | None:
    """The share of the tests that each candidate passes, 0 to 1; None if they cannot be run here."""
    codes = await asyncio.to_thread(
        lambda: [candidate_code(c.text, truncated=c.truncated) for c in candidates]
    )

    async def rate(index: int, code: str | None) -> float:
        if code is None:
            return 0.0
        # Not the mark of the prompts: whoever wrote the candidate has seen that one.
        mark = f"{llm.run.rng(f'tests/{llm.pipeline}/{index}').getrandbits(64):016x}"
        ran = await llm.sandbox.run(program(code, tests, mark), timeout=SECONDS, memory_mb=MEMORY_MB)
        return passed(ran.stdout, mark)

    try:
        return await llm.gather(*(rate(i, code) for i, code in enumerate(codes)))
    except SandboxUnavailable as error:
        await llm.note("tests.not_run", reason=error.message)
        return None
