"""Discovering a reasoning structure for a task: SELECT, ADAPT, IMPLEMENT (arXiv:2402.03620, section 2).

Shared by the techniques of this folder that follow such a structure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from optillm.approaches.prompting.separated import MARK, free_text
from optillm.core.llm import LLM
from optillm.core.prompts import helper, quoted
from optillm.core.reply import Reply
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


@dataclass(frozen=True)
class Discovered:
    """What the stages have found.

    Args:
        modules: the numbers of the selected modules; none if the selection failed.
        adapted: the modules in terms of the task.
        written: what the last stage wrote.
    """

    modules: Sequence[int] = ()
    adapted: str = ""
    written: str = ""

    @property
    def structure(self) -> str | None:
        """The structure, if one that is JSON was written."""
        return json_object(self.written)

    @property
    def guide(self) -> str:
        """The best there is to follow: the structure, else the words of the last stage that said any."""
        return self.structure or self.written or self.adapted


async def discover(task: Task, llm: LLM, stage: str, *, most: int, temperature: float) -> Discovered:
    """Run the three stages, as far as they get; one call of the budget is left for what follows.

    Args:
        stage: the technique's name, before the stages' own.
        most: modules to select at most, 1 to 39.
        temperature: of the three calls.
    """

    async def ask(name: str, prompt: Messages) -> str:
        with llm.reserving():
            reply = await llm.try_ask(f"{stage}.{name}", prompt, cap="intermediate", temperature=temperature)
        return reply.visible if reply else ""

    numbers = selection(await ask("select", select_prompt(task, most, llm.nonce)), most)
    if not numbers:
        return Discovered()
    selected = [MODULES[i - 1] for i in numbers]
    adapted = await ask("adapt", adapt_prompt(task, selected, llm.nonce))
    adapted = adapted or "\n".join(f"- {m}" for m in selected)
    llm.keep(Reply.of(adapted, "length"), draft=True)
    found = Discovered(numbers, adapted, await ask("implement", implement_prompt(task, adapted, llm.nonce)))
    llm.keep(Reply.of(found.guide, "length"), draft=True)
    await llm.note(f"{stage}.structure", modules=numbers, structure=found.guide)
    return found


def select_prompt(task: Task, most: int, nonce: str) -> Messages:
    """SELECT: which modules help with this problem."""
    listed = "\n".join(f"{i}. {m}" for i, m in enumerate(MODULES, 1))
    return helper(
        "You select ways of reasoning that help to solve a problem.",
        task,
        f"These are ways to reason:\n\n{listed}\n\n"
        f"Which of them are needed to answer the user's last message well? Select at most {most}. Do "
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


def selection(text: str, most: int) -> list[int]:
    """The numbers of the selected modules: on the last "Modules:" line, else anywhere; each once."""
    lines = _CHOSEN.findall(text)
    found = (int(n) for n in _NUMBER.findall(lines[-1] if lines else text))
    return list(dict.fromkeys(n for n in found if 1 <= n <= len(MODULES)))[:most]


def json_object(text: str) -> str | None:
    """The first JSON object in a text, indented; None when there is none that can be read."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    except (ValueError, RecursionError):
        return None
    return json.dumps(found, ensure_ascii=False, indent=2)
