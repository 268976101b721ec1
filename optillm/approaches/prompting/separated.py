"""Replies in two parts, work and answer, with a separator between them; the client sees the answer.

Shared by the techniques of this folder that ask for such a reply.
"""

from __future__ import annotations

import re

from optillm.core.answers import strip_think
from optillm.core.reply import Reply
from optillm.core.streaming import StreamView
from optillm.core.task import Task

MARK = "####"
_MARK = re.compile(r"#{4,}")
_HELD = ("<think>", "</think>")


def free_text(task: Task) -> bool:
    """Whether the client leaves the form of the reply open: with JSON output there is no room for work."""
    wanted = task.options.fields.get("response_format")
    return wanted is None or wanted.get("type", "text") == "text"


def split_answer(text: str) -> tuple[str, str]:
    """Split a reply into (work, answer) at the first separator.

    Without one, or with nothing after it, all of the text is the answer.
    """
    visible = strip_think(text)
    work, answer = _parts(visible)
    if answer:
        return work.strip(), answer
    return "", _MARK.sub("", visible).strip()


def shown(reply: Reply, expose: bool) -> Reply:
    """The reply as its client sees it: the answer, and the work as reasoning if wanted."""
    if reply.tool_calls and not reply.text:
        return reply
    work, answer = split_answer(reply.text)
    thoughts = "\n".join(t for t in (reply.reasoning, work) if t)
    return reply.with_text(answer, thoughts if expose else None)


class AnswerView(StreamView):
    """Shows the answer as it comes; the work is swallowed, or shown as reasoning."""

    def __init__(self, expose: bool) -> None:
        self.expose = expose
        self.text = ""
        self.work_shown = 0
        self.answer_shown = 0

    def feed(self, text: str) -> tuple[str, str]:
        """A piece of the reply; returns what of the answer and of the work is certain now."""
        self.text += text
        visible = strip_think(self.text)
        mark = _MARK.search(visible)
        work = visible[: mark.start()] if mark else visible[: _certain(visible, (MARK, *_HELD))]
        reasoning = work[self.work_shown :]
        self.work_shown = max(self.work_shown, len(work))
        content = ""
        if mark:
            answer = visible[mark.end() :].strip()
            # White space at the end of what came so far may be inside the answer, or after it.
            answer = answer[: _certain(answer, _HELD)].rstrip()
            content = answer[self.answer_shown :]
            self.answer_shown = max(self.answer_shown, len(answer))
        return content, reasoning if self.expose else ""

    def close(self, truncated: bool) -> tuple[str, str]:
        """The end of the reply; returns what was held back."""
        return split_answer(self.text)[1][self.answer_shown :], ""


def _parts(visible: str) -> tuple[str, str]:
    mark = _MARK.search(visible)
    return (visible[: mark.start()], visible[mark.end() :].strip()) if mark else (visible, "")


def _certain(text: str, marks: tuple[str, ...]) -> int:
    """How much of the text cannot be the beginning of a mark."""
    for size in range(min(max(map(len, marks)) - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return len(text) - size
    return len(text)
