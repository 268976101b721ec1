"""A technique that remembers, for tests: it counts, and notes, and tells what it found."""

from __future__ import annotations

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams
from optillm.core.registry import Registry, approach
from optillm.core.reply import Answer, Reply
from optillm.core.state import Note
from optillm.core.task import Task
from optillm.plugins import builtin_registry


class NoParams(ApproachParams):
    pass


@approach("remembers", family="test", title="Remembers", calls="1", depth="1", worst=lambda p, sigma: 1)
async def remembers(task: Task, llm: LLM, p: NoParams) -> Answer:
    """Ask, note the question, and answer with all questions so far."""
    await llm.answer("remembers.ask", task.messages)
    notes = [Note(task.question.text if task.question else "", "the question", 1.0, 1.0)]
    await llm.state.add_notes("c", notes, most=1000, max_age=1e9, now=1.0)
    known = await llm.state.notes("c")
    return Answer((Reply.of(f"{await llm.state.count('asked')}: {' '.join(n.text for n in known)}"),))


def registry() -> Registry:
    """Everything, and this."""
    return Registry([*builtin_registry(), remembers])
