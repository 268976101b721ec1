"""What came back: one upstream choice, and what an approach makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from optillm.core.answers import split_think
from optillm.core.frozen import Frozen, empty, freeze
from optillm.protocol.errors import UpstreamError


@dataclass(frozen=True)
class Reply:
    """One choice of one upstream reply.

    Args:
        message: the assistant message as sent by the upstream.
        finish_reason: ``stop``, ``length``, ``tool_calls``, ``content_filter``…
        logprobs: the choice's logprobs object, or None.
        choice: the client's choice under which it was streamed already, or None.
    """

    message: Mapping[str, Any]
    finish_reason: str = "stop"
    logprobs: Mapping[str, Any] | None = None
    choice: int | None = None

    @classmethod
    def of(cls, text: str, finish_reason: str = "stop") -> Reply:
        """A reply made of a text."""
        return cls(Frozen({"role": "assistant", "content": text}), finish_reason)

    @property
    def text(self) -> str:
        """The content, as sent; empty if there is none."""
        content = self.message.get("content")
        if isinstance(content, str):
            return content
        parts = content if isinstance(content, Sequence) else ()
        return "".join(p.get("text", "") for p in parts if isinstance(p, Mapping))

    @property
    def visible(self) -> str:
        """The content without ``<think>`` blocks, stripped."""
        return split_think(self.text)[1].strip()

    @property
    def reasoning(self) -> str:
        """Native reasoning, under either name that upstreams use, else what ``<think>`` shows."""
        for name in ("reasoning_content", "reasoning"):
            value = self.message.get(name)
            if isinstance(value, str) and value:
                return value
        return split_think(self.text)[0]

    @property
    def tool_calls(self) -> tuple[Mapping[str, Any], ...]:
        """The tool calls, as sent."""
        return tuple(self.message.get("tool_calls") or ())

    @property
    def usable(self) -> bool:
        """It says something, or calls a tool (or the old single function)."""
        return bool(self.tool_calls or self.message.get("function_call") or self.visible)

    @property
    def truncated(self) -> bool:
        """It was cut off by a token limit."""
        return self.finish_reason == "length"

    @property
    def rendered(self) -> str:
        """Text for a judge to read: the visible text and the tool calls as JSON."""
        calls = [msgspec.json.encode(_function(c)).decode() for c in self.tool_calls]
        return "\n".join([self.visible, *(f"[tool call] {c}" for c in calls)]).strip()

    def with_text(self, text: str, reasoning: str | None = None) -> Reply:
        """The same choice with other text, and reasoning if given."""
        message = {**self.message, "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        return replace(self, message=Frozen(message))


@dataclass(frozen=True)
class Answer:
    """What an approach returns.

    Args:
        replies: the choices: one, or as many as the client asked for.
        note: facts about the run for the response's ``optillm`` object.
        raw: the upstream's whole body, when it is to be handed on untouched.
    """

    replies: tuple[Reply, ...]
    note: Mapping[str, Any] = field(default_factory=empty)
    raw: bytes | None = None

    @property
    def reply(self) -> Reply:
        """The first choice."""
        return self.replies[0]


def eligible(replies: Sequence[Reply]) -> list[Reply]:
    """The usable replies; truncated ones only if no complete one is usable (1.8)."""
    usable = [r for r in replies if r.usable]
    return [r for r in usable if not r.truncated] or usable


def distinct(replies: Sequence[Reply]) -> list[Reply]:
    """Replies without exact repetitions (after strip), each at its first place."""
    first: dict[str, Reply] = {}
    for reply in replies:
        first.setdefault(reply.rendered, reply)
    return list(first.values())


class _Choice(msgspec.Struct):
    message: dict[str, Any] = {}
    index: int | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Completion(msgspec.Struct):
    """The parts of a chat completion that a run reads."""

    choices: list[_Choice]
    usage: dict[str, Any] | None = None
    model: str | None = None
    system_fingerprint: str | None = None

    def replies(self) -> list[Reply]:
        """The choices in index order."""
        if len(self.choices) == 1:
            return [_reply(self.choices[0])]
        order = sorted(
            range(len(self.choices)),
            key=lambda i: (i if self.choices[i].index is None else self.choices[i].index, i),
        )
        return [_reply(self.choices[i]) for i in order]


def parse_completion(body: bytes) -> Completion:
    """Read a chat completion; an upstream that sends something else gets an UpstreamError (502)."""
    try:
        return msgspec.json.decode(body, type=Completion)
    except (msgspec.DecodeError, RecursionError) as error:
        start = body[:120].decode(errors="replace")
        raise UpstreamError(f"upstream sent no chat completion ({error}): {start!r}") from error


def check_message(message: Mapping[str, Any]) -> None:
    """Raise UpstreamError if an assistant message is not made as the protocol says."""
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is None and type(content) is str:
        return
    if not isinstance(content, str | list | None):
        raise UpstreamError(f"upstream sent content that is no text: {content!r:.80}")
    if not isinstance(calls, list | None) or not all(_is_call(call) for call in calls or ()):
        raise UpstreamError(f"upstream sent malformed tool calls: {calls!r:.80}")


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict):
        return False
    return all(isinstance(call.get(kind), dict | None) for kind in ("function", "custom"))


def _reply(choice: _Choice) -> Reply:
    check_message(choice.message)
    logprobs = freeze(choice.logprobs) if choice.logprobs else None
    return Reply(freeze(choice.message), choice.finish_reason or "stop", logprobs)


def _function(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call.get("custom") or {}
    return {"name": function.get("name"), "arguments": function.get("arguments", function.get("input"))}
