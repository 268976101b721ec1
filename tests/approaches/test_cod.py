"""Chain of draft: one call, drafts before the separator, the answer after it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.prompting.cod import cod, instruction
from optillm.approaches.prompting.separated import AnswerView, split_answer
from tests.approaches.common import params, worst
from tests.fakes import Reply, ScriptedUpstream, refusal
from tests.serving import serving

DRAFTED = "20 - x = 12\nx = 8\n#### 8"
CASES = [
    (DRAFTED, "20 - x = 12\nx = 8", "8"),
    (
        "a; b. #### The result is 4.\n\n#### Remarks\nnone\n",
        "a; b.",
        "The result is 4.\n\n#### Remarks\nnone",
    ),
    ("no separator", "", "no separator"),
    ("3 + 4 = 7 ####", "", "3 + 4 = 7"),
    ("##### 5", "", "5"),
    ("a ### b", "", "a ### b"),
    ("<think>first #### 1</think>2 + 2\n#### 4", "2 + 2", "4"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "work", "answer"), CASES)
def test_split(text: str, work: str, answer: str) -> None:
    assert split_answer(text) == (work, answer)


@pytest.mark.parametrize(("text", "work", "answer"), CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_view_shows_the_answer(text: str, work: str, answer: str, size: int) -> None:
    content, reasoning = viewed([text[i : i + size] for i in range(0, len(text), size)])
    assert content == answer
    if work:
        assert reasoning.strip() == work


PIECE = st.sampled_from(
    ["####", "#", "##", " ", "\n", "a", "8", "x y", "<", "<th", "<think>b #### c</think>"]
)


@given(st.lists(PIECE, max_size=14))
def test_any_split_shows_the_same(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert viewed(pieces)[0] == viewed(list(text))[0] == split_answer(text)[1]


def viewed(pieces: list[str]) -> tuple[str, str]:
    view = AnswerView(expose=True)
    shown = [view.feed(p) for p in pieces] + [view.close(False)]
    return "".join(s[0] for s in shown), "".join(s[1] for s in shown)


def test_the_instruction_names_the_limit() -> None:
    assert "at most 3 words" in instruction(params(cod, words=3))
    assert "at most 1 word " in instruction(params(cod, words=1))
    assert "36 − 7" in instruction(params(cod))
    assert "36 − 7" not in instruction(params(cod, example=False))


@pytest.mark.anyio
async def test_the_client_sees_the_answer() -> None:
    async with ScriptedUpstream(DRAFTED) as up, serving(up) as proxy:
        answer = await proxy.ask("cod-test-model", cod_words=4)
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("8", 1, 1)
        assert "reasoning_content" not in answer.json["choices"][0]["message"]
        sent = up.calls[0]
        assert "at most 4 words" in sent.system
        assert sent.last == "What is 2+2?"


@pytest.mark.anyio
async def test_drafts_as_reasoning_on_request() -> None:
    async with ScriptedUpstream(Reply(DRAFTED, reasoning="hm")) as up, serving(up) as proxy:
        answer = await proxy.ask("cod-test-model", cod_expose_drafts=True)
        message = answer.json["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("8", "hm\n20 - x = 12\nx = 8")


@pytest.mark.anyio
@pytest.mark.parametrize(("mode", "calls"), [("native", 1), ("fanout", 3)])
async def test_n_choices_of_one_prompt(mode: str, calls: int) -> None:
    async with ScriptedUpstream([DRAFTED, "#### 9", ""]) as up, serving(up, n_mode=mode) as proxy:
        answer = await proxy.ask("cod-test-model", n=3)
        assert len(up.calls) == answer.info["calls"] == calls
        assert answer.info["depth"] == worst(cod) == 1
        # The empty choice is dropped.
        assert answer.texts == (["8", "9"] if mode == "native" else ["8", "8", "8"])


@pytest.mark.anyio
async def test_upstream_that_ignores_n() -> None:
    async with ScriptedUpstream(DRAFTED, n_mode="ignore") as up, serving(up) as proxy:
        answer = await proxy.ask("cod-test-model", n=3)
        assert (answer.texts, answer.info["calls"]) == (["8"] * 3, 3)


@pytest.mark.anyio
async def test_streamed_character_by_character() -> None:
    async with ScriptedUpstream(Reply(DRAFTED, pieces=tuple(DRAFTED))) as up, serving(up) as proxy:
        plain, exposed = (
            [c["delta"] for e in events[:-1] for c in json.loads(e)["choices"]]
            for events in (
                await proxy.events("cod-test-model"),
                await proxy.events("cod-test-model", cod_expose_drafts=True),
            )
        )
        assert "".join(d.get("content", "") for d in plain) == "8"
        assert "reasoning_content" not in str(plain)
        assert "".join(d.get("content", "") for d in exposed) == "8"
        assert "".join(d.get("reasoning_content", "") for d in exposed).strip() == "20 - x = 12\nx = 8"
        assert up.calls[0].body["stream"] is True


@pytest.mark.anyio
async def test_truncated_drafts_are_returned_as_they_are() -> None:
    async with ScriptedUpstream(Reply("20 - x =", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("cod-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("20 - x =", "length")


@pytest.mark.anyio
@pytest.mark.parametrize("said", [Reply(""), Reply("####"), Reply("<think>only</think>")])
async def test_nothing_to_show_is_an_error(said: Reply) -> None:
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        answer = await proxy.ask("cod-test-model")
        assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_a_tool_call_survives() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = Reply(None, finish="tool_calls", tool_calls=(call,))
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        choice = (await proxy.ask("cod-test-model")).json["choices"][0]
        assert choice["message"]["tool_calls"] == [call]
        assert choice["finish_reason"] == "tool_calls"


@pytest.mark.anyio
async def test_json_output_leaves_no_room_for_drafts() -> None:
    async with ScriptedUpstream('{"a": "#### 1"}') as up, serving(up) as proxy:
        answer = await proxy.ask("cod-test-model", response_format={"type": "json_object"})
        assert answer.text == '{"a": "#### 1"}'
        assert up.calls[0].system == ""


@pytest.mark.anyio
@pytest.mark.parametrize("bad", [0, 21, "five", True, 1.5, None])
async def test_bad_words_make_no_call(bad: Any) -> None:
    async with ScriptedUpstream(DRAFTED) as up, serving(up) as proxy:
        answer = await proxy.ask("cod-test-model", cod_words=bad)
        assert (answer.status, answer.error["param"]) == (400, "cod_words")
        assert "1 to 20" in answer.error["message"]
        assert up.calls == []


@pytest.mark.anyio
async def test_a_refusal_reaches_the_client() -> None:
    async with ScriptedUpstream(refusal(404, "no such model")) as up, serving(up) as proxy:
        assert (await proxy.ask("cod-test-model")).status == 404
        assert len(up.calls) == 1


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_limit() -> None:
    async with ScriptedUpstream(DRAFTED) as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("cod-test-model", "marker-a", cod_words=2),
            proxy.ask("cod-test-model", "marker-b", cod_words=7, n=3),
        )
        limits = {(c.last, w) for c in up.calls for w in (2, 7) if f"at most {w} words" in c.system}
        assert limits == {("marker-a", 2), ("marker-b", 7)}
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (1, 3)
