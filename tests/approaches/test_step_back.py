"""Step-back prompting: the general question, its answer, the reply that rests on them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from optillm.approaches.prompting.step_back import step_back
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio
ROLES = {"take a step back": "question", "state general knowledge": "principles"}


def stepping(
    question: Said = "Which law?", principles: Said = "The law of gases.", final: Said = "It doubles."
) -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        return {"question": question, "principles": principles}.get(call.stage, final)

    return ScriptedUpstream(script, roles=ROLES)


async def test_three_steps_each_with_the_one_before() -> None:
    async with stepping() as up, serving(up) as proxy:
        answer = await proxy.ask("step_back-test-model", "What happens to the pressure?")
        assert answer.text == "It doubles."
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (worst(step_back), 3, 3)
        (principles,) = up.of("principles")
        (final,) = up.of("sample")
        assert "Which law?" in principles.last
        assert final.last.startswith("What happens to the pressure?")
        assert "\nWhich law?\n" in final.last
        assert "\nThe law of gases.\n" in final.last


async def test_conversation_and_images_are_untouched() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": pictured("Q")},
    ]
    async with stepping() as up, serving(up) as proxy:
        await proxy.ask("step_back-test-model", messages=messages)
        assert [images(c.messages) for c in up.calls] == [1, 1, 1]
        (final,) = up.of("sample")
        assert final.messages[0] == messages[0]
        assert final.messages[1]["content"][:2] == messages[1]["content"]


@pytest.mark.parametrize("lost", [Reply(""), Reply(None), Fault(status=503), Fault("empty_choices")])
async def test_without_a_question_the_task_is_asked_as_it_is(lost: Said) -> None:
    async with stepping(question=lost) as up, serving(up) as proxy:
        answer = await proxy.ask("step_back-test-model", "Q?")
        assert (answer.text, up.stages()) == ("It doubles.", ["question", "sample"])
        assert up.of("sample")[0].last == "Q?"


async def test_without_principles_the_task_is_asked_as_it_is() -> None:
    async with stepping(principles=Fault(status=500)) as up, serving(up) as proxy:
        assert (await proxy.ask("step_back-test-model", "Q?")).text == "It doubles."
        assert up.of("sample")[0].last == "Q?"


async def test_truncated_principles_are_used() -> None:
    async with stepping(principles=Reply("half a law", finish="length")) as up, serving(up) as proxy:
        assert (await proxy.ask("step_back-test-model")).text == "It doubles."
        assert "half a law" in up.of("sample")[0].last


@pytest.mark.parametrize(("mode", "calls"), [("native", 3), ("fanout", 5)])
async def test_n_choices_share_one_abstraction(mode: str, calls: int) -> None:
    async with stepping(final=["a", "b", "c"]) as up, serving(up, n_mode=mode) as proxy:
        answer = await proxy.ask("step_back-test-model", n=3)
        assert (answer.info["calls"], answer.info["depth"]) == (calls, 3)
        assert len(answer.texts) == 3


async def test_empty_reply_is_an_error() -> None:
    async with stepping(final=Reply("")) as up, serving(up) as proxy:
        answer = await proxy.ask("step_back-test-model")
        assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


async def test_truncated_reply_says_so() -> None:
    async with stepping(final=Reply("It dou", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("step_back-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("It dou", "length")


async def test_tools_are_for_the_reply_only_and_a_call_survives() -> None:
    async with stepping(final=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("step_back-test-model", tools=[tool()], stop=["z"])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert ["tools" in c.body for c in up.calls] == [False, False, True]
        assert ["stop" in c.body for c in up.calls] == [False, False, True]


@pytest.mark.parametrize("stage", ["question", "principles", "final"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    async with stepping(**{stage: refusal(401, "no such key")}) as up, serving(up) as proxy:
        assert (await proxy.ask("step_back-test-model")).status == 401


@pytest.mark.parametrize(
    ("calls", "stages"),
    [(1, ["sample"]), (2, ["question", "sample"]), (3, ["principles", "question", "sample"])],
)
async def test_a_small_budget_still_ends_in_an_answer(calls: int, stages: list[str]) -> None:
    async with stepping() as up, serving(up) as proxy:
        answer = await proxy.ask("step_back-test-model", optillm_budget={"max_calls": calls})
        assert (answer.text, up.stages()) == ("It doubles.", stages)
        assert answer.info.get("cut_short") == ("max_calls" if calls < 3 else None)


async def test_a_budget_that_ends_before_the_reply_leaves_the_principles() -> None:
    costly = Reply("P", usage={"total_tokens": 1000, "completion_tokens": 900})
    async with stepping(principles=costly) as up, serving(up) as proxy:
        answer = await proxy.ask("step_back-test-model", optillm_budget={"max_tokens": 800})
        assert (answer.text, answer.info["cut_short"]) == ("P", "max_tokens")
        assert answer.json["choices"][0]["finish_reason"] == "length"


async def test_the_reply_streams_live() -> None:
    async with stepping() as up, serving(up) as proxy:
        assert streamed(await proxy.events("step_back-test-model")) == "It doubles."
        assert [bool(c.body.get("stream")) for c in up.calls] == [False, False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [("step_back_temperature", 3), ("step_back_temperature", "hot"), ("step_back_abstraction_model", 5)],
)
async def test_bad_parameters_make_no_call(field: str, value: Any) -> None:
    async with stepping() as up, serving(up) as proxy:
        answer = await proxy.ask("step_back-test-model", **{field: value})
        assert (answer.status, answer.error["param"], up.calls) == (400, field, [])


async def test_two_at_once_each_with_its_own_model_and_marks() -> None:
    async with stepping() as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("step_back-test-model", "marker-a", step_back_abstraction_model="m-a"),
            proxy.ask("step_back-test-model", "marker-b", step_back_abstraction_model="m-b", n=2),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 4)
        models = {
            (c.body["model"], m) for c in up.of("question") for m in ("marker-a", "marker-b") if m in c.text
        }
        assert models == {("m-a", "marker-a"), ("m-b", "marker-b")}
