"""Self-discover: the model composes a reasoning structure for the problem, then follows it.

From a fixed list of ways to reason the model selects those that help (SELECT), rephrases them for the
problem at hand (ADAPT), and turns them into a plan of steps in JSON whose values are still empty
(IMPLEMENT). The last call fills the plan in, step by step, and ends with the reply.

Source: Zhou et al., Self-Discover, arXiv:2402.03620, section 2 (stage 1: SELECT, ADAPT, IMPLEMENT; stage
2: solving with the structure). The 39 modules cover the kinds of the paper's list in words of our own. The
paper discovers one structure for a task and uses it for all its instances; a request is all that is known
here, so the structure is made for it, and serves all ``n`` choices. The paper shows IMPLEMENT a structure
that people wrote for another task; a small one of that kind stands in the prompt.

Use it for problems that need several kinds of thinking: planning, logic with many conditions, questions
about situations and people. For plain arithmetic it is too much.

The client sees the reply only; ``self_discover_expose_structure`` puts the filled-in structure into
``reasoning_content``. A stage that fails is passed over: without a selection the plain question is asked,
unadapted modules are implemented as they are, and without JSON the text of the last stage is followed. For
a client that asks for JSON output the structure is followed in thought and not written. When the budget
has only one call left, that call answers; when it ends before the answer, the structure so far is
returned, marked as cut short.
"""

from __future__ import annotations

from optillm.approaches.prompting.discovering import discover, following
from optillm.approaches.prompting.separated import AnswerView, free_text, shown
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer
from optillm.core.streaming import StreamView
from optillm.core.task import Task


class Params(ApproachParams):
    """Parameters of ``self_discover``."""

    modules: int = field(7, "most reasoning modules to select", ge=1, le=39)
    temperature: float = field(0.0, "of the three stages of discovery", ge=0, le=2)
    expose_structure: bool = field(False, "put the filled-in structure into reasoning_content")


@approach(
    "self_discover",
    family="prompting",
    title="Self-discovered reasoning structure",
    paper="arXiv:2402.03620",
    calls="3 + σ(n)",
    depth="4",
    worst=lambda p, sigma: 3 + sigma(1),
    handles_n=True,
)
async def self_discover(task: Task, llm: LLM, p: Params) -> Answer:
    """Select, adapt and implement a structure; solve by following it."""
    found = await discover(task, llm, "self_discover", most=p.modules, temperature=p.temperature)
    if not found.guide:
        plain = await llm.answers("self_discover.solve", task.messages, task.options.n)
        return Answer(tuple(r for r in plain if r.usable))
    replies = await llm.answers(
        "self_discover.solve",
        following(task, found.guide, llm.nonce).messages,
        task.options.n,
        view=(lambda: AnswerView(p.expose_structure)) if free_text(task) else StreamView,
    )
    if free_text(task):
        replies = [shown(r, p.expose_structure) for r in replies]
    return Answer(tuple(r for r in replies if r.usable))
