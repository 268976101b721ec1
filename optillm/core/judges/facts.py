"""Judges that do not ask a language model for its opinion: tests, a known answer, a reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optillm.core.answers import final_answer, same_answer
from optillm.core.judges.params import JudgeParams
from optillm.core.llm import LLM
from optillm.core.mathematics import equal_answers, formula
from optillm.core.pass_rates import pass_rates
from optillm.core.prompts import helper
from optillm.core.public_tests import PublicTests, find_tests
from optillm.core.reply import Reply
from optillm.core.task import Message, Messages, Task
from optillm.protocol.errors import SandboxUnavailable


def test_prompt(task: Task, nonce: str) -> Messages:
    """Ask for tests of a program that does not exist yet (CodeT, arXiv:2207.10397, section 2.1)."""
    return helper(
        "You write tests for Python programs.",
        task,
        "Write five to ten tests for the code that the next reply must contain, by what the request says "
        "and not by any code: single-line assert statements that call what was asked for by the name that "
        "the request gives it. Cover usual and extreme cases; leave out what the request leaves open. "
        "Answer with one fenced block of assert statements and nothing else.",
        nonce,
    )


async def tests(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """The share of the request's own tests that each candidate's code passes; without any, the model
    writes some.
    """
    found = find_tests(task.text) or await _written(llm, task, p, stage)
    rates = await pass_rates(llm, found, candidates) if found else None
    return [None] * len(candidates) if rates is None else list(rates)


async def exact(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """1 for a final answer that equals the reference, else 0.

    What is not the same text or number is compared as mathematics, by ``math-verify`` in the sandbox.
    """
    reference = p.judge_reference or ""

    async def right(candidate: Reply) -> bool:
        answer = final_answer(candidate.text)
        if answer is not None and same_answer(answer, reference):
            return True
        given = candidate.visible if answer is None else formula(answer)
        return await equal_answers(llm, [formula(reference), given]) == [0, 0]

    async def checked(candidate: Reply) -> float | None:
        try:
            return float(await right(candidate))
        except SandboxUnavailable as error:
            await llm.note("exact.not_run", reason=error.message)
            return 0.0

    return await llm.gather(*(checked(c) for c in candidates))


async def reward(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """The server's reward model's opinion, squashed to 0 to 1 by the logistic function."""

    async def scored(index: int, candidate: Reply) -> float | None:
        said = (*task.messages, Message(candidate.message))
        value = await llm.attempt(llm.reward(stage, said, tag=str(index)))
        return None if value is None else (1 + math.tanh(value / 2)) / 2

    return await llm.gather(*(scored(i, c) for i, c in enumerate(candidates)))


async def _written(llm: LLM, task: Task, p: JudgeParams, stage: str) -> PublicTests | None:
    prompt = test_prompt(task, llm.nonce)
    reply = await llm.try_ask(
        f"{stage}.tests", prompt, temperature=0.1, model=p.judge_model, cap="intermediate"
    )
    found = find_tests(reply.visible) if reply else None
    await llm.note("judge.tests", written=len(found) if found else 0)
    return found
