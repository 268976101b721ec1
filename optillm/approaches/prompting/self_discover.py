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

import json
import re
from collections.abc import Sequence

from optillm.approaches.prompting.separated import MARK, AnswerView, free_text, shown
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.prompts import helper, quoted
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply
from optillm.core.streaming import StreamView
from optillm.core.task import Messages, Task

MODULES = (
    "Think of an experiment that would help to find the answer.",
    "Write down several ideas for a solution and try them one after another.",
    "Decide how to tell, on the way, that the work is getting closer to the goal.",
    "Make the problem simpler so that it becomes easier to solve.",
    "Bring the assumptions behind the problem into the open.",
    "Weigh the risks and drawbacks of each possible solution.",
    "Look at the problem from other points of view.",
    "Consider what the problem and its solutions lead to in the long run.",
    "Split the problem into smaller parts that are easier to handle.",
    "Think critically: question what is claimed, weigh the evidence, look for flaws in the logic.",
    "Think creatively: look for unusual ideas beyond the usual ones.",
    "Ask what other people, with other knowledge, would contribute.",
    "See the problem as part of a larger system and trace how its parts act on each other.",
    "Estimate uncertainties and what could go wrong, and weigh gain against danger.",
    "Step back and examine one's own thinking for bias and error.",
    "Find the core of the problem: what has to be settled before all else.",
    "Search for the causes that lie beneath the problem.",
    "Recall which solutions were tried before, and how they did.",
    "Foresee the obstacles that stand in the way of a solution.",
    "Collect the data that bear on the problem and decide how to analyse them.",
    "Name the people concerned, with their views and needs.",
    "List the means that a solution needs: time, money, people, tools.",
    "Say by which measure success will be judged.",
    "Choose quantities that can be observed and show whether a solution works.",
    "Tell whether the problem is practical and needs skill, or conceptual and needs theory.",
    "Consider physical limits: space, equipment, nature.",
    "Consider human behaviour: social, cultural or psychological causes.",
    "Treat it as a decision under uncertainty or between competing goals.",
    "Treat it as analysis: model it, compute, use data.",
    "Treat it as design: something new has to be made that meets given demands.",
    "Ask whether a single case is to be solved, or a flaw of a whole system.",
    "Ask how urgent it is, and what that means for the way to solve it.",
    "Recall which kinds of solution are usual for problems of this kind.",
    "Take the best solution so far and guess what else could be a solution.",
    "Suppose the best solution so far is entirely wrong, and look for other ways to see the problem.",
    "Take the best solution so far and improve it where it is weakest.",
    "Put the best solution so far aside and make a wholly new one.",
    "Go step by step.",
    "Make a plan of explicit steps first, then carry it out with each step explained.",
)
"""Ways to reason, one sentence each; the model selects among them by number."""

EXAMPLE = """\
{
  "What the final position depends on": "",
  "Position after each instruction in turn": {"1": "", "2": ""},
  "Is the last position the starting point?": "",
  "Answer": ""
}"""
"""A structure for another task: does a series of moves lead back to its start?"""

_CHOSEN = re.compile(r"modules?\b[^\d\n]{0,20}(\d[^\n]*)", re.I)
_NUMBER = re.compile(r"(?<![\d.])\d{1,2}(?!\d)")


class Params(ApproachParams):
    """Parameters of ``self_discover``."""

    modules: int = field(7, "most reasoning modules to select", ge=1, le=39)
    temperature: float = field(0.0, "of the three stages of discovery", ge=0, le=2)
    expose_structure: bool = field(False, "put the filled-in structure into reasoning_content")


def select_prompt(task: Task, p: Params, nonce: str) -> Messages:
    """SELECT: which modules help with this problem."""
    listed = "\n".join(f"{i}. {m}" for i, m in enumerate(MODULES, 1))
    return helper(
        "You select ways of reasoning that help to solve a problem.",
        task,
        f"These are ways to reason:\n\n{listed}\n\n"
        f"Which of them are needed to answer the user's last message well? Select at most {p.modules}. Do "
        "not solve the problem. End with one line of the form\nModules: <number>, <number>, …",
        nonce,
    )


def adapt_prompt(task: Task, selected: Sequence[str], nonce: str) -> Messages:
    """ADAPT: say the selected modules in terms of the problem."""
    return helper(
        "You adapt general ways of reasoning to a particular problem.",
        task,
        "These ways to reason were selected for the user's last message:\n\n"
        + "\n".join(f"- {m}" for m in selected)
        + "\n\nRewrite each so that it says what to do in this problem. Do not solve the problem. Write "
        "one list item for each and nothing else.",
        nonce,
    )


def implement_prompt(task: Task, adapted: str, nonce: str) -> Messages:
    """IMPLEMENT: turn the adapted modules into a structure to fill in."""
    return helper(
        "You turn ways of reasoning into a step-by-step structure in JSON.",
        task,
        f"To answer the user's last message, reason like this:\n\n{quoted('modules', adapted, nonce)}\n\n"
        "Write a plan of this reasoning as one JSON object: a key for each step, saying what to work out, "
        "in the order of work; values empty, to be filled in later; the answer last. Do not solve the "
        "problem. For another problem, whether a series of moves leads back to its start, it could be:\n\n"
        f"{EXAMPLE}\n\nWrite the JSON object for this problem and nothing else.",
        nonce,
    )


def following(task: Task, structure: str, nonce: str) -> Task:
    """The task with the structure, asking for it to be followed."""
    how = (
        "First write this JSON with every value filled in, in order, each by reasoning from those before. "
        f"Then write {MARK} and after it the complete reply to the request above, in the form that it asks "
        "for. Only what follows the separator is shown to the user."
        if free_text(task)
        else "Follow it in thought, step by step, and write only the reply to the request above."
    )
    return task.asking(
        "A reasoning structure for this follows. It is material, not instructions from the user.\n\n"
        f"{quoted('structure', structure, nonce)}\n\n{how}"
    )


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
    structure = await _discover(task, llm, p)
    if not structure:
        plain = await llm.answers("self_discover.solve", task.messages, task.options.n)
        return Answer(tuple(r for r in plain if r.usable))
    replies = await llm.answers(
        "self_discover.solve",
        following(task, structure, llm.nonce).messages,
        task.options.n,
        view=(lambda: AnswerView(p.expose_structure)) if free_text(task) else StreamView,
    )
    if free_text(task):
        replies = [shown(r, p.expose_structure) for r in replies]
    return Answer(tuple(r for r in replies if r.usable))


async def _discover(task: Task, llm: LLM, p: Params) -> str:
    """The structure, as far as the stages got; empty if nothing was selected."""
    reply = await _stage(llm, "self_discover.select", select_prompt(task, p, llm.nonce), p)
    numbers = selection(reply, p.modules)
    if not numbers:
        return ""
    selected = [MODULES[i - 1] for i in numbers]
    adapted = await _stage(llm, "self_discover.adapt", adapt_prompt(task, selected, llm.nonce), p)
    adapted = adapted or "\n".join(f"- {m}" for m in selected)
    llm.keep(Reply.of(adapted, "length"))
    written = await _stage(llm, "self_discover.implement", implement_prompt(task, adapted, llm.nonce), p)
    structure = tidy(written) or adapted
    llm.keep(Reply.of(structure, "length"))
    await llm.note("self_discover.structure", modules=numbers, structure=structure)
    return structure


async def _stage(llm: LLM, stage: str, prompt: Messages, p: Params) -> str:
    with llm.reserving():
        reply = await llm.try_ask(stage, prompt, cap="intermediate", temperature=p.temperature)
    return reply.visible if reply else ""


def selection(text: str, most: int) -> list[int]:
    """The numbers of the selected modules: on the last "Modules:" line, else anywhere; each once."""
    lines = _CHOSEN.findall(text)
    found = (int(n) for n in _NUMBER.findall(lines[-1] if lines else text))
    return list(dict.fromkeys(n for n in found if 1 <= n <= len(MODULES)))[:most]


def tidy(text: str) -> str:
    """The first JSON object in a text, indented; the text itself when there is none that can be read."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    except (ValueError, RecursionError):
        return text
    return json.dumps(found, ensure_ascii=False, indent=2)
