"""What was asked: messages, options, the task. All frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from optillm.core.frozen import Frozen, empty, freeze

SYSTEM_ROLES = frozenset({"system", "developer"})
LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True)
class Message:
    """One chat message, exactly as it was sent (``raw``), with views of what is in it."""

    raw: Mapping[str, Any]

    @classmethod
    def of(cls, role: str, content: Any) -> Message:
        """A new message; content is a string or a sequence of content parts."""
        return cls(Frozen({"role": role, "content": freeze(content)}))

    @property
    def role(self) -> str:
        """Who speaks: system, developer, user, assistant, tool or function."""
        return str(self.raw["role"])

    @property
    def parts(self) -> tuple[Mapping[str, Any], ...]:
        """The content as parts; a plain string is one text part."""
        content = self.raw.get("content")
        if isinstance(content, str):
            return ({"type": "text", "text": content},)
        return tuple(content or ())

    @property
    def text(self) -> str:
        """The text of the content, without images and other media."""
        return "\n".join(p["text"] for p in self.parts if p.get("type") == "text")

    @property
    def images(self) -> tuple[Mapping[str, Any], ...]:
        """The image parts."""
        return tuple(p for p in self.parts if p.get("type") == "image_url")

    def adding(self, text: str) -> Message:
        """The same message with a text after its content; plain text stays plain text."""
        content = self.raw.get("content")
        if isinstance(content, str):
            return self.with_content(f"{content}\n\n{text}" if content else text)
        return self.with_content((*self.parts, {"type": "text", "text": text}))

    def with_content(self, content: Any) -> Message:
        """The same message with other content; its other fields are kept."""
        return Message(Frozen({**self.raw, "content": freeze(content)}))


Messages = tuple[Message, ...]


def system(text: str) -> Message:
    """A system message."""
    return Message.of("system", text)


def user(content: Any) -> Message:
    """A user message; content is text or parts."""
    return Message.of("user", content)


def assistant(text: str) -> Message:
    """An assistant message."""
    return Message.of("assistant", text)


@dataclass(frozen=True)
class Options:
    """The client's own fields for answer-producing calls: sampling, tools, format, unknown ones.

    Args:
        fields: body fields as sent, without messages, model, n, stream and what is only for us.
        n: how many choices the client wants, 1 to 128.
        n_given: the client said so itself.
    """

    fields: Mapping[str, Any] = field(default_factory=empty)
    n: int = 1
    n_given: bool = False

    @property
    def seed(self) -> int | None:
        """The client's seed."""
        return self.fields.get("seed")

    @property
    def temperature(self) -> float | None:
        """The client's temperature."""
        return self.fields.get("temperature")

    @property
    def limit_field(self) -> str | None:
        """The name under which the client gave a token limit; ``max_completion_tokens`` wins."""
        return next((f for f in LIMIT_FIELDS if self.fields.get(f) is not None), None)


@dataclass(frozen=True)
class Task:
    """What was asked, untouched: roles, images, tool calls and results included."""

    messages: Messages
    options: Options = field(default_factory=Options)

    @classmethod
    def of(cls, messages: Iterable[Mapping[str, Any]], options: Options | None = None) -> Task:
        """A task from plain messages, frozen."""
        return cls(tuple([Message(freeze(m)) for m in messages]), options or Options())

    @cached_property
    def question_index(self) -> int | None:
        """Where the last user message stands, or None."""
        indices = (i for i in reversed(range(len(self.messages))) if self.messages[i].role == "user")
        return next(indices, None)

    @property
    def question(self) -> Message | None:
        """The last user message."""
        return None if self.question_index is None else self.messages[self.question_index]

    @property
    def text(self) -> str:
        """The text of the last user message."""
        return self.question.text if self.question else ""

    @property
    def system(self) -> str:
        """All system and developer texts, joined by blank lines."""
        return "\n\n".join(m.text for m in self.messages if m.role in SYSTEM_ROLES)

    @property
    def turns(self) -> Messages:
        """All messages but the system ones."""
        return tuple(m for m in self.messages if m.role not in SYSTEM_ROLES)

    def with_messages(self, messages: Iterable[Message]) -> Task:
        """The same options with other messages."""
        return replace(self, messages=tuple(messages))

    def replacing_question(self, message: Message) -> Task:
        """The last user message replaced (or added, if there is none)."""
        if self.question_index is None:
            return self.with_messages((*self.messages, message))
        before = self.messages[: self.question_index]
        return self.with_messages((*before, message, *self.messages[self.question_index + 1 :]))

    def asking(self, text: str) -> Task:
        """A text added at the end: to the last message if the user speaks there, else as a new turn."""
        if self.messages and self.messages[-1].role == "user":
            return self.with_messages((*self.messages[:-1], self.messages[-1].adding(text)))
        return self.with_messages((*self.messages, user(text)))

    def instructed(self, text: str) -> Task:
        """A text added to the last leading system message, or a new one in front."""
        leading = 0
        while leading < len(self.messages) and self.messages[leading].role in SYSTEM_ROLES:
            leading += 1
        if leading == 0:
            return self.with_messages((system(text), *self.messages))
        last = self.messages[leading - 1].adding(text)
        return self.with_messages((*self.messages[: leading - 1], last, *self.messages[leading:]))
