"""What of a request is the question, what is recent, and what is context too long to be shown whole."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from optillm.approaches.context.document import Document
from optillm.core.prompts import render
from optillm.core.task import SYSTEM_ROLES, Message, Messages, Task
from optillm.core.tokens import count, message_tokens, messages_tokens, over

T = TypeVar("T")
MOVED = "[A long text stood here. What matters of it is in the notes of this conversation.]"
"""Stands where a text was moved out of a message."""
QUERY_TOKENS = 512
"""A longer paragraph is no question."""
_INLINE = 20_000
"""Characters that are counted in less time than it takes to ask a thread."""
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_SENTENCE = re.compile(r"[.!?…]\s|[。！？]|\n")


async def off_loop(size: int, work: Callable[..., T], *args: Any) -> T:
    """Do work on so many characters: in a thread if there are many, so that other requests go on."""
    return work(*args) if size < _INLINE else await asyncio.to_thread(work, *args)


def characters(task: Task) -> int:
    """How long a task is, without reading it."""
    return sum(len(p.get("text") or "") for m in task.messages for p in m.parts)


@dataclass(frozen=True)
class Divided:
    """A request in two: what is read in parts, and what is shown as it is.

    Args:
        context: the long part; empty if there is none.
        task: the rest, with the question; messages that were moved to the context are gone.
        query: the text of the question.
        images: of messages that are gone.
    """

    context: Document
    task: Task
    query: str
    images: tuple[Any, ...] = ()


def units(messages: Messages) -> list[Messages]:
    """Messages in groups that only make sense together: tool calls with all their results."""
    out: list[list[Message]] = []
    for message in messages:
        if message.role in ("tool", "function") and out:
            out[-1].append(message)
        else:
            out.append([message])
    return [tuple(unit) for unit in out]


def turns(messages: Messages) -> list[Messages]:
    """Messages in turns: what the user says, and all that follows until the user speaks again."""
    out: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not out:
            out.append([message])
        else:
            out[-1].append(message)
    return [tuple(turn) for turn in out]


def divide(task: Task, *, verbatim: int, long: int, delimiter: str = "") -> Divided:
    """Find context and question.

    Context is, in the order of the conversation: what stands before the last delimiter in the last user
    message, if it is there; texts of more than ``long`` tokens in any message; and then the oldest
    messages, until the rest has at most ``verbatim`` tokens. The question's message, system messages and
    the ties of tool calls to their results always stay.

    Args:
        task: the request.
        verbatim: tokens of what is shown as it is.
        long: tokens from which on a text is context.
        delimiter: between context and question; empty for none.
    """
    pieces: dict[int, list[tuple[str, str]]] = {}
    messages: list[Message] = []
    query = task.text
    for i, message in enumerate(task.messages):
        if i == task.question_index:
            message, query, moved = _question(message, f"message {i + 1} (user)", long, delimiter)
        else:
            message, moved = _without_long(message, f"message {i + 1} ({message.role})", long)
        messages.append(message)
        pieces[i] = moved
    gone = _oldest_over(messages, task.question_index, verbatim)
    for i in gone:
        # What was long in it is in the context already; around it stands what was said about it.
        said = render((messages[i],)) if messages[i].role != "user" else messages[i].text
        pieces[i].insert(0, (f"message {i + 1} ({messages[i].role})", said))
    kept = [m for i, m in enumerate(messages) if i not in gone]
    images = tuple(image for i in sorted(gone) for image in messages[i].images)
    context = Document.of(piece for i in sorted(pieces) for piece in pieces[i])
    return Divided(context, task.with_messages(kept), query, images)


def _question(
    message: Message, name: str, long: int, delimiter: str
) -> tuple[Message, str, list[tuple[str, str]]]:
    """The question's message without its context; the query; the context."""
    text = message.text
    if delimiter and delimiter in text:
        context, _, query = text.rpartition(delimiter)
        others = [p for p in message.parts if p.get("type") != "text"]
        content = ({"type": "text", "text": query.strip()}, *others) if others else query.strip()
        return message.with_content(content), query.strip(), [(name, context.replace(delimiter, "\n"))]
    texts = [p["text"] for p in message.parts if p.get("type") == "text"]
    if len(texts) == 1 and over(texts[0], long):
        query = find_query(texts[0])
        others = [p for p in message.parts if p.get("type") != "text"]
        content = ({"type": "text", "text": query}, *others) if others else query
        return message.with_content(content), query, [(name, texts[0])]
    short, moved = _without_long(message, name, long)
    query = "\n".join(t for t in texts if not over(t, long))
    if texts and not query.strip():
        # Nothing but long parts: the question stands in the last one.
        query = find_query(texts[-1])
        short = short.adding(query)
    return short, query, moved


def find_query(text: str) -> str:
    """The question in a long text: its last paragraph, with the first if that announces something.

    A last paragraph that is long itself is no question; then it is the first one, if short, else the
    last sentences.
    """
    text = text.strip()
    head = _PARAGRAPH.split(text[: QUERY_TOKENS * 8], 1)[0].strip()
    borders = list(_PARAGRAPH.finditer(text, max(0, len(text) - QUERY_TOKENS * 8)))
    tail = text[borders[-1].end() :].strip() if borders else ""
    head_is_short = len(head) < min(len(text), QUERY_TOKENS * 8) and count(head) <= QUERY_TOKENS
    if tail and count(tail) <= QUERY_TOKENS:
        announces = head_is_short and head != tail and head.endswith((":", "?", "：", "？"))
        return f"{head}\n\n{tail}" if announces else tail
    return head if head_is_short else _last_sentences(text)


def _last_sentences(text: str) -> str:
    start = max(0, len(text) - QUERY_TOKENS)
    border = _SENTENCE.search(text, start, len(text) - 1)
    return text[border.end() if border else start :].strip()


def _without_long(message: Message, name: str, long: int) -> tuple[Message, list[tuple[str, str]]]:
    """A message whose long texts are replaced by a mark; and these texts."""
    moved: list[tuple[str, str]] = []
    parts: list[Any] = []
    for number, part in enumerate(message.parts, 1):
        if part.get("type") == "text" and over(part["text"], long):
            moved.append((name if len(message.parts) == 1 else f"{name}, part {number}", part["text"]))
            parts.append({**part, "text": MOVED})
        else:
            parts.append(part)
    if not moved:
        return message, moved
    plain = isinstance(message.raw.get("content"), str)
    return message.with_content(MOVED if plain else tuple(parts)), moved


def _oldest_over(messages: Sequence[Message], question: int | None, verbatim: int) -> set[int]:
    """Which messages have to go, oldest first, for the rest to fit; a tool's call never without "
    "its results.
    """
    left = messages_tokens(messages) - verbatim
    gone: set[int] = set()
    at = 0
    for unit in units(tuple(messages)):
        places = range(at, at + len(unit))
        at += len(unit)
        if left <= 0:
            break
        last = at == len(messages)
        if last or (question is not None and question in places) or unit[0].role in SYSTEM_ROLES:
            continue
        gone.update(places)
        left -= messages_tokens(unit)
    return gone


def fits(task: Task, limit: int) -> bool:
    """Whether a request has at most so many tokens; reads no more of it than it takes to tell."""
    for message in task.messages:
        if any(p.get("type") == "text" and over(p["text"], limit) for p in message.parts):
            return False
        limit -= message_tokens(message)
    return limit >= total_tokens(task.with_messages(()))


def total_tokens(task: Task) -> int:
    """About how many tokens a request has, with its tools."""
    tools = task.options.fields.get("tools")
    return sum(message_tokens(m) for m in task.messages) + (count(str(tools)) if tools else 0)


def pictures(text: str, images: Iterable[Any]) -> Any:
    """The content of a message: a text, and images if there are any."""
    shown = tuple(images)
    return ({"type": "text", "text": text}, *shown) if shown else text
