"""Re-reading: the acceptance cases of its specification."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import Fault, Reply, ScriptedUpstream
from tests.serving import serving

pytestmark = pytest.mark.anyio

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


async def test_only_the_question_is_repeated() -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "2+2?"},
    ]
    async with ScriptedUpstream("4") as up, serving(up) as proxy:
        answer = await proxy.ask("re2-test-model", messages=turns)
        assert answer.text == "4"
        assert len(up.calls) == 1
        sent = up.calls[0].messages
        assert sent[:3] == turns[:3]
        assert up.calls[0].last.count("2+2?") == 2
        assert "u1" not in up.calls[0].last


@pytest.mark.parametrize(("n_mode", "calls"), [("native", 1), ("fanout", 3)])
async def test_three_choices(n_mode: str, calls: int) -> None:
    async with ScriptedUpstream("4") as up, serving(up, n_mode=n_mode) as proxy:
        answer = await proxy.ask("re2-test-model", n=3)
        assert [c["index"] for c in answer.json["choices"]] == [0, 1, 2]
        assert len(up.calls) == calls
        assert answer.info["depth"] == 1


async def test_truncated_answer_is_returned_as_such() -> None:
    async with ScriptedUpstream(Reply("abc", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("re2-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("abc", "length")


async def test_image_is_not_duplicated() -> None:
    async with ScriptedUpstream("a cat") as up, serving(up) as proxy:
        await proxy.ask("re2-test-model", [{"type": "text", "text": "What is it?"}, IMAGE])
        parts = up.calls[0].messages[-1]["content"]
        assert [p["type"] for p in parts] == ["text", "image_url", "text"]
        assert up.calls[0].last.count("What is it?") == 2


async def test_three_readings_and_a_trigger() -> None:
    async with ScriptedUpstream("4") as up, serving(up) as proxy:
        await proxy.ask("re2(times=3,cot=true)-test-model")
        assert up.calls[0].last.count("What is 2+2?") == 3
        assert up.calls[0].last.endswith("step by step.")


async def test_no_temperature_of_its_own() -> None:
    async with ScriptedUpstream("4") as up, serving(up) as proxy:
        await proxy.ask("re2-test-model")
        await proxy.ask("re2-test-model", temperature=0.3, stop=["x"], seed=5)
        assert "temperature" not in up.calls[0].body
        assert {k: up.calls[1].body[k] for k in ("temperature", "stop", "seed")} == {
            "temperature": 0.3,
            "stop": ["x"],
            "seed": 5,
        }


async def test_empty_choices_are_dropped_and_all_empty_is_an_error() -> None:
    async with ScriptedUpstream([Reply(None), Reply("x")]) as up, serving(up) as proxy:
        assert (await proxy.ask("re2-test-model", n=2)).texts == ["x"]
        up.script = Reply("")
        answer = await proxy.ask("re2-test-model")
        assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


async def test_a_failed_member_of_a_fan_out_is_dropped() -> None:
    async with ScriptedUpstream() as up, serving(up, n_mode="fanout") as proxy:
        up.script = lambda call: Fault(status=500) if call.body["seed"] == 8 else f"s{call.body['seed']}"
        assert (await proxy.ask("re2-test-model", n=3, seed=7)).texts == ["s7", "s9"]


async def test_two_at_once_with_their_own_n() -> None:
    async with ScriptedUpstream("4") as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("re2-test-model", "marker-a", n=1), proxy.ask("re2-test-model", "marker-b", n=4)
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (1, 4)
