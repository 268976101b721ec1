"""Least-to-most prompting: subquestions in order, each with the answers before it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from optillm.approaches.prompting.least_to_most import least_to_most
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio
ROLES = {"break a problem down": "decompose", "answer one subquestion": "solve"}
LIST = "1. How many apples?\n2. How many pears?\n3. How many plums?"


def solving(
    decompose: Said = LIST, solve: Said | None = None, final: Said = "The answer is 9"
) -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        if call.stage == "decompose":
            return decompose
        if call.stage == "solve":
            return f"{asked(call)} 3." if solve is None else solve
        return final

    return ScriptedUpstream(script, roles=ROLES)


def asked(call: Seen) -> str:
    """The fruit that a subquestion is about."""
    return str(re.findall(r"<subquestion-[0-9a-f]+>\nHow many (\w+)\?", call.last)[-1])


async def test_each_subquestion_sees_all_before_it() -> None:
    async with solving() as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", "How many fruits?")
        assert answer.text == "The answer is 9"
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (5, 5, 5)
        steps = up.of("solve")
        assert [asked(c) for c in steps] == ["apples", "pears", "plums"]
        known = [[f for f in ("apples 3.", "pears 3.", "plums 3.") if f in c.last] for c in steps]
        assert known == [[], ["apples 3."], ["apples 3.", "pears 3."]]
        final = up.calls[-1].last
        assert final.startswith("How many fruits?")
        assert all(f in final for f in ("apples 3.", "pears 3.", "plums 3."))


async def test_the_original_question_comes_last_and_once() -> None:
    listed = "1. How many apples?\n2. how many  FRUITS?\n"
    async with solving(decompose=listed) as up, serving(up) as proxy:
        await proxy.ask("least_to_most-test-model", "How many fruits?")
        assert up.stages() == ["decompose", "sample", "solve"]


async def test_no_more_subquestions_than_asked_for() -> None:
    async with solving() as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", least_to_most_subquestions=2)
        assert answer.info["calls"] == 4
        assert "at most 2" in up.of("decompose")[0].last
    assert worst(least_to_most, subquestions=2) == 4


@pytest.mark.parametrize("lost", ["NONE", Reply(""), Reply(None), Fault(status=503)])
async def test_without_subquestions_the_task_is_asked_as_it_is(lost: Said) -> None:
    async with solving(decompose=lost) as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", "Q?")
        assert (answer.text, up.stages()) == ("The answer is 9", ["decompose", "sample"])
        assert up.calls[-1].messages == [{"role": "user", "content": "Q?"}]


@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
async def test_a_lost_sub_answer_is_skipped(lost: Said) -> None:
    async with solving() as up, serving(up) as proxy:
        inner = up.script
        assert callable(inner)
        up.script = lambda call: lost if call.stage == "solve" and asked(call) == "pears" else inner(call)
        assert (await proxy.ask("least_to_most-test-model")).text == "The answer is 9"
        assert "How many pears" not in up.calls[-1].last
        assert "plums 3." in up.calls[-1].last


async def test_conversation_and_images_are_untouched() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": pictured("Q")},
    ]
    async with solving() as up, serving(up) as proxy:
        await proxy.ask("least_to_most-test-model", messages=messages)
        assert [images(c.messages) for c in up.calls] == [1] * 5
        assert up.calls[-1].messages[0] == messages[0]
        assert up.calls[-1].messages[1]["content"][:2] == messages[1]["content"]


async def test_empty_final_reply_is_an_error() -> None:
    async with solving(final=Reply("")) as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model")
        assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


async def test_truncated_final_reply_says_so() -> None:
    async with solving(final=Reply("The ans", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("least_to_most-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("The ans", "length")


async def test_tools_are_for_the_final_reply_only_and_a_call_survives() -> None:
    async with solving(final=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert ["tools" in c.body for c in up.calls] == [False] * 4 + [True]


@pytest.mark.parametrize("stage", ["decompose", "solve", "final"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    async with solving(**{stage: refusal(403, "no")}) as up, serving(up) as proxy:
        assert (await proxy.ask("least_to_most-test-model")).status == 403


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
async def test_a_small_budget_still_ends_in_an_answer(calls: int) -> None:
    async with solving() as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", optillm_budget={"max_calls": calls})
        assert (answer.text, len(up.calls)) == ("The answer is 9", calls)
        assert answer.info.get("cut_short") == ("max_calls" if calls < 5 else None)


async def test_a_budget_that_ends_in_the_middle_leaves_what_was_solved() -> None:
    costly = Reply("apples 3.", usage={"completion_tokens": 5000, "total_tokens": 5000})
    async with solving(solve=costly) as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", optillm_budget={"max_tokens": 4000})
        assert (answer.text, answer.info["cut_short"]) == ("How many apples?\napples 3.", "max_tokens")
        assert answer.json["choices"][0]["finish_reason"] == "length"
        assert len(up.calls) == 2


async def test_n_choices_are_n_pipelines() -> None:
    async with solving() as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", n=2)
        assert (len(answer.texts), answer.info["calls"], answer.info["depth"]) == (2, 10, 5)


async def test_the_final_reply_streams_live() -> None:
    async with solving() as up, serving(up) as proxy:
        assert streamed(await proxy.events("least_to_most-test-model")) == "The answer is 9"
        assert [bool(c.body.get("stream")) for c in up.calls] == [False] * 4 + [True]


@pytest.mark.parametrize("bad", [0, 17, "two", True, None])
async def test_bad_parameters_make_no_call(bad: Any) -> None:
    async with solving() as up, serving(up) as proxy:
        answer = await proxy.ask("least_to_most-test-model", least_to_most_subquestions=bad)
        assert (answer.status, answer.error["param"]) == (400, "least_to_most_subquestions")
        assert up.calls == []


async def test_two_at_once_each_with_its_own_number() -> None:
    async with solving() as up, serving(up) as proxy:
        await asyncio.gather(
            proxy.ask("least_to_most-test-model", "marker-a", least_to_most_subquestions=1),
            proxy.ask("least_to_most-test-model", "marker-b", least_to_most_subquestions=3),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 5)
