"""The scripted upstream: a real HTTP server that answers as a test tells it to.

A script is a function from a recorded call to a reply, a fault, or a list of replies (one per
choice). It goes by what a call says, never by when it arrives: concurrent calls come in any order.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Reply:
    """One choice as the upstream will send it."""

    text: str | None = "ok"
    finish: str | None = "stop"
    reasoning: str | None = None
    reasoning_field: str = "reasoning_content"
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: dict[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    pieces: tuple[str, ...] | None = None
    hangs: bool = False
    """Stop streaming after the text, and never end."""
    gate: asyncio.Event | None = None
    """Streams the first piece of its text, and the rest when this is set."""

    @property
    def message(self) -> dict[str, Any]:
        out: dict[str, Any] = {"role": "assistant", "content": self.text, **self.extra}
        if self.reasoning is not None:
            out[self.reasoning_field] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = list(self.tool_calls)
        return out


@dataclass(frozen=True)
class Fault:
    """Something other than an answer.

    kind: status, hang, reset, not_json, truncated_json, wrong_type, empty_choices, cut_stream
    (after two events), silent_end (a stream that ends without finishing).
    """

    kind: str = "status"
    status: int = 500
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """Bytes to be sent exactly as they are, as JSON or as an event stream, whichever was asked for."""

    body: bytes


def refusal(status: int, message: str, param: str | None = None, **headers: str) -> Fault:
    """An OpenAI error envelope."""
    error = {"message": message, "type": "upstream_says", "param": param, "code": None}
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return Fault(status=status, body={"error": error}, headers=named)


ROLES = MappingProxyType(
    {
        "impartial rater": "rate",
        "careful critic": "critique",
        "compare replies": "select",
        "play the user": "user",
        "judge of dialogues": "eval",
    }
)
"""Words of a helper's system message, and the stage they tell."""


@dataclass(eq=False)
class Seen:
    """One call that arrived."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    path: str
    outcome: str = "open"
    port: int = 0
    """The client's: which connection the call came on."""
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)

    @property
    def messages(self) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = self.body["messages"]
        return out

    @property
    def text(self) -> str:
        """All text of all messages."""
        return "\n".join(_text(m) for m in self.messages)

    @property
    def last(self) -> str:
        """The text of the last message."""
        return _text(self.messages[-1])

    @property
    def system(self) -> str:
        return "\n".join(_text(m) for m in self.messages if m["role"] in ("system", "developer"))

    @property
    def n(self) -> int:
        return int(self.body.get("n") or 1)

    @property
    def stage(self) -> str:
        """Which helper prompt it is, told by the helper's role; ``sample`` for everything else."""
        return next((stage for words, stage in self.roles.items() if words in self.system), "sample")


Said = Reply | Fault | Raw | str | Sequence["Reply | str"]
Script = Callable[[Seen], Said | Awaitable[Said]]


class ScriptedUpstream:
    """An OpenAI-compatible server on a free port; use it as an async context manager.

    Args:
        script: what to answer; a constant or a function of the call.
        n_mode: native, ignore (one choice whatever n says) or reject (400).
        models: what ``/v1/models`` lists, names or whole objects; a Fault breaks the list.
        latency: seconds before every answer.
        roles: words of a helper's system message, and the stage that they tell; asked before ROLES.
    """

    def __init__(
        self,
        script: Script | Said = "ok",
        *,
        n_mode: str = "native",
        models: Sequence[str | Mapping[str, Any]] | Fault = ("test-model",),
        latency: float = 0.0,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self.script = script
        self.roles = MappingProxyType({**(roles or {}), **ROLES})
        self.n_mode = n_mode
        self.models = models
        self.latency = latency
        self.calls: list[Seen] = []
        self.lists = 0
        """How often the models were asked for."""
        self.in_flight = 0
        self.peak = 0
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> ScriptedUpstream:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/openai/deployments/{model}/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/openai/models", self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def stages(self, *, marker: str = "") -> list[str]:
        """The stages of the calls that carry a marker, sorted."""
        return sorted(c.stage for c in self.calls if marker in c.text)

    def of(self, stage: str) -> list[Seen]:
        return [c for c in self.calls if c.stage == stage]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something about the calls holds."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(condition), 30)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.lists += 1
        if isinstance(self.models, Fault):
            return _plain(self.models)
        return web.json_response({"object": "list", "data": [_model(m) for m in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        seen = Seen(await request.json(), request.headers.copy(), request.path_qs, roles=self.roles)
        seen.port = peer[1] if peer else 0
        self.calls.append(seen)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        await self._notify()
        try:
            response = await self._answer(seen, request)
            seen.outcome = "answered"
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            seen.outcome = "cancelled"
            raise
        finally:
            self.in_flight -= 1
            await asyncio.shield(self._notify())

    async def _answer(self, seen: Seen, request: web.Request) -> web.StreamResponse:
        if self.latency:
            await asyncio.sleep(self.latency)
        if seen.n > 1 and self.n_mode == "reject":
            return _plain(refusal(400, "'n' must be 1 for this model", "n"))
        said = self.script(seen) if callable(self.script) else self.script
        if isinstance(said, Awaitable):
            said = await said
        if isinstance(said, Fault) and said.kind != "cut_stream" and said.kind != "silent_end":
            return await _fault(said, request)
        if isinstance(said, Raw):
            kind = "text/event-stream" if seen.body.get("stream") else "application/json"
            return web.Response(body=said.body, headers={"Content-Type": kind})
        replies = _replies(said, 1 if self.n_mode == "ignore" else seen.n)
        usage = _usage(seen, replies)
        if seen.body.get("stream"):
            return await _stream(seen, request, replies, usage, said if isinstance(said, Fault) else None)
        return web.json_response(
            {
                "id": "chatcmpl-up",
                "object": "chat.completion",
                "created": 1,
                "model": seen.body["model"],
                "choices": [
                    {"index": i, "message": r.message, "finish_reason": r.finish, "logprobs": r.logprobs}
                    for i, r in enumerate(replies)
                ],
                "usage": usage,
            }
        )


class ThreadedUpstream:
    """A scripted upstream with a thread of its own, for tests without an event loop."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ScriptedUpstream:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.upstream.__aenter__(), self._loop).result(30)
        return self.upstream

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self.upstream.__aexit__(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(p.get("text", "") for p in content)


def _model(name: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(name, str):
        return name
    return {"id": name, "object": "model", "created": 1, "owned_by": "test"}


def _replies(said: Any, n: int) -> list[Reply]:
    given = [said] if isinstance(said, Reply | str | Fault) else list(said)
    replies = [g if isinstance(g, Reply) else Reply(g if isinstance(g, str) else "ok") for g in given]
    return [replies[i % len(replies)] for i in range(n)]


def _usage(seen: Seen, replies: Sequence[Reply]) -> dict[str, Any]:
    """Words read and words written, unless a reply says otherwise."""
    prompt = len(seen.text.split())
    completion = sum(len((r.text or "").split()) for r in replies)
    out: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    for reply in replies:
        out.update(reply.usage or {})
    return out


def _plain(fault: Fault) -> web.Response:
    body = fault.body if isinstance(fault.body, bytes) else json.dumps(fault.body or {}).encode()
    return web.Response(
        status=fault.status, body=body, headers=dict(fault.headers), content_type="application/json"
    )


async def _fault(fault: Fault, request: web.Request) -> web.StreamResponse:
    if fault.kind == "hang":
        await asyncio.Event().wait()
    if fault.kind == "reset" and request.transport is not None:
        request.transport.abort()
        raise ConnectionResetError
    if fault.kind == "not_json":
        return web.Response(body=b"<html>busy</html>", content_type="text/html")
    if fault.kind == "truncated_json":
        return web.Response(body=b'{"choices": [{"mess', content_type="application/json")
    if fault.kind == "wrong_type":
        return web.json_response({"choices": "none"})
    if fault.kind == "empty_choices":
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 0}})
    return _plain(fault)


async def _stream(
    seen: Seen,
    request: web.Request,
    replies: Sequence[Reply],
    usage: Mapping[str, Any],
    fault: Fault | None,
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    events = _events(seen, replies, usage)
    begun: set[int] = set()
    for number, event in enumerate(events):
        for choice in event["choices"]:
            gate = replies[choice["index"]].gate
            if gate is not None and choice["index"] in begun:
                await gate.wait()
            if choice["delta"].get("content"):
                begun.add(choice["index"])
        if fault is not None and number == 2:
            if fault.kind == "cut_stream" and request.transport is not None:
                request.transport.abort()
            return response
        if replies[0].hangs and event["choices"][0]["finish_reason"]:
            await asyncio.Event().wait()
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


def _events(seen: Seen, replies: Sequence[Reply], usage: Mapping[str, Any]) -> list[dict[str, Any]]:
    head = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": seen.body["model"]}
    out: list[dict[str, Any]] = []

    def add(index: int, delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> None:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        out.append({**head, "choices": [choice]})

    for i, reply in enumerate(replies):
        add(i, {"role": "assistant", "content": ""})
        if reply.reasoning:
            add(i, {reply.reasoning_field: reply.reasoning})
        text = reply.text or ""
        pieces = reply.pieces or tuple(text[j : j + 4] for j in range(0, len(text), 4))
        for piece in pieces:
            add(i, {"content": piece}, logprobs=reply.logprobs)
        for j, call in enumerate(reply.tool_calls):
            function = call["function"]
            start = {**call, "index": j, "function": {"name": function["name"], "arguments": ""}}
            add(i, {"tool_calls": [start]})
            for at in range(0, len(function["arguments"]), 5):
                piece = function["arguments"][at : at + 5]
                add(i, {"tool_calls": [{"index": j, "function": {"arguments": piece}}]})
        add(i, {}, reply.finish)
    if (seen.body.get("stream_options") or {}).get("include_usage"):
        out.append({**head, "choices": [], "usage": dict(usage)})
    return out
