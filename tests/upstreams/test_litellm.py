"""LiteLLM behind our interface.

With the real library where it is installed (it is too heavy for the lock), and everywhere with a
stand-in that has the same functions, objects and exceptions, and calls a scripted upstream by the
official client.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from optillm.protocol.errors import MissingExtra, UpstreamError, UpstreamTimeout
from optillm.upstreams.litellm import LiteLLMUpstream
from optillm.upstreams.openai_http import HTTPOptions
from tests.fakes import Fault, Reply, ScriptedUpstream, refusal
from tests.upstreams.servers import call

INSTALLED = importlib.util.find_spec("litellm") is not None
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]


class StandIn:
    """What of LiteLLM is used: its signatures, its names, its exceptions' attributes."""

    def __init__(self) -> None:
        self.clients: list[openai.AsyncOpenAI] = []

    async def acompletion(
        self,
        *,
        timeout: float,
        num_retries: int,
        api_base: str,
        api_key: str = "sk-environment",
        **fields: Any,
    ) -> Any:
        client = openai.AsyncOpenAI(
            base_url=api_base, api_key=api_key, timeout=timeout, max_retries=num_retries
        )
        self.clients.append(client)
        fields["model"] = fields["model"].removeprefix("openai/")
        try:
            return await client.chat.completions.create(**fields)
        except openai.APITimeoutError as error:
            error.status_code = 408  # type: ignore[attr-defined]
            raise

    def get_valid_models(self) -> list[str]:
        return ["openai/gpt-x"]


@pytest.fixture(params=["stand-in", *(["real"] if INSTALLED else [])])
async def library(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "real":
        yield importlib.import_module("litellm")
        return
    made = StandIn()
    yield made
    for client in made.clients:
        await client.close()


def lite(library: Any, **options: Any) -> LiteLLMUpstream:
    return LiteLLMUpstream("lite", HTTPOptions(**{"retries": 0, **options}), library)


def to(up: ScriptedUpstream, text: str = "hi", **fields: Any) -> Any:
    fields = {"model": "openai/m", "api_base": up.base_url, **fields}
    bearer = fields.pop("bearer", "sk-of-the-client")
    return call(text, bearer=bearer, **fields)


async def test_a_completion(library: Any) -> None:
    async with ScriptedUpstream(["one", "two"]) as up:
        body = json.loads(await lite(library).complete(to(up, n=2, temperature=0.5, stop=["x"])))
        assert [c["message"]["content"] for c in body["choices"]] == ["one", "two"]
        assert body["usage"]["completion_tokens"] == 2
        [seen] = up.calls
        assert seen.headers["Authorization"] == "Bearer sk-of-the-client"
        sent = seen.body
        assert (sent["model"], sent["n"], sent["temperature"], sent["stop"]) == ("m", 2, 0.5, ["x"])


async def test_a_stream(library: Any) -> None:
    async with ScriptedUpstream("one two three") as up:
        asked = to(up, stream_options={"include_usage": True})
        events = [json.loads(e) async for e in lite(library).stream(asked)]
        deltas = [c["delta"].get("content") or "" for e in events for c in e["choices"]]
        assert "".join(deltas) == "one two three"
        assert any(e.get("usage") for e in events)


@pytest.mark.parametrize("status", [400, 401, 404, 429])
async def test_a_refusal_keeps_its_status_and_hides_keys(library: Any, status: int) -> None:
    async with ScriptedUpstream(refusal(status, "no: sk-of-the-client")) as up:
        for asked in (lite(library).complete(to(up)), anext(lite(library).stream(to(up)))):
            with pytest.raises(UpstreamError) as caught:
                await asked
            assert caught.value.status == status
            assert "no: ***" in json.dumps(caught.value.envelope())
            assert "sk-of" not in caught.value.message


async def test_a_broken_upstream(library: Any) -> None:
    async with ScriptedUpstream(Fault(status=500)) as up:
        with pytest.raises(UpstreamError) as caught:
            await lite(library).complete(to(up))
        assert caught.value.status == 502


async def test_a_time_out_covers_all_tries(library: Any) -> None:
    async with ScriptedUpstream(Fault("hang")) as up:
        with pytest.raises(UpstreamTimeout):
            await lite(library, total_timeout=0.5, retries=20).complete(to(up))
        assert len(up.calls) < 5


async def test_cancelling_gives_the_place_back(library: Any) -> None:
    async with ScriptedUpstream(Fault("hang")) as up:
        upstream = lite(library, concurrency=1)
        task = asyncio.ensure_future(upstream.complete(to(up)))
        await up.until(lambda: up.in_flight == 1)
        task.cancel()
        await asyncio.wait((task,))
        up.script = "fine"
        assert b"fine" in await upstream.complete(to(up))


async def test_leaving_a_stream_gives_the_place_back(library: Any) -> None:
    async with ScriptedUpstream(Reply("text", hangs=True)) as up:
        upstream = lite(library, concurrency=1)
        events = upstream.stream(to(up))
        await anext(events)
        await events.aclose()
        up.script = "fine"
        assert b"fine" in await upstream.complete(to(up))


async def test_retry_after_is_kept() -> None:
    async def refuses(**fields: Any) -> Any:
        error = RuntimeError("slow")
        error.status_code = 429  # type: ignore[attr-defined]
        error.response = SimpleNamespace(headers={"retry-after": "9"})  # type: ignore[attr-defined]
        raise error

    with pytest.raises(UpstreamError) as caught:
        await lite(SimpleNamespace(acompletion=refuses)).complete(call())
    assert (caught.value.status, caught.value.headers()) == (429, {"Retry-After": "9"})


async def test_its_models() -> None:
    assert [m["id"] for m in await lite(StandIn()).models()] == ["openai/gpt-x"]


@pytest.mark.skipif(INSTALLED, reason="the library is there")
def test_without_the_library() -> None:
    with pytest.raises(MissingExtra, match=r"optillm\[litellm\]"):
        LiteLLMUpstream("lite", HTTPOptions())
