"""Hundreds of requests at once: each is exactly what it is when it runs alone."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from tests.fakes import ScriptedUpstream
from tests.isolation.requests import bodies, by_marker, echo_script, random_request, stable
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

REQUESTS = 300


async def trace_of(proxy: Proxy, answer: Answer) -> Any:
    if answer.status != 200:
        return None
    return stable((await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json)


async def test_each_of_300_is_as_if_alone() -> None:
    rng = random.Random(20260101)
    requests = [random_request(i, rng) for i in range(REQUESTS)]
    async with ScriptedUpstream(echo_script) as up, serving(up) as proxy:
        alone = [await proxy.post(r) for r in requests]
        alone_traces = [await trace_of(proxy, a) for a in alone]
    async with (
        ScriptedUpstream(echo_script, latency=0.002) as crowded,
        serving(crowded, upstream_concurrency=64) as proxy,
    ):
        together = await asyncio.gather(*(proxy.post(r) for r in requests))
        together_traces = [await trace_of(proxy, a) for a in together]
    assert crowded.peak > 30
    mine, theirs = by_marker(up.calls), by_marker(crowded.calls)
    for i, request in enumerate(requests):
        assert bodies(theirs[i]) == bodies(mine[i]), request
        assert together[i].status == alone[i].status, request
        assert stable(together[i].json) == stable(alone[i].json), request
        assert together_traces[i] == alone_traces[i], request
        if alone[i].status == 200:
            assert alone[i].info["calls"] == len(mine[i])
            read = sum(len(c.text.split()) for c in mine[i])
            assert alone[i].json["usage"]["prompt_tokens"] == read


async def test_streams_at_once_do_not_mix() -> None:
    rng = random.Random(7)
    requests = [random_request(i, rng) for i in range(80)]
    async with ScriptedUpstream(echo_script) as up, serving(up) as proxy:
        together = await asyncio.gather(*(stream_text(proxy, r) for r in requests))
        alone = [await stream_text(proxy, r) for r in requests]
        plain = [await proxy.post({**r, "optillm_budget": None}) for r in requests]
    assert together == alone
    assert all(a.status == 200 for a in plain)


async def stream_text(proxy: Proxy, request: dict[str, Any]) -> dict[int, str]:
    """The streamed text of each choice."""
    body = {k: v for k, v in request.items() if k not in ("messages", "model")}
    texts: dict[int, str] = {}
    for event in await proxy.events(request["model"], messages=request["messages"], **body):
        if event != "[DONE]" and not event.startswith(":"):
            for choice in json.loads(event).get("choices", ()):
                text = choice["delta"].get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts
