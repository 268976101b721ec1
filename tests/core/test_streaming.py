"""Streamed chunks, put together: the same reply as one that came whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.frozen import thaw
from optillm.core.streaming import Assembler, StreamView, parse_chunk
from optillm.protocol.errors import UpstreamError

pytestmark = pytest.mark.anyio

ARGUMENTS = '{"at": "the sky", "n": [1, 2]}'


class Shown:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.deltas: list[tuple[int, Mapping[str, Any], Any]] = []

    async def delta(self, choice: int, delta: Mapping[str, Any], logprobs: Any = None) -> None:
        self.deltas.append((choice, delta, logprobs))

    async def progress(self, line: str) -> None:
        raise AssertionError("nothing to tell")

    async def raw(self, payload: bytes, finished: bool) -> None:
        raise AssertionError("not a pass-through")


def chunk(index: int, delta: Any, finish: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return json.dumps({"choices": [choice], **more}).encode()


async def assembled(*payloads: bytes, sink: Shown | None = None, first: int = 0) -> Assembler:
    assembler = Assembler(sink, first, StreamView)
    for payload in payloads:
        await assembler.feed(payload)
    await assembler.close()
    return assembler


def cut(text: str, places: list[int]) -> list[str]:
    at = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in pairwise(at)]


@given(
    st.text(min_size=1), st.lists(st.integers(0, 50), max_size=5), st.lists(st.integers(0, 50), max_size=5)
)
def test_any_split_makes_the_same_reply(text: str, places: list[int], cuts: list[int]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}
    payloads = [chunk(0, {"role": "assistant", "content": ""})]
    payloads += [chunk(0, {"content": piece}) for piece in cut(text, places)]
    payloads += [chunk(0, {"reasoning": piece}) for piece in cut(text, cuts)]
    payloads += [chunk(0, {"tool_calls": [{"index": 0, **call}]})]
    for piece in cut(ARGUMENTS, cuts):
        payloads.append(chunk(0, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
    shown = Shown()
    (reply,) = asyncio.run(assembled(*payloads, chunk(0, {}, "tool_calls"), sink=shown, first=4)).replies()
    assert (reply.text, reply.reasoning, reply.finish_reason) == (text, text, "tool_calls")
    whole = {**call, "function": {"name": "look", "arguments": ARGUMENTS}}
    assert thaw(reply.tool_calls) == [whole]
    assert reply.choice == 4
    assert {choice for choice, _, _ in shown.deltas} == {4}
    assert "".join(d.get("content", "") for _, d, _ in shown.deltas) == text
    assert "".join(d.get("reasoning_content", "") for _, d, _ in shown.deltas) == text


async def test_choices_may_come_interleaved() -> None:
    assembler = await assembled(
        chunk(1, {"content": "b"}),
        chunk(0, {"content": "a"}),
        chunk(1, {"content": "B"}, "length"),
        chunk(0, {}, "stop", usage={"prompt_tokens": 3}, system_fingerprint="fp"),
    )
    assert [(r.text, r.finish_reason, r.choice) for r in assembler.replies()] == [
        ("a", "stop", None),
        ("bB", "length", None),
    ]
    assert (assembler.usage, assembler.system_fingerprint) == ({"prompt_tokens": 3}, "fp")
    assert assembler.finished == 2


async def test_parallel_tool_calls_are_kept_apart_also_without_an_index() -> None:
    def piece(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    first = {"tool_calls": [piece(1, name="b", arguments="1"), piece(0, name="a", arguments="0")]}
    more = {"tool_calls": [piece(1, arguments="1"), piece(0, arguments="0")]}
    (reply,) = (await assembled(chunk(0, first), chunk(0, more))).replies()
    assert [c["function"]["arguments"] for c in reply.tool_calls] == ["00", "11"]
    bare = {"tool_calls": [{"id": "x", "function": {"name": "a"}}, {"id": "y", "function": {"name": "b"}}]}
    (reply,) = (await assembled(chunk(0, bare))).replies()
    assert [c["id"] for c in reply.tool_calls] == ["x", "y"]
    assert reply.message["content"] is None


async def test_refusal_and_logprobs_add_up() -> None:
    token = {"token": "a", "logprob": -1.0}
    (reply,) = (
        await assembled(
            chunk(0, {"refusal": "I "}, logprobs={"content": [token], "refusal": None}),
            chunk(0, {"refusal": "will not"}, logprobs={"content": [token], "refusal": None}),
        )
    ).replies()
    assert reply.message["refusal"] == "I will not"
    assert thaw(reply.logprobs) == {"content": [token, token], "refusal": []}


async def test_what_was_seen_so_far_is_a_truncated_reply() -> None:
    assembler = await assembled(chunk(0, {"content": "half of"}), sink=Shown(), first=2)
    partial = assembler.partial
    assert partial is not None
    assert (partial.text, partial.finish_reason, partial.choice) == ("half of", "length", 2)
    assert (await assembled(chunk(0, {"role": "assistant"}))).partial is None
    assert (await assembled()).partial is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"choices": {}}',
        b'{"choices": [5]}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"index": "0"}]}',
        b'{"usage": 5, "choices": []}',
        b'{"error": "busy"}',
        b'{"error": {"message": "busy"}}',
        b'{"choices": [{"delta": {"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}]}",
    ],
)
def test_malformed_chunks_are_the_upstreams_fault(payload: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        parse_chunk(payload)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    "delta",
    [
        {"content": 5},
        {"content": {}},
        {"tool_calls": "x"},
        {"tool_calls": [1]},
        {"tool_calls": [{"function": 1}]},
    ],
)
async def test_malformed_deltas_are_the_upstreams_fault(delta: Any) -> None:
    with pytest.raises(UpstreamError):
        await assembled(chunk(0, delta))


async def test_an_empty_or_null_delta_says_nothing() -> None:
    shown = Shown()
    await assembled(
        chunk(0, None), chunk(0, {}), chunk(0, {"content": None, "role": "assistant"}), sink=shown
    )
    assert shown.deltas == []
