"""Streaming: live, in order, kept alive, and never silently cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams
from optillm.core.registry import Registry, approach
from optillm.core.reply import Answer
from optillm.core.reply import Reply as Said_
from optillm.core.task import Task
from optillm.faces.stream import EventStream
from optillm.plugins import builtin_registry
from optillm.protocol.chat import parse_request
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "the sky"}'}}


def anything(call: Seen) -> Said:
    if call.stage in ("rate", "eval"):
        return "Score: 5"
    return "more?" if call.stage == "user" else [f"text {i}" for i in range(call.n)]


class Listener:
    """A streaming client that takes one event at a time."""

    def __init__(self, response: Any) -> None:
        self.response = response

    async def event(self) -> str:
        """The next event or comment."""
        block = await asyncio.wait_for(self.response.content.readuntil(b"\n\n"), 30)
        return str(block.decode().removesuffix("\n\n").removeprefix("data: "))

    async def until(self, text: str) -> str:
        """The first event that contains this."""
        while text not in (event := await self.event()):
            pass
        return event

    async def rest(self) -> list[str]:
        """All other events."""
        raw = (await asyncio.wait_for(self.response.read(), 30)).decode()
        return [block.removeprefix("data: ") for block in raw.split("\n\n") if block]


@asynccontextmanager
async def listening(proxy: Proxy, model: str, **fields: Any) -> AsyncIterator[Listener]:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True, **fields}
    async with proxy.http.post(proxy.base_url + "/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        yield Listener(response)


def chunks(events: list[str]) -> list[dict[str, Any]]:
    """The JSON of a complete stream; it ends as it should."""
    assert events[-1] == "[DONE]"
    return [json.loads(e) for e in events[:-1] if not e.startswith(":")]


def spoken(read: list[dict[str, Any]]) -> dict[int, str]:
    """The content of every choice."""
    out: dict[int, str] = {}
    for choice in (c for chunk in read for c in chunk["choices"]):
        out[choice["index"]] = out.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return out


def check_order(read: list[dict[str, Any]]) -> None:
    """Choices begin in order, each with its role, and each ends once, after all that it says."""
    begun: list[int] = []
    ended: list[int] = []
    for choice in (c for chunk in read for c in chunk["choices"]):
        index = choice["index"]
        assert index not in ended
        if index not in begun:
            begun.append(index)
            assert choice["delta"] == {"role": "assistant", "content": ""}
        else:
            assert "role" not in choice["delta"]
        if choice["finish_reason"] is not None:
            ended.append(index)
    assert begun == sorted(ended) == list(range(len(begun)))


# -- live ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["m", "re2-m", "moa-m", "cot_reflection-m", "self_consistency&re2-m"])
async def test_the_last_answer_is_seen_before_the_upstream_has_finished_it(model: str) -> None:
    gate = asyncio.Event()
    answer = "<thinking>hm</thinking><output>first" if "cot" in model else "first"

    def script(call: Seen) -> Said:
        if not call.body.get("stream"):
            return anything(call)
        return Reply(answer + " second", pieces=(answer, " second"), gate=gate)

    async with ScriptedUpstream(script) as up, serving(up) as proxy, listening(proxy, model) as client:
        await client.until("first")
        assert up.calls[-1].outcome == "open"
        gate.set()
        read = chunks(await client.rest())
        assert "".join(spoken(read).values()) == " second"


async def test_only_the_last_answer_is_streamed() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        await proxy.events("re2|bon-m")
        assert [c.body.get("stream", False) for c in up.calls if c.n == 3] == [False]
        up.calls.clear()
        await proxy.events("cot_reflection&moa-m")
        assert [c.body.get("stream", False) for c in up.calls] == [False, False, False, True]


async def test_progress_is_seen_while_the_technique_works() -> None:
    gate = asyncio.Event()

    async def script(call: Seen) -> Said:
        if call.stage == "rate":
            await gate.wait()
        return anything(call)

    async with (
        ScriptedUpstream(script) as up,
        serving(up, stream_progress="reasoning") as proxy,
        listening(proxy, "bon-m") as client,
    ):
        first = json.loads(await client.until("bon.sample"))
        assert set(first["choices"][0]["delta"]) == {"reasoning_content"}
        await up.until(lambda: up.in_flight == 3)
        gate.set()
        assert spoken(chunks(await client.rest())) == {0: "text 0"}


@pytest.mark.parametrize("progress", ["reasoning", "comments", "off"])
async def test_progress_changes_nothing_about_the_answer(progress: str) -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        for model in ("bon-m", "mcts-m", "bon|moa-m"):
            events = await proxy.events(model, optillm_progress=progress)
            assert any(e.startswith((": bon", ": mcts")) for e in events) is (progress == "comments")
            read = chunks(events)
            check_order(read)
            deltas = [c["delta"] for chunk in read for c in chunk["choices"]]
            assert any("reasoning_content" in d for d in deltas) is (progress == "reasoning")
            assert set(spoken(read).values()) == {"text 0"}


# -- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "model",
    [
        "re2-m",
        "bon-m",
        "moa|re2-m",
        "re2|bon|moa-m",
        "re2&bon|moa-m",
        "(re2&(bon|moa))|cot_reflection-m",
        "bon&(re2|moa)-m",
    ],
)
@pytest.mark.parametrize("n_mode", ["native", "ignore"])
async def test_a_stream_has_the_choices_of_the_whole_answer(model: str, n: int, n_mode: str) -> None:
    def script(call: Seen) -> Said:
        if call.stage in ("rate", "eval"):
            return "Score: 5"
        # What was asked decides what is said, so that a mix of choices shows.
        mark = f"{len(call.text)}/{call.body.get('seed')}"
        return [f"says {mark}/{i}" for i in range(call.n)]

    async with ScriptedUpstream(script, n_mode=n_mode) as up, serving(up, n_mode="auto") as proxy:
        if n_mode == "ignore":
            await proxy.ask("self_consistency-m")  # so that both requests find it learned
        fields: dict[str, Any] = {"n": n, "seed": 1}
        whole = await proxy.ask(model, "x", **fields)
        read = chunks(await proxy.events(model, "x", **fields))
        check_order(read)
        # Marks in prompts are drawn from the seed, so both requests ask the same.
        assert spoken(read) == dict(enumerate(whole.texts))
        named = {c["index"]: c["optillm"]["approach"] for k in read for c in k["choices"] if "optillm" in c}
        assert named == {
            c["index"]: c["optillm"]["approach"] for c in whole.json["choices"] if "optillm" in c
        }


async def test_an_empty_choice_does_not_shift_the_others() -> None:
    async with ScriptedUpstream([Reply(""), "b", "c"]) as up, serving(up) as proxy:
        read = chunks(await proxy.events("re2-m", n=3))
        check_order(read)
        assert spoken(read) == {0: "", 1: "b", 2: "c"}


async def test_a_failed_branch_does_not_mix_with_the_one_that_was_streamed() -> None:
    def script(call: Seen) -> Said:
        return Fault(status=500) if call.n == 3 else "fine"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        read = chunks(await proxy.events("bon|re2-m"))
        check_order(read)
        assert spoken(read) == {0: "", 1: "fine"}
        assert "500" in read[-1]["optillm"]["failed"]["bon"]


async def test_a_failed_pipeline_is_named() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 5"
        return Fault(status=500) if call.body["seed"] == 1001 else [f"text {i}" for i in range(call.n)]

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m", n=3, seed=1)
        assert (answer.status, answer.texts) == (200, ["text 0", "text 0"])
        assert "500" in answer.info["failed"]["bon"]
        read = chunks(await proxy.events("bon-m", n=3, seed=1))
        assert "500" in read[-1]["optillm"]["failed"]["bon"]


async def test_a_failed_branch_inside_a_chain_is_named() -> None:
    def script(call: Seen) -> Said:
        return Fault(status=500) if call.n == 3 else anything(call)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("re2&(bon|cot_reflection)-m")
        assert (answer.status, answer.text) == (200, "text 0")
        assert "500" in answer.info["failed"]["re2&bon"]


async def test_choices_that_time_cut_off_end_as_truncated() -> None:
    never = asyncio.Event()
    replies = [Reply(f"{i} more", pieces=(str(i), " more")) for i in range(3)]
    held = [Reply(r.text, pieces=r.pieces, gate=never) for r in replies]

    async with ScriptedUpstream(lambda c: held[c.body["seed"]]) as up, serving(up, n_mode="fanout") as proxy:
        read = chunks(await proxy.events("re2-m", n=3, seed=0, optillm_budget={"max_seconds": 0.5}))
        check_order(read)
        ends = {c["index"]: c["finish_reason"] for k in read for c in k["choices"] if c["finish_reason"]}
        assert ends == {0: "length", 1: "length", 2: "length"}
        assert spoken(read) == {0: "0", 1: "1", 2: "2"}
        assert read[-1]["optillm"]["cut_short"] == "max_seconds"


# -- what a message holds ------------------------------------------------------------------------


@pytest.mark.parametrize("progress", ["reasoning", "off"])
@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"refusal": "I will not."}, "refusal"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
        ({"annotations": [{"type": "url_citation"}]}, "annotations"),
        ({"reasoning_content": "deep thought"}, "reasoning_content"),
    ],
)
async def test_nothing_of_a_winner_is_lost_by_streaming(
    progress: str, extra: dict[str, Any], field: str
) -> None:
    def script(call: Seen) -> Said:
        return "Score: 5" if call.stage == "rate" else [Reply(f"a{i}", extra=extra) for i in range(call.n)]

    async with ScriptedUpstream(script) as up, serving(up, stream_progress=progress) as proxy:
        whole = (await proxy.ask("bon-m")).json["choices"][0]["message"]
        read = chunks(await proxy.events("bon-m"))
        deltas = [c["delta"] for chunk in read for c in chunk["choices"]]
        shown = [d[field] for d in deltas if field in d and "bon." not in str(d[field])]
        assert shown == [whole[field]] == [extra[field]]


async def test_a_tool_call_that_wins_is_streamed_whole() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 5"
        return Reply(None, tool_calls=(CALL,), finish="tool_calls")

    async with ScriptedUpstream(script) as up, serving(up, stream_progress="reasoning") as proxy:
        read = chunks(await proxy.events("bon-m"))
        calls = [c["delta"]["tool_calls"] for k in read for c in k["choices"] if "tool_calls" in c["delta"]]
        assert calls == [[{"index": 0, **CALL}]]
        assert read[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_logprobs_are_streamed_once() -> None:
    token = {"token": "x", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    reply = Reply("ab", pieces=("a", "b"), logprobs={"content": [token], "refusal": None})

    def script(call: Seen) -> Said:
        return "Score: 5" if call.stage == "rate" else reply

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        for model, count in (("re2-m", 2), ("bon-m", 1)):
            read = chunks(await proxy.events(model, logprobs=True))
            given = [c["logprobs"]["content"] for k in read for c in k["choices"] if c["logprobs"]]
            assert given == [[token]] * count


@pytest.mark.parametrize("model", ["re2-m", "bon-m", "bon|re2-m"])
async def test_usage_chunk(model: str) -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        without = chunks(await proxy.events(model))
        assert all("usage" not in chunk for chunk in without)
        with_usage = chunks(await proxy.events(model, stream_options={"include_usage": True}))
        assert [chunk["usage"] for chunk in with_usage[:-1]] == [None] * (len(with_usage) - 1)
        assert with_usage[-1]["choices"] == []
        assert with_usage[-1]["usage"] == (await proxy.ask(model)).json["usage"]
        assert [("optillm" in chunk) for chunk in with_usage].count(True) == 1
        assert len({chunk["id"] for chunk in with_usage}) == 1


async def test_headers_of_a_stream() -> None:
    async with (
        ScriptedUpstream(anything) as up,
        serving(up) as proxy,
        listening(proxy, "bon-m") as client,
    ):
        head = client.response.headers
        assert head["Content-Type"] == "text/event-stream; charset=utf-8"
        assert (head["Cache-Control"], head["X-Accel-Buffering"]) == ("no-cache", "no")
        assert head["X-Optillm-Approach"] == "bon"
        assert head["X-Request-Id"]
        read = chunks(await client.rest())
        assert head["X-Optillm-Run"] == read[-1]["optillm"]["run_id"] == read[0]["id"]


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        b"{not json",
        b'{"choices": 5}',
        b'{"choices": [{"index": 0, "delta": {"tool_calls": ["x"]}}]}',
        b'{"choices": [{"index": 0, "delta": {"content": 5}}]}',
        b'{"choices": [{"index": 0, "delta": {"tool_calls": [{"function": "f"}]}}]}',
        b'{"error": {"message": "overheated", "code": 500}}',
    ],
)
@pytest.mark.parametrize("model", ["m", "re2-m"])
async def test_a_malformed_event_in_the_middle_ends_with_an_error_event(piece: bytes, model: str) -> None:
    from tests.fakes import Raw

    good = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "so far"}}]}\n\n'
    async with ScriptedUpstream(Raw(good + b"data: " + piece + b"\n\n")) as up, serving(up) as proxy:
        events = await proxy.events(model)
        assert any("so far" in event for event in events[:-1])
        error = json.loads(events[-1])["error"]
        assert set(error) == {"message", "type", "param", "code"} or error["message"] == "overheated"
        assert "[DONE]" not in events


class Params(ApproachParams):
    pass


def broken(answers_first: bool) -> Registry:
    async def run(task: Task, llm: LLM, p: Params) -> Answer:
        if answers_first:
            await llm.answer("broken.answer", task.messages)
        raise ZeroDivisionError("a secret of the code")

    made = approach("broken", family="test", title="Broken", calls="1", depth="1")(run)
    return Registry([*builtin_registry(), made])


async def test_a_fault_of_ours_in_the_middle_ends_with_an_error_event() -> None:
    async with ScriptedUpstream("so far") as up, serving(up, registry=broken(True)) as proxy:
        events = await proxy.events("broken-m")
        error = json.loads(events[-1])["error"]
        assert error["type"] == "internal_error"
        assert "secret" not in json.dumps(events)
        assert "[DONE]" not in events
        assert proxy.app.active == set()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_fault_of_ours_before_anything_is_a_plain_500(stream: bool) -> None:
    async with ScriptedUpstream() as up, serving(up, registry=broken(False)) as proxy:
        answer = await proxy.ask("broken-m", stream=stream)
        assert (answer.status, answer.error["type"]) == (500, "internal_error")
        assert answer.headers["X-Request-Id"] in answer.error["message"]
        assert "secret" not in json.dumps(answer.json)


# -- the writer ----------------------------------------------------------------------------------


class Wire:
    """The client's end of a response: what was sent; it can be made to take nothing more."""

    def __init__(self) -> None:
        self.sent: list[Mapping[str, Any]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.came = asyncio.Condition()

    async def __call__(self, message: Mapping[str, Any]) -> None:
        await self.open.wait()
        async with self.came:
            self.sent.append(message)
            self.came.notify_all()

    async def until(self, text: bytes, times: int = 1) -> None:
        async with self.came:
            await asyncio.wait_for(self.came.wait_for(lambda: self.body.count(text) >= times), 30)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)


async def stream_of(proxy: Proxy, wire: Wire, silence: float, **fields: Any) -> EventStream:
    await proxy.get("/health")  # the server has started
    assert proxy.app._chat is not None
    service = proxy.app._chat.service
    body = {"model": "re2-m", "messages": [{"role": "user", "content": "x"}], "stream": True, **fields}
    prepared = await service.prepare(*parse_request(json.dumps(body).encode()))
    stream = EventStream(wire, prepared, {"X-Request-Id": "me"}, silence)
    stream.run = service.start(prepared, run_id="chatcmpl-1", tenant="t", sink=stream)
    return stream


async def test_silence_is_filled_with_comments_that_begin_the_response() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        wire = Wire()
        stream = await stream_of(proxy, wire, silence=0.01)
        others = asyncio.all_tasks()
        stream.watch()
        await wire.until(b": keep-alive\n\n", 3)
        assert wire.sent[0]["type"] == "http.response.start"
        assert wire.sent[0]["status"] == 200
        await stream.delta(0, {"content": "hi"})
        await stream.end()
        await asyncio.wait(asyncio.all_tasks() - others)  # nothing beats on
        assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_concurrent_writers_take_turns() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        wire = Wire()
        stream = await stream_of(proxy, wire, silence=100, n=3)
        wire.open.clear()
        writing = [asyncio.ensure_future(stream.delta(i, {"content": str(i)})) for i in (2, 0, 1, 2)]
        await asyncio.sleep(0)  # each has begun, and waits
        assert wire.sent == []
        wire.open.set()
        await asyncio.gather(*writing)
        assert [m["type"] for m in wire.sent].count("http.response.start") == 1
        read = [json.loads(b.removeprefix("data: ")) for b in wire.body.decode().split("\n\n") if b]
        roles = [c["index"] for k in read for c in k["choices"] if "role" in c["delta"]]
        assert roles == [0, 1, 2]
        assert spoken(read) == {0: "0", 1: "1", 2: "22"}


async def test_a_reply_without_a_place_takes_the_first_free_one() -> None:
    from dataclasses import replace

    from optillm.core.execute import Choices, Outcome

    async with ScriptedUpstream() as up, serving(up) as proxy:
        wire = Wire()
        stream = await stream_of(proxy, wire, silence=100, n=3)
        await stream.delta(1, {"content": "live"})
        live = replace(Said_.of("live and whole"), choice=1)
        outcome = Outcome((Choices("re2", (Said_.of("a"), live, Said_.of("b"))),), None, {}, {})
        await stream.finish(outcome)
        read = chunks([b.removeprefix("data: ") for b in wire.body.decode().split("\n\n") if b])
        check_order(read)
        assert spoken(read) == {0: "a", 1: "live and whole", 2: "b"}


def direct(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """An ASGI scope and receive of a client that stays."""
    request = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Mapping[str, Any]:
        if request:
            return request.pop()
        stays: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        return await stays

    path = "/v1/chat/completions"
    return {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}, receive


async def test_a_client_that_does_not_read_holds_the_upstream_back() -> None:
    """What the client does not take is not read from the upstream either."""
    size, piece = 8 << 20, "x" * 65536
    big = Reply("x" * size, pieces=(piece,) * (size // len(piece)))
    async with ScriptedUpstream(big) as up, serving(up) as proxy:
        assert (await proxy.get("/health")).status == 200
        wire = Wire()
        wire.open.clear()
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        reading = asyncio.ensure_future(proxy.app(*direct(body), wire))
        await up.until(lambda: len(up.calls) == 1)
        up.script = "quick"
        for _ in range(20):
            # Others are answered meanwhile; a server that went on reading would long be through.
            assert (await proxy.ask("m")).text == "quick"
        assert up.calls[0].outcome == "open"
        wire.open.set()
        await asyncio.wait_for(reading, 60)
        assert wire.body.count(b"x") >= size
        assert wire.body.endswith(b"data: [DONE]\n\n")
