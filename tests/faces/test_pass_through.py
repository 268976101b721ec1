"""Pass-through is untouched in both directions, but for one member; and what headers may hold."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fakes import Raw, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio

# Odd on purpose: order, spaces, numbers, unknown members, escapes.
BODY = (
    b'{ "zeta":1.50, "choices" : [{"finish_reason":"stop","index":0,"new":{"deep":[1e2,-0.0]},'
    b'"message":{"content":"\\u00fc \\ud83d\\ude00 \xc3\xbc","role":"assistant","mood":null}}],'
    b'"big":123456789012345678901234567890,"usage":null,"id":"x","object":"chat.completion" }'
)
EVENTS = (
    b'{"id":"a","choices":[{"index":0,"delta":{"role":"assistant","content":"h\\u00e9"},"x":1.0}], "n": 1e2}',
    b'{"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"later":true}',
    b'{"id":"a","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2},"z":[1.10]}',
)


async def raw_post(proxy: Proxy, body: bytes) -> bytes:
    async with proxy.http.post(proxy.base_url + "/chat/completions", data=body) as response:
        assert response.status == 200
        return await response.read()


def asking(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode()


async def test_an_answer_is_the_upstreams_to_the_byte() -> None:
    async with ScriptedUpstream(Raw(BODY)) as up, serving(up) as proxy:
        answer = await raw_post(proxy, asking())
        theirs, ours, mine = answer.partition(b',"optillm":')
        assert ours
        assert theirs == BODY[:-1]
        assert json.loads(mine[:-1])["approach"] == "none"
        json.loads(answer)


async def test_a_stream_is_the_upstreams_to_the_byte() -> None:
    wire = b"".join(b"data: " + e + b"\n\n" for e in EVENTS) + b"data: [DONE]\n\n"
    async with ScriptedUpstream(Raw(wire)) as up, serving(up) as proxy:
        *events, end = (await raw_post(proxy, asking(stream=True))).split(b"\n\n")[:-1]
        assert end == b"data: [DONE]"
        assert events[0] == b"data: " + EVENTS[0]
        assert events[1].startswith(b"data: " + EVENTS[1][:-1] + b',"optillm":{')
        assert events[2] == b"data: " + EVENTS[2]


async def test_line_ends_and_multi_line_events_become_plain_ones() -> None:
    pretty = json.dumps(json.loads(EVENTS[0]), indent=1).encode()
    wire = b"".join(b"data: " + line + b"\r\n" for line in pretty.splitlines()) + b"\r\n"
    wire += b": comment\r\n\r\ndata: " + EVENTS[1] + b"\r\n\r\ndata: [DONE]\r\n\r\n"
    async with ScriptedUpstream(Raw(wire)) as up, serving(up) as proxy:
        read = (await raw_post(proxy, asking(stream=True))).split(b"\n\n")
        lines = [line.removeprefix(b"data: ") for line in read[0].split(b"\n")]
        assert json.loads(b"\n".join(lines)) == json.loads(EVENTS[0])
        assert read[1].startswith(b"data: " + EVENTS[1][:-1])
        assert read[2:] == [b"data: [DONE]", b""]


async def test_a_stream_with_fewer_choices_than_asked_still_tells_about_the_run() -> None:
    async with ScriptedUpstream("one", n_mode="ignore") as up, serving(up) as proxy:
        events = await proxy.events("m", n=3)
        assert events[-1] == "[DONE]"
        last = json.loads(events[-2])
        assert (last["choices"], last["optillm"]["calls"]) == ([], 1)
        assert sum("optillm" in json.loads(e) for e in events[:-1]) == 1


async def test_a_request_goes_on_as_it_came() -> None:
    fields: dict[str, Any] = {
        "temperature": 0,
        "brand_new": {"deep": [1.5, None, {"x": "\u00fc\U0001f600"}]},
        "huge": 10**40,
        "stop": None,
        "tools": [{"type": "new_kind", "new": 1}],
        "stream_options": {"include_usage": True},
        "n": 2,
    }
    messages = [
        {"role": "system", "content": "a", "cache_control": {"type": "ephemeral"}},
        {"role": "developer", "content": [{"type": "text", "text": "b", "cache_control": {}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "high"}}]},
        {"role": "assistant", "content": None, "reasoning_content": "r", "audio": {"id": "a"}},
        {"role": "user", "content": "x", "name": "ann"},
    ]
    async with ScriptedUpstream() as up, serving(up) as proxy:
        await proxy.events("m", messages=messages, **fields)
        assert up.calls[0].body == {"model": "m", "messages": messages, "stream": True, **fields}


async def test_what_is_ours_does_not_go_on() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        await proxy.ask(
            "none-m",
            optillm_budget={"max_calls": 3},
            optillm_progress="off",
            optillm={"budget": {"max_calls": 2}},
            mcts_depth=2,
            return_full_response=True,
        )
        assert set(up.calls[0].body) == {"model", "messages"}


@pytest.mark.parametrize("n", [None, 1, 4])
async def test_n_is_the_upstreams_business(n: int | None) -> None:
    async with ScriptedUpstream(["a", "b", "c", "d"]) as up, serving(up) as proxy:
        answer = await proxy.ask("m", **({} if n is None else {"n": n}))
        assert len(answer.json["choices"]) == (n or 1)
        assert up.calls[0].body.get("n") == n
        assert len(up.calls) == 1


async def test_a_refusal_is_the_upstreams() -> None:
    body = {"error": {"message": "no", "type": "odd", "param": "zzz", "code": 17, "more": {"a": 1}}, "b": 2}
    fault = refusal(429, "no", retry_after="3")
    fault = type(fault)(status=429, body=body, headers={"Retry-After": "3"})
    async with ScriptedUpstream(fault) as up, serving(up) as proxy:
        for stream in (False, True):
            answer = await proxy.ask("m", stream=stream)
            assert (answer.status, answer.json, answer.headers["Retry-After"]) == (429, body, "3")


MALFORMED = [
    b'{"choices":[{"message":{"content":5}}]}',
    b'{"choices":[{"message":{"content":{"a":1}}}]}',
    b'{"choices":[{"message":{"tool_calls":"x"}}]}',
    b'{"choices":[{"message":{"tool_calls":["x"]}}]}',
    b'{"choices":[{"message":{"tool_calls":[{"function":"f"}]}}]}',
    b'{"choices":[{"message":"hello"}]}',
    b'{"choices":["hello"]}',
    b'{"choices":[{"message":{"content":"x"},"finish_reason":5}]}',
    b'{"choices":[{"message":{"content":"x"},"logprobs":[1]}]}',
    b'{"choices":[{"message":{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}}]}",
    b'{"choices":{}}',
    b"[]",
    b"",
]


@pytest.mark.parametrize("model", ["m", "bon-m"])
@pytest.mark.parametrize("body", MALFORMED)
async def test_a_malformed_answer_is_502(body: bytes, model: str) -> None:
    async with ScriptedUpstream(Raw(body)) as up, serving(up) as proxy:
        answer = await proxy.ask(model)
        assert (answer.status, answer.error["type"]) == (502, "upstream_error")


async def test_parts_for_content_become_text_in_a_technique() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": parts}}]})
    async with ScriptedUpstream(Raw(body.encode())) as up, serving(up) as proxy:
        assert (await proxy.ask("bon(n=1)-m")).text == "ab"


# -- headers -------------------------------------------------------------------------------------


async def sent_by_hand(proxy: Proxy, head: bytes, body: bytes = b"") -> bytes:
    """The head of the response to a request written byte by byte."""
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + b"\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    writer.close()
    await writer.wait_closed()
    return answer


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: "


@pytest.mark.parametrize(
    ("given", "echoed"),
    [
        (b"abc-123", True),
        (b"~!@#$%^&*()", True),
        (b"a" * 128, True),
        (b"a" * 129, False),
        (b"two words", False),
        (b"\xfc", False),
        (b"a\x00b", False),
        (b"", False),
    ],
)
async def test_request_id_is_echoed_if_it_is_one(given: bytes, echoed: bool) -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        head = await sent_by_hand(proxy, POST + given, asking())
        if not head.startswith(b"HTTP/1.1 200"):
            assert head.startswith(b"HTTP/1.1 400")  # refused by the HTTP parser
            return
        (line,) = [h for h in head.split(b"\r\n") if h.lower().startswith(b"x-request-id:")]
        value = line.partition(b": ")[2]
        assert (value == given) is echoed
        assert echoed or value.startswith(b"req-")


async def test_ids_are_made_and_differ() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        ids = {(await proxy.get(path)).headers["X-Request-Id"] for path in ("/health", "/v1/models", "/zzz")}
        assert len(ids) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_in_a_name_can_become_a_header(stream: bool) -> None:
    evil = 'bon(n=1,judge_model="a\\\r\nX-Evil: 1\r\n\r\n\x00\x7f\u0085\u00fc\u2028")'

    async with ScriptedUpstream() as up, serving(up) as proxy:
        body = asking(optillm_approach=evil, stream=stream)
        head = await sent_by_hand(proxy, POST + b"a", body)
        assert head.startswith(b"HTTP/1.1 200")
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line]
        assert b"x-evil" not in names
        assert all(b" " <= bytes([c]) <= b"~" for c in head.replace(b"\r\n", b""))


async def test_headers_stay_small() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        long = f'bon(n=1,judge_model="{"j" * 100_000}")'
        answer = await proxy.ask("m", optillm_approach=long)
        assert answer.status == 200
        assert len(answer.headers["X-Optillm-Approach"]) == 1000
        assert answer.info["approach"] == long.replace('"', "")


async def test_headers_of_pass_through() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        head = (await proxy.ask("m")).headers
        assert (head["X-Optillm-Approach"], head["X-Optillm-Calls"], head["X-Optillm-Depth"]) == (
            "none",
            "1",
            "1",
        )
        assert head["X-Optillm-Run"].startswith("chatcmpl-")
        assert float(head["Server-Timing"].removeprefix("run;dur=")) >= 0
        assert head["Content-Type"] == "application/json"


async def test_head_has_no_body_and_the_headers_of_get() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        for path in ("/health", "/v1/models", "/v1/approaches", "/openapi.json"):
            async with proxy.http.head(proxy.url + path) as response:
                assert (response.status, await response.read()) == (200, b"")
                assert int(response.headers["Content-Length"]) > 2
        async with proxy.http.head(proxy.base_url + "/chat/completions") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_bytes_of_an_image_survive_every_technique() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A+/=" * 5000}}

    def script(call: Seen) -> Said:
        return "Score: 0.5" if call.stage in ("rate", "eval") else [Reply(f"t{i}") for i in range(call.n)]

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        for technique in ("none", "re2", "cot_reflection", "bon", "moa", "mcts"):
            up.calls.clear()
            await proxy.ask("m", [{"type": "text", "text": "what?"}, image], optillm_approach=technique)
            for call in (c for c in up.calls if c.stage == "sample"):
                assert any(image in m["content"] for m in call.messages if isinstance(m["content"], list))
