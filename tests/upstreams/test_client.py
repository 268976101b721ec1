"""An ``AsyncOpenAI`` client as the upstream of the library: over HTTP, to a scripted upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

import optillm
from optillm.protocol.errors import OptiError, UpstreamError, UpstreamTimeout
from optillm.upstreams.client import ClientUpstream
from tests.fakes import Fault, Reply, ScriptedUpstream, refusal
from tests.upstreams.servers import call

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def client_of(up: ScriptedUpstream, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    options = {"max_retries": 0, **options}
    async with openai.AsyncOpenAI(base_url=up.base_url, api_key="sk-client", **options) as client:
        yield client


async def test_a_technique_through_a_client() -> None:
    def script(seen: Any) -> Any:
        return "Score: 9" if seen.stage == "rate" and "second" in seen.text else ["first", "second"]

    async with ScriptedUpstream(script) as up, client_of(up) as client:
        solution = await optillm.solve("q", approach="bon", model="m", upstream=client, best_of_n=2, seed=4)
        assert solution.text == "second"
        assert [c.body.get("n") for c in up.calls] == [2, None, None]
        assert up.calls[0].body["seed"] == 4
        assert up.calls[0].headers["Authorization"] == "Bearer sk-client"
        assert solution.response["usage"]["total_tokens"] > 0


async def test_every_field_arrives_as_it_was() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "stop": ["x"], "tools": [{"type": "function", "function": {"name": "f"}}],
        "logit_bias": {"5": -1}, "made_up_field": {"deep": [1, None]},
    }  # fmt: skip
    async with ScriptedUpstream() as up, client_of(up) as client:
        await ClientUpstream(client).complete(call(**fields))
        body = up.calls[0].body
        assert {k: body[k] for k in fields} == fields
        assert not body.get("stream")


async def test_streaming_with_usage() -> None:
    async with ScriptedUpstream("some words here") as up, client_of(up) as client:
        upstream = ClientUpstream(client)
        events = [e async for e in upstream.stream(call(stream_options={"include_usage": True}))]
        assert b'"usage":{' in events[-1]
        assert up.calls[0].body["stream"] is True
        assert [m["id"] for m in await upstream.models()] == ["test-model"]


@pytest.mark.parametrize("status", [400, 401, 404, 429])
async def test_a_refusal_keeps_its_status_and_body(status: int) -> None:
    async with ScriptedUpstream(refusal(status, "no", retry_after="9")) as up, client_of(up) as client:
        with pytest.raises(UpstreamError) as caught:
            await optillm.solve("q", approach="bon", model="m", upstream=client)
        assert (caught.value.status, len(up.calls)) == (status, 1)
        assert "no" in caught.value.envelope()["error"]["message"]
        assert caught.value.headers() == {"Retry-After": "9"}


@pytest.mark.parametrize("fault", [Fault(status=500), Fault("reset"), Fault("wrong_type")])
async def test_a_broken_upstream(fault: Fault) -> None:
    async with ScriptedUpstream(fault) as up, client_of(up) as client:
        with pytest.raises(OptiError) as caught:
            await optillm.solve("q", approach="re2", model="m", upstream=client)
        assert caught.value.status == 502


async def test_a_time_out_of_the_client() -> None:
    async with ScriptedUpstream(Fault("hang")) as up, client_of(up, timeout=0.2) as client:
        with pytest.raises(UpstreamTimeout):
            await optillm.solve("q", model="m", upstream=client)


@pytest.mark.parametrize("kind", ["cut_stream", "silent_end"])
async def test_a_stream_that_is_cut(kind: str) -> None:
    async with ScriptedUpstream(Fault(kind)) as up, client_of(up) as client:
        with pytest.raises(UpstreamError):
            [e async for e in ClientUpstream(client).stream(call())]


async def test_leaving_a_stream_closes_it() -> None:
    async with ScriptedUpstream(Reply("text", hangs=True)) as up, client_of(up) as client:
        events = ClientUpstream(client).stream(call())
        await anext(events)
        await events.aclose()
        await up.until(lambda: up.calls[0].outcome == "cancelled")


async def test_cancelling_ends_the_call() -> None:
    async with ScriptedUpstream(Fault("hang")) as up, client_of(up) as client:
        task = asyncio.ensure_future(optillm.solve("q", approach="moa", model="m", upstream=client))
        await up.until(lambda: up.in_flight > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await up.until(lambda: up.in_flight == 0)


async def test_a_list_that_is_refused() -> None:
    async with ScriptedUpstream(models=Fault(status=403)) as up, client_of(up) as client:
        with pytest.raises(UpstreamError):
            await ClientUpstream(client).models()


async def test_a_fault_that_is_not_the_upstreams_stays_itself() -> None:
    class Broken:
        @property
        def chat(self) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ClientUpstream(Broken()).complete(call())
