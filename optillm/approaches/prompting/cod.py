"""Chain of draft: reasoning in minimal notes instead of sentences.

The model notes each step in a few words, only what the step needs, and gives its answer after a
separator. Accuracy comes near that of a chain of thought at a fraction of its tokens and its time.

Source: Xu et al., Chain of Draft, arXiv:2502.18600, section 3 (the instruction and the limit of five
words a step) and section 4 (experiments). The limit is an instruction; nothing enforces it, as in the
paper. The paper shows worked examples of each task; here one short example stands in their place, because
the paper finds the gain small and the drafts long without any. ``cod_example=false`` is the zero-shot form.

Use it for arithmetic, logic and short factual reasoning when latency or price matters. It is of little
use for long texts, where there is no reasoning to shorten.

The client sees the answer only; ``cod_expose_drafts`` puts the drafts into ``reasoning_content``. A
reply without the separator, or with nothing after it, is returned as it is. A client that asks for JSON
output gets no drafts: its format leaves no room for them.
"""

from __future__ import annotations

from optillm.approaches.prompting.separated import MARK, AnswerView, free_text, shown
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer
from optillm.core.task import Task

EXAMPLE = f"""\

For example, to the question how many of 4 rows of 9 books are left on a shelf when 7 are lent out:
4 × 9 = 36
36 − 7 = 29
{MARK} 29"""


class Params(ApproachParams):
    """Parameters of ``cod``."""

    words: int = field(5, "most words of one draft step", ge=1, le=20)
    example: bool = field(True, "show a worked example in the instruction")
    expose_drafts: bool = field(False, "put the drafts into reasoning_content")


def instruction(p: Params) -> str:
    """Ask for drafts of at most so many words, then the answer."""
    return (
        "Before you reply, reason in drafts instead of sentences: one step on each line, at most "
        f"{p.words} {'word' if p.words == 1 else 'words'} a step, nothing but what the step needs, like "
        f"an equation or a name. When the drafts are done, write {MARK} and after it the complete reply, "
        "in the form that the user asked for. Only what follows the separator is shown to the user."
        + (f"\n{EXAMPLE}" if p.example else "")
    )


@approach(
    "cod",
    family="prompting",
    title="Chain of draft",
    paper="arXiv:2502.18600",
    calls="σ(n)",
    depth="1",
    worst=lambda p, sigma: sigma(1),
    handles_n=True,
)
async def cod(task: Task, llm: LLM, p: Params) -> Answer:
    """Draft in a few words a step, answer after the separator; return the answers."""
    if not free_text(task):
        plain = await llm.answers("cod.answer", task.messages, task.options.n)
        return Answer(tuple(r for r in plain if r.usable))
    replies = await llm.answers(
        "cod.answer",
        task.instructed(instruction(p)).messages,
        task.options.n,
        view=lambda: AnswerView(p.expose_drafts),
    )
    choices = (shown(r, p.expose_drafts) for r in replies)
    return Answer(tuple(r for r in choices if r.usable))
