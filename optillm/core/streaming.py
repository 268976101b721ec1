"""Streamed replies: put together for the run, shown to the client as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from optillm.core.frozen import freeze
from optillm.core.reply import Reply, check_message
from optillm.protocol.errors import UpstreamError

if TYPE_CHECKING:
    from optillm.core.run import Sink


class StreamView:
    """What the client sees of one choice's text; this one shows all of it, as it comes."""

    def feed(self, text: str) -> tuple[str, str]:
        """A piece of content; returns the content and the reasoning to show now."""
        return text, ""

    def close(self, truncated: bool) -> tuple[str, str]:
        """The end of the text; returns what is left to show."""
        return "", ""


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Chunk(msgspec.Struct):
    """The parts of a chat completion chunk that a run reads."""

    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    system_fingerprint: str | None = None
    error: Any = None


def parse_chunk(payload: bytes) -> Chunk:
    """Read one chunk; raises UpstreamError when it is malformed or an error event."""
    try:
        chunk = msgspec.json.decode(payload, type=Chunk)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UpstreamError(f"upstream sent a malformed stream event ({error})") from error
    if chunk.error is not None:
        inner = chunk.error.get("message") if isinstance(chunk.error, Mapping) else chunk.error
        raise UpstreamError(f"upstream broke off its stream: {inner}", body={"error": chunk.error})
    return chunk


class _End(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Ends(msgspec.Struct):
    choices: list[_End] = []


class StreamEnd:
    """Tells whether a stream that ended was finished: all choices that began have a finish reason."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def see(self, payload: bytes) -> None:
        """Take in one event; one that is malformed is left to its reader."""
        with suppress(msgspec.DecodeError, RecursionError):
            for choice in msgspec.json.decode(payload, type=_Ends).choices:
                self._begun.add(choice.index)
                if choice.finish_reason:
                    self._ended.add(choice.index)

    @property
    def complete(self) -> bool:
        """Whether something began, and all of it ended."""
        return bool(self._begun) and self._begun == self._ended


class _Building:
    def __init__(self, view: StreamView) -> None:
        self.view = view
        self.text: list[str] = []
        self.shown: list[str] = []
        self.reasoning: list[str] = []
        self.extra: dict[str, Any] = {}
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, Any] = {}
        self.finish_reason: str | None = None

    def reply(self, cut: bool = False) -> Reply:
        text = "".join(self.text)
        silent = not text and (self.tool_calls or self.extra.get("function_call"))
        message: dict[str, Any] = {"role": "assistant", "content": None if silent else text}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        message.update(self.extra)
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[i] for i in sorted(self.tool_calls)]
        finish = "length" if cut else self.finish_reason or "stop"
        return Reply(freeze(message), finish, freeze(self.logprobs) or None)


class Assembler:
    """Puts the choices of one streaming call together and shows them to the client.

    Args:
        sink: the client.
        first_choice: the client's index of the call's choice 0.
        view: makes the view of one choice.
    """

    def __init__(self, sink: Sink | None, first_choice: int, view: Callable[[], StreamView]) -> None:
        self._sink = sink
        self._first = first_choice
        self._view = view
        self._building: dict[int, _Building] = {}
        self._last = b"{}"
        self.usage: dict[str, Any] | None = None
        self.system_fingerprint: str | None = None

    @property
    def partial(self) -> Reply | None:
        """Choice 0 as far as its client saw it, marked as cut, or None if nothing came."""
        building = self._building.get(0)
        if building is None:
            return None
        reply = self._placed(0, building.reply(cut=True).with_text("".join(building.shown)))
        return reply if reply.usable else None

    @property
    def finished(self) -> int:
        """How many choices have ended."""
        return sum(b.finish_reason is not None for b in self._building.values())

    @property
    def begun(self) -> bool:
        """Whether a choice has begun."""
        return bool(self._building)

    async def feed(self, payload: bytes) -> None:
        """Take in one chunk."""
        chunk = parse_chunk(payload)
        self._last = payload
        self.usage = chunk.usage or self.usage
        self.system_fingerprint = chunk.system_fingerprint or self.system_fingerprint
        for choice in chunk.choices:
            building = self._building.get(choice.index)
            if building is None:
                building = self._building[choice.index] = _Building(self._view())
            await self._take(choice, building)

    async def close(self) -> None:
        """The stream has ended: show what views held back."""
        for index, building in sorted(self._building.items()):
            content, reasoning = building.view.close(building.finish_reason == "length")
            await self._show(index, content, reasoning, {}, None)

    def replies(self) -> list[Reply]:
        """The choices in index order."""
        return [self._placed(i, self._building[i].reply()) for i in sorted(self._building)]

    def _placed(self, index: int, reply: Reply) -> Reply:
        return reply if self._sink is None else replace(reply, choice=self._first + index)

    def cut(self) -> list[Reply]:
        """The choices as far as they came; those that had not ended, as truncated."""
        return [
            self._placed(i, building.reply(cut=building.finish_reason is None))
            for i, building in sorted(self._building.items())
        ]

    def closing(self, usage: Mapping[str, Any] | None = None) -> bytes:
        """An event in the shape of the last: it ends what has not ended, or tells the usage."""
        event = msgspec.json.decode(self._last)
        event["choices"] = [
            {"index": index, "delta": {}, "finish_reason": "length", "logprobs": None}
            for index, building in sorted(self._building.items())
            if building.finish_reason is None and usage is None
        ]
        event["usage"] = usage
        return msgspec.json.encode(event)

    async def _take(self, choice: _Choice, building: _Building) -> None:
        delta = choice.delta or {}
        check_message(delta)
        building.finish_reason = choice.finish_reason or building.finish_reason
        content, reasoning, rest = "", "", {}
        for key, value in delta.items():
            if key == "content":
                if isinstance(value, str) and value:
                    building.text.append(value)
                    content, reasoning = building.view.feed(value)
            elif key in ("reasoning_content", "reasoning"):
                if isinstance(value, str) and value:
                    building.reasoning.append(value)
                    reasoning += value
            elif key == "tool_calls":
                for position, piece in enumerate(value or ()):
                    at = building.tool_calls.setdefault(piece.get("index", position), {})
                    _merge(at, {k: v for k, v in piece.items() if k != "index"})
                rest[key] = value
            elif key != "role" and value is not None:
                _merge(building.extra, {key: value})
                rest[key] = value
        for key, value in (choice.logprobs or {}).items():
            building.logprobs.setdefault(key, []).extend(value if isinstance(value, list) else ())
        await self._show(choice.index, content, reasoning, rest, choice.logprobs)

    async def _show(
        self, index: int, content: str, reasoning: str, rest: Mapping[str, Any], logprobs: Any
    ) -> None:
        shown = {**rest}
        if reasoning:
            shown["reasoning_content"] = reasoning
        if content:
            shown["content"] = content
            self._building[index].shown.append(content)
        if self._sink is not None and (shown or logprobs):
            await self._sink.delta(self._first + index, shown, logprobs)


def _merge(into: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add a delta to what came before: strings grow, but names that are sent again stay."""
    for key, value in piece.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        elif isinstance(value, str) and isinstance(into.get(key), str) and key not in ("id", "type"):
            into[key] += value
        elif value is not None:
            into[key] = value
