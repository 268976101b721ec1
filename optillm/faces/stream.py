"""A run's answer as server-sent events, as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from optillm.core.execute import Outcome
from optillm.core.frozen import thaw, to_json
from optillm.core.reply import Reply
from optillm.core.run import Run
from optillm.faces.respond import about, headers, made, message, spliced
from optillm.faces.service import Prepared
from optillm.protocol.errors import OptiError
from optillm.protocol.sse import DONE, KEEP_ALIVE, comment, event

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
SILENCE = 10.0
"""Seconds without an event after which the connection is kept alive by a comment."""


@dataclass
class _Shown:
    """What the client has seen of a choice's answer."""

    text: list[str] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)


class EventStream:
    """The sink of a streaming client; sends its response's head with the first event.

    Args:
        send: the ASGI send.
        prepared: the request.
        extra: more response headers.
        silence: seconds until a keep-alive comment.
    """

    def __init__(
        self, send: Send, prepared: Prepared, extra: Mapping[str, str], silence: float = SILENCE
    ) -> None:
        self._send = send
        self._prepared = prepared
        self._extra = extra
        self._silence = silence
        self._created = int(time.time())
        self._shown: dict[int, _Shown] = {}
        self._begun = 0
        self._told = False
        self._writing = asyncio.Lock()
        self._beat: asyncio.Task[None] | None = None
        self._last = 0.0
        self.run: Run | None = None
        self.started = False

    async def delta(self, choice: int, delta: Mapping[str, Any], logprobs: Any = None) -> None:
        """Part of a choice."""
        shown = self._shown.setdefault(choice, _Shown())
        shown.text.append(delta.get("content") or "")
        shown.fields.update(delta)
        await self._delta(choice, delta, logprobs)

    async def progress(self, line: str) -> None:
        """One line of progress: as reasoning of choice 0, as a comment, or not at all."""
        if self._prepared.progress == "reasoning":
            await self._delta(0, {"reasoning_content": line + "\n"})
        elif self._prepared.progress == "comments":
            await self._write(comment(line))

    async def raw(self, payload: bytes, finished: bool) -> None:
        """An upstream's own event; the one that ends the last choice tells about the run."""
        if finished and self.run is not None:
            payload = spliced(payload, about(self._prepared, self.run))
            self._told = True
        await self._write(event(payload))

    async def finish(self, outcome: Outcome) -> None:
        """What was not streamed yet, the finish chunks, usage, and the end mark."""
        run = self.run
        if run is None:
            raise RuntimeError("the stream has no run")
        if outcome.raw is None:
            await self._finish_choices(outcome, about(self._prepared, run, outcome))
            if self._prepared.include_usage:
                await self._chunk([], usage=run.budget.usage.to_dict())
        elif not self._told:
            # The upstream ended fewer choices than were asked for.
            await self._chunk([], about(self._prepared, run, outcome))
        await self._write(DONE)
        await self.end()

    async def _finish_choices(self, outcome: Outcome, info: Mapping[str, Any]) -> None:
        placed = _placed(made(self._prepared, outcome))
        last = max(*placed, self._begun - 1)
        await self._begin(last)
        for index in range(last + 1):
            ends = _choice(index, {}, "stop", None)
            if index in placed:
                reply, maker = placed[index]
                await self._rest(index, message(reply), reply.logprobs)
                ends.update(maker, finish_reason=reply.finish_reason)
            elif outcome.cut_short and index in self._shown:
                ends["finish_reason"] = "length"
            await self._chunk([ends], info if index == last else None)

    async def fail(self, error: OptiError) -> None:
        """An error after the start: one error event, no end mark."""
        await self._write(event(to_json(error.envelope())))
        await self.end()

    async def end(self) -> None:
        """Close the response."""
        self.stop()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def stop(self) -> None:
        """Stop keeping the connection alive."""
        if self._beat is not None:
            self._beat.cancel()

    def watch(self) -> None:
        """Begin to keep the connection alive."""
        self._last = asyncio.get_running_loop().time()
        self._beat = asyncio.create_task(self._keep_alive())

    async def _delta(self, choice: int, delta: Mapping[str, Any], logprobs: Any = None) -> None:
        await self._begin(choice)
        await self._chunk([_choice(choice, delta, None, logprobs)])

    async def _begin(self, last: int) -> None:
        """Begin all choices up to this one, in order: clients append choices as they come.

        The role has a chunk of its own, so that a choice's chunks are the same whichever comes first.
        """
        while self._begun <= last:
            self._begun += 1
            await self._chunk([_choice(self._begun - 1, {"role": "assistant", "content": ""}, None, None)])

    async def _rest(self, index: int, whole: dict[str, Any], logprobs: Any) -> None:
        """The part of a choice that its client has not seen."""
        seen = self._shown.get(index) or _Shown()
        shown, content = "".join(seen.text), whole.pop("content") or ""
        # A technique that fell back on another answer shows that one after what was streamed.
        left = content[len(shown) :] if content.startswith(shown) else content
        rest: dict[str, Any] = {"content": left} if left else {}
        for name, value in whole.items():
            if not value or name in seen.fields or name in ("role", "reasoning"):
                continue
            rest[name] = value
            if name == "tool_calls":
                rest[name] = [{"index": i, **call} for i, call in enumerate(value)]
        if rest or (logprobs and not shown):
            await self.delta(index, rest, None if shown else thaw(logprobs))

    async def _chunk(
        self, choices: list[dict[str, Any]], info: Mapping[str, Any] | None = None, usage: Any = None
    ) -> None:
        run = self.run
        body: dict[str, Any] = {
            "id": run.id if run else "",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._prepared.asked_model,
            "choices": choices,
        }
        if run and run.system_fingerprint:
            body["system_fingerprint"] = run.system_fingerprint
        if self._prepared.include_usage:
            body["usage"] = usage
        if info is not None:
            body["optillm"] = info
        await self._write(event(to_json(body)))

    async def _write(self, data: bytes) -> None:
        # One at a time, in the order of calls: choices and the keep-alive write concurrently.
        async with self._writing:
            if not self.started:
                await self._head()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last = asyncio.get_running_loop().time()

    async def _head(self) -> None:
        self.started = True
        named = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            **self._extra,
        }
        if self.run is not None:
            named.update(headers(self._prepared, self.run))
        raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in named.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait = self._last + self._silence - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self._write(KEEP_ALIVE)


def _choice(index: int, delta: Mapping[str, Any], finish: str | None, logprobs: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}


def _placed(replies: list[tuple[Reply, dict[str, Any]]]) -> dict[int, tuple[Reply, dict[str, Any]]]:
    """Replies by index: where they were streamed, else in order at what is left."""
    out: dict[int, tuple[Reply, dict[str, Any]]] = {}
    waiting = []
    for one in replies:
        index = one[0].choice
        if index is None or index in out:
            waiting.append(one)
        else:
            out[index] = one
    free = (i for i in count() if i not in out)
    return out | dict(zip(free, waiting, strict=False))
