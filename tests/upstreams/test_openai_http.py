"""An OpenAI-compatible server over HTTP: retries, time-outs, faults, keys."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from optillm.protocol.errors import OptiError, UpstreamError, UpstreamTimeout
from optillm.upstreams.http import ClientOptions
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, serving
from tests.upstreams.servers import COMPLETION, KEY, answering, call, upstream

pytestmark = pytest.mark.anyio


def failing(times: int, fault: Fault) -> Any:
    """A script that fails so many times, and then answers."""
    tries: list[Seen] = []

    def script(seen: Seen) -> Said:
        tries.append(seen)
        return fault if len(tries) <= times else "fine"

    return script


@asynccontextmanager
async def serving_fault(fault: Fault, **settings: Any) -> AsyncIterator[Answer]:
    """What a client gets when the upstream does this."""
    async with ScriptedUpstream(fault) as up, serving(up, **settings) as proxy:
        yield await proxy.ask()


# -- retries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
async def test_a_passing_fault_is_tried_again(status: int) -> None:
    async with (
        ScriptedUpstream(failing(2, Fault(status=status))) as up,
        upstream(up.base_url, retries=2) as client,
    ):
        assert b'"fine"' in await client.complete(call())
        assert len(up.calls) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422])
async def test_a_refusal_is_not_tried_again(status: int) -> None:
    async with ScriptedUpstream(Fault(status=status)) as up, upstream(up.base_url, retries=3) as client:
        with pytest.raises(UpstreamError) as caught:
            await client.complete(call())
        assert caught.value.upstream_status == status
        assert len(up.calls) == 1


async def test_a_reset_connection_is_tried_again() -> None:
    async with (
        ScriptedUpstream(failing(1, Fault("reset"))) as up,
        upstream(up.base_url, retries=1) as client,
    ):
        assert b'"fine"' in await client.complete(call())


async def test_retries_end() -> None:
    async with ScriptedUpstream(Fault(status=503)) as up, upstream(up.base_url, retries=2) as client:
        with pytest.raises(UpstreamError, match="answered 503"):
            await client.complete(call())
        assert len(up.calls) == 3


async def test_a_stream_is_tried_again_before_it_begins() -> None:
    async with (
        ScriptedUpstream(failing(1, Fault(status=503))) as up,
        upstream(up.base_url, retries=1) as client,
    ):
        events = [json.loads(e) async for e in client.stream(call())]
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "fine"


async def test_a_stream_that_began_is_not_tried_again() -> None:
    async with ScriptedUpstream(Fault("cut_stream")) as up, upstream(up.base_url, retries=3) as client:
        with pytest.raises(UpstreamError):
            [e async for e in client.stream(call())]
        assert len(up.calls) == 1


def in_(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    "asked",
    ["0", "-5", "nan", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 -0000"],
)
async def test_a_retry_after_that_is_over_or_says_nothing(asked: str) -> None:
    fault = refusal(429, "slow", retry_after=asked)
    async with ScriptedUpstream(failing(1, fault)) as up, upstream(up.base_url, retries=1) as client:
        assert b'"fine"' in await client.complete(call())
        assert len(up.calls) == 2


@pytest.mark.parametrize("asked", ["0.2", "date"])
async def test_a_retry_after_is_waited_for(asked: str) -> None:
    loop = asyncio.get_running_loop()
    arrivals: list[float] = []

    def script(seen: Seen) -> Said:
        arrivals.append(loop.time())
        # A date has whole seconds: two ahead are at least one.
        value = in_(2) if asked == "date" else asked
        return "fine" if len(arrivals) == 2 else refusal(429, "slow", retry_after=value)

    async with ScriptedUpstream(script) as up, upstream(up.base_url, retries=1) as client:
        await client.complete(call())
    assert arrivals[1] - arrivals[0] >= (0.2 if asked == "0.2" else 0.9)


@pytest.mark.parametrize("asked", ["21", "3600", "inf", "date"])
async def test_a_retry_after_that_is_too_long_is_passed_on(asked: str) -> None:
    value = in_(3600) if asked == "date" else asked
    async with (
        ScriptedUpstream(refusal(429, "slow", retry_after=value)) as up,
        upstream(up.base_url, retries=5) as client,
    ):
        with pytest.raises(UpstreamError) as caught:
            await client.complete(call())
        assert (caught.value.status, caught.value.headers()) == (429, {"Retry-After": value})
        assert len(up.calls) == 1


async def test_a_retry_after_that_is_no_header_is_not_passed_on() -> None:
    async with serving_fault(refusal(429, "slow", retry_after="später")) as answer:
        assert answer.status == 429
        assert "Retry-After" not in answer.headers


async def test_waiting_for_another_try_holds_no_place() -> None:
    """With one place, another run's call gets through while the first waits for its next try."""
    finished: list[str] = []

    def script(seen: Seen) -> Said:
        if seen.last == "busy" and "other" not in finished:
            return refusal(429, "slow", retry_after="1")
        return "fine"

    async with (
        ScriptedUpstream(script) as up,
        upstream(up.base_url, retries=1, concurrency=1) as client,
    ):
        waiting = asyncio.ensure_future(client.complete(call("busy", run="a")))
        await up.until(lambda: bool(up.calls) and up.calls[0].outcome == "answered")
        await client.complete(call("other", run="b"))
        finished.append("other")
        assert not waiting.done()
        assert b'"fine"' in await waiting
        assert [c.last for c in up.calls] == ["busy", "other", "busy"]


# -- time-outs -------------------------------------------------------------------------------


@contextmanager
def deaf() -> Iterator[str]:
    """An address where connections are not accepted: the queue of its socket is full."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


async def test_connecting_takes_too_long() -> None:
    with deaf() as url:
        async with upstream(url, client=ClientOptions(connect_timeout=0.1)) as client:
            with pytest.raises(UpstreamTimeout) as caught:
                await client.complete(call())
            assert caught.value.status == 504


@pytest.mark.parametrize("stream", [False, True])
async def test_silence_takes_too_long(stream: bool) -> None:
    async with (
        ScriptedUpstream(Fault("hang")) as up,
        upstream(up.base_url, client=ClientOptions(read_timeout=0.1)) as client,
    ):
        with pytest.raises(UpstreamTimeout):
            await (anext(client.stream(call())) if stream else client.complete(call()))
        await up.until(lambda: up.calls[0].outcome == "cancelled")


async def trickle(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


async def test_an_answer_that_never_ends_takes_too_long() -> None:
    async with (
        answering(trickle) as url,
        upstream(url, total_timeout=0.2) as client,
    ):
        with pytest.raises(UpstreamTimeout):
            await client.complete(call())


async def test_a_time_out_is_tried_again_within_the_total() -> None:
    script = failing(1, Fault("hang"))
    async with (
        ScriptedUpstream(script) as up,
        upstream(up.base_url, retries=1, client=ClientOptions(read_timeout=0.2)) as client,
    ):
        assert b'"fine"' in await client.complete(call())
        assert len(up.calls) == 2


async def test_the_total_covers_all_tries() -> None:
    async with (
        ScriptedUpstream(Fault("hang")) as up,
        upstream(up.base_url, retries=50, total_timeout=0.2) as client,
    ):
        with pytest.raises(UpstreamTimeout):
            await client.complete(call())
        assert len(up.calls) == 1


async def test_a_hang_is_504_for_the_client() -> None:
    async with serving_fault(Fault("hang"), request_timeout=0.3) as answer:
        assert answer.status == 504


# -- faults ----------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        # Bound, but not listening: nobody else can take the port meanwhile.
        taken.bind(("127.0.0.1", 0))
        async with upstream(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", retries=1) as client:
            with pytest.raises(UpstreamError, match="cannot be reached") as caught:
                await client.complete(call())
            assert caught.value.status == 502


async def test_a_host_that_does_not_exist() -> None:
    async with upstream("http://no-such-host.invalid/v1") as client:
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await client.complete(call())


async def test_a_reset_says_so() -> None:
    async with ScriptedUpstream(Fault("reset")) as up, upstream(up.base_url) as client:
        with pytest.raises(UpstreamError, match="closed the connection"):
            await client.complete(call())


async def test_a_body_that_breaks_off() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        assert request.transport is not None
        request.transport.abort()
        return response

    async with answering(half) as url, upstream(url) as client:
        with pytest.raises(UpstreamError, match="broke off its answer"):
            await client.complete(call())


async def test_gzip_is_read() -> None:
    async def packed(request: web.Request) -> web.StreamResponse:
        assert "gzip" in request.headers["Accept-Encoding"]
        body = gzip.compress(json.dumps(COMPLETION).encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async with answering(packed) as url, upstream(url) as client:
        assert json.loads(await client.complete(call())) == COMPLETION
        async with serving(url) as proxy:
            assert (await proxy.ask("bon-m")).text == "ok"


async def test_gzip_that_is_none() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"no gzip at all", headers={"Content-Encoding": "gzip"})

    async with answering(broken) as url, upstream(url) as client:
        with pytest.raises(UpstreamError):
            await client.complete(call())


async def test_no_http_at_all() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.com ESMTP\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with upstream(f"http://127.0.0.1:{port}/v1") as client:
            with pytest.raises(UpstreamError):
                await client.complete(call())


async def test_redirects_are_not_followed() -> None:
    elsewhere: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "elsewhere" in request.path:
            elsewhere.append(request.headers.get("Authorization", ""))
            return web.json_response(COMPLETION)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with answering(handler) as url, upstream(url) as client:
        for asked in (client.complete(call()), client.models()):
            with pytest.raises(UpstreamError, match="307"):
                await asked
    assert elsewhere == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [("application/json", b'{"choices": []}'), ("text/html", b"<html>login</html>")],
)
async def test_a_stream_of_the_wrong_type(kind: str, body: bytes) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=kind)

    async with answering(handler) as url, serving(url) as proxy:
        answer = await proxy.ask(stream=True)
        assert (answer.status, answer.error["type"]) == (502, "upstream_error")
        assert kind in answer.error["message"]


def chunk(index: int = 0, finish: str | None = None, **delta: str) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("events", "n", "whole"),
    [
        ([chunk(content="a"), chunk(finish="stop"), DONE], 1, True),
        ([chunk(content="a"), chunk(finish="stop")], 1, True),
        ([chunk(content="a"), DONE], 1, True),
        ([chunk(content="a")], 1, False),
        ([], 1, False),
        ([chunk(content='"finish_reason":"stop"')], 1, False),
        ([chunk(0, content="a"), chunk(1, content="b"), chunk(0, "stop"), chunk(1, "stop")], 2, True),
        ([chunk(0, content="a"), chunk(1, content="b"), chunk(0, "stop")], 2, False),
        ([chunk(content="a"), b"data: {broken\n\n", DONE], 1, False),
        ([chunk(content="a"), b'data: {"error": {"message": "out of memory"}}\n\n', DONE], 1, False),
    ],
    ids=lambda v: None if isinstance(v, list) else str(v),
)
@pytest.mark.parametrize("model", ["m", "re2-m"])
async def test_a_stream_never_ends_silently(events: list[bytes], n: int, whole: bool, model: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        return response

    async with answering(handler) as url, serving(url) as proxy:
        answer = await proxy.http.post(
            proxy.base_url + "/chat/completions",
            json={"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True, "n": n},
        )
        raw = await answer.text()
        if whole:
            assert raw.endswith("data: [DONE]\n\n")
            assert '"error"' not in raw
        else:
            last = json.loads(raw.strip().split("\n\n")[-1].removeprefix("data: "))
            assert last["error"]["type"] == "upstream_error"
            assert "[DONE]" not in raw


async def test_streams_share_a_connection() -> None:
    peers: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk(content="a") + chunk(finish="stop") + DONE)
        return response

    async with answering(handler) as url, upstream(url) as client:
        for _ in range(3):
            assert len([e async for e in client.stream(call())]) == 2
    assert len(set(peers)) == 1


async def test_a_stream_that_is_closed_closes_its_connection() -> None:
    async with (
        ScriptedUpstream(Reply("some text", hangs=True)) as up,
        upstream(up.base_url, concurrency=1) as client,
    ):
        events = client.stream(call())
        await anext(events)
        await events.aclose()
        await up.until(lambda: up.calls[0].outcome == "cancelled")
        up.script = "ok"
        assert b'"ok"' in await client.complete(call())


# -- keys ------------------------------------------------------------------------------------


async def test_the_key_is_sent() -> None:
    async with ScriptedUpstream() as up, upstream(up.base_url, key=f" {KEY}\n") as client:
        await client.complete(call())
        await client.complete(call(bearer="a-client's-token"))
        assert [c.headers["Authorization"] for c in up.calls] == [f"Bearer {KEY}", "Bearer a-client's-token"]
    async with ScriptedUpstream() as up, upstream(up.base_url, key=None) as client:
        await client.complete(call())
        assert "Authorization" not in up.calls[0].headers


TOKEN = "sk-token-of-the-client"


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, TOKEN),
        ({"forward_bearer": True}, TOKEN),
        ({"forward_bearer": False}, "upstream-key"),
        ({"optillm_api_key": TOKEN}, "upstream-key"),
        ({"optillm_api_key": TOKEN, "forward_bearer": True}, "upstream-key"),
        ({"optillm_api_key": "another", "forward_bearer": True}, TOKEN),
    ],
)
@pytest.mark.parametrize("model", ["m", "bon-m"])
async def test_whose_token_goes_upstream(settings: dict[str, Any], sent: str, model: str) -> None:
    async with ScriptedUpstream("Score: 5") as up, serving(up, **settings) as proxy:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        answer = await proxy.post(body, {"Authorization": f"Bearer {TOKEN}"})
        assert answer.status == 200
        assert {c.headers["Authorization"] for c in up.calls} == {f"Bearer {sent}"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_text", [False, True])
async def test_a_key_that_an_upstream_repeats_reaches_nobody(
    stream: bool, as_text: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def script(seen: Seen) -> Said:
        said = f"Incorrect API key provided: {seen.headers['Authorization']}"
        return Fault(status=401, body=said.encode()) if as_text else refusal(401, said)

    for forwarded, secret in ((False, "upstream-key"), (None, TOKEN)):
        async with ScriptedUpstream(script) as up, serving(up, forward_bearer=forwarded) as proxy:
            for model in ("m", "bon-m"):
                body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream}
                answer = await proxy.post(body, {"Authorization": f"Bearer {TOKEN}"})
                assert answer.status == 401
                assert "Incorrect API key" in answer.error["message"]
                assert secret not in json.dumps(answer.json)
                assert secret not in str(answer.headers)
            runs = (await proxy.get("/v1/runs")).json["data"]
            assert len(runs) == 2
            for run in runs:
                whole = json.dumps((await proxy.get(f"/v1/runs/{run['id']}")).json)
                assert secret not in whole
    assert "upstream-key" not in caplog.text
    assert TOKEN not in caplog.text


def test_a_call_does_not_show_its_token() -> None:
    assert TOKEN not in repr(call(bearer=TOKEN))


# -- the list of models ----------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"<html>", b'{"data": 5}', b"5", b'{"object": "list"}'])
async def test_a_model_list_that_is_none(body: bytes) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    async with answering(handler) as url, upstream(url) as client:
        with pytest.raises(OptiError, match="no model list"):
            await client.models()


@pytest.mark.parametrize("body", [[{"id": "a"}, {"no": 1}, 5], {"models": [{"id": "a"}]}])
async def test_model_lists_of_other_shapes(body: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    async with answering(handler) as url, upstream(url) as client:
        assert [m["id"] for m in await client.models()] == ["a"]
