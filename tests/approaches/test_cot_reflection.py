"""Chain of thought with reflection: the acceptance cases of its specification."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.prompting.cot_reflection import OutputView, extract
from tests.fakes import Reply, ScriptedUpstream
from tests.serving import serving

TRICKY = "<thinking>I will use <output> tags.. 1</thinking>\n<output>42</output>"
CASES = [
    (TRICKY, "42"),
    (
        "<thinking>t</thinking><output>use <output>x</output> in HTML</output>",
        "use <output>x</output> in HTML",
    ),
    ("plain answer", "plain answer"),
    ("<thinking>half", "half"),
    ("<thinking>a<reflection>b</reflection></thinking>rest", "rest"),
    ("<thinking>t</thinking><output>cut off", "cut off"),
    ("<think>x</think><thinking>t</thinking><output> a </output>", "a"),
    ("<output>only</output>", "only"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "output"), CASES)
def test_extract(text: str, output: str) -> None:
    assert extract(text)[1] == output


@pytest.mark.parametrize(("text", "output"), [c for c in CASES if "<think>" not in c[0]])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_view_shows_what_extract_finds(text: str, output: str, size: int) -> None:
    assert viewed([text[i : i + size] for i in range(0, len(text), size)]) == output


TAGS = st.sampled_from(
    ["<thinking>", "</thinking>", "<output>", "</output>", "<reflection>", "</reflection>"]
)
PIECE = TAGS | st.sampled_from(["a", " ", "\n", "<", "</", "</out", "x y", "put>"])


@given(st.lists(PIECE, max_size=14), st.randoms(use_true_random=False))
def test_any_split_shows_what_extract_finds(pieces: list[str], rng: object) -> None:
    text = "".join(pieces)
    assert viewed(pieces) == viewed(list(text)) == extract(text)[1]


def viewed(pieces: list[str]) -> str:
    view = OutputView(expose=False)
    shown = "".join(view.feed(p)[0] for p in pieces)
    return shown + view.close(False)[0]


@pytest.mark.anyio
async def test_truncated_thinking_has_no_tags() -> None:
    async with ScriptedUpstream(Reply("<thinking>half", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("cot_reflection-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("half", "length")


@pytest.mark.anyio
async def test_full_response_on_request() -> None:
    async with ScriptedUpstream(TRICKY) as up, serving(up) as proxy:
        assert (await proxy.ask("cot_reflection-test-model", return_full_response=True)).text == TRICKY
        assert (await proxy.ask("cot_reflection-test-model")).text == "42"


@pytest.mark.anyio
async def test_thinking_as_reasoning_on_request() -> None:
    async with ScriptedUpstream(TRICKY) as up, serving(up) as proxy:
        answer = await proxy.ask("cot_reflection-test-model", cot_expose_reasoning=True)
        assert "I will use" in answer.json["choices"][0]["message"]["reasoning_content"]


@pytest.mark.anyio
async def test_streamed_character_by_character() -> None:
    async with ScriptedUpstream(Reply(TRICKY, pieces=tuple(TRICKY))) as up, serving(up) as proxy:
        events = await proxy.events("cot_reflection-test-model")
        deltas = [c["delta"] for e in events[:-1] for c in json.loads(e)["choices"]]
        assert "".join(d.get("content", "") for d in deltas) == "42"
        assert "thinking" not in str(deltas)
        assert events[-1] == "[DONE]"


@pytest.mark.anyio
async def test_instruction_joins_the_clients_system_message() -> None:
    messages = [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Hi"}]
    async with ScriptedUpstream(TRICKY) as up, serving(up) as proxy:
        await proxy.ask("cot_reflection-test-model", messages=messages)
        sent = up.calls[0].messages
        assert [m["role"] for m in sent] == ["system", "user"]
        assert sent[0]["content"].startswith("Speak French.")
        assert "<reflection>" in sent[0]["content"]


@pytest.mark.anyio
async def test_two_at_once_with_their_own_temperature() -> None:
    async with ScriptedUpstream(TRICKY) as up, serving(up) as proxy:
        await asyncio.gather(
            proxy.ask("cot_reflection-test-model", "marker-a", temperature=0.1),
            proxy.ask("cot_reflection-test-model", "marker-b", temperature=0.9),
            proxy.ask("cot_reflection-test-model", "marker-c"),
        )
        got = {c.last: c.body["temperature"] for c in up.calls}
        assert got == {"marker-a": 0.1, "marker-b": 0.9, "marker-c": 0.6}
