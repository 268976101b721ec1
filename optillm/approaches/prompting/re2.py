"""Re-reading: the question is asked twice, so that its second pass sees all of it.

From *Re-Reading Improves Reasoning in Large Language Models* (arXiv:2309.06275). A causal model reads
a question left to right; what it made of the first words could not know the last ones. The question is
given, then "Read the question again:", then the question once more. Two readings are best in the
paper, more than three tend to hurt. Only the last user message is repeated, never the conversation;
images are not duplicated. In a chain, ``re2`` hands on the rewritten question: ``re2&bon``.
"""

from __future__ import annotations

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer
from optillm.core.task import Task

SEPARATOR = "Read the question again:"
STEP_BY_STEP = "Let's think step by step."


class Params(ApproachParams):
    """Parameters of ``re2``."""

    times: int = field(2, "how often the question is read", ge=2, le=3)
    cot: bool = field(False, "append a step-by-step trigger")


def reread(task: Task, p: Params) -> Task:
    """The task with its question repeated; images are not duplicated."""
    question = task.question
    if question is None or not question.text:
        return task
    again = f"{SEPARATOR}\n{question.text}"
    lines = [again] * (p.times - 1) + [STEP_BY_STEP] * p.cot
    content = question.raw.get("content")
    if isinstance(content, str):
        return task.replacing_question(question.with_content("\n".join([content, *lines])))
    part = {"type": "text", "text": "\n".join(lines)}
    return task.replacing_question(question.with_content((*question.parts, part)))


@approach(
    "re2",
    family="prompting",
    title="Re-reading",
    paper="arXiv:2309.06275",
    calls="σ(n)",
    depth="1",
    worst=lambda p, sigma: sigma(1),
    handles_n=True,
    rewrite=reread,
)
async def re2(task: Task, llm: LLM, p: Params) -> Answer:
    """Ask once, with the question read twice; empty choices are dropped."""
    replies = await llm.answers("re2.answer", reread(task, p).messages, task.options.n)
    return Answer(tuple(r for r in replies if r.usable))
