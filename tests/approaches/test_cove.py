"""Chain of verification: baseline, questions, answers that did not see it, final reply; in four ways."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from optillm.approaches.refining.cove import cove
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio
ROLES = {
    "plan how to verify": "plan",
    "verify a reply by questions": "joint",
    "answer questions accurately": "answer",
    "compare a reply": "compare",
}
PLAN = "1. Who wrote it?\n2. When was it?\n3. Where was it?"


def verifying(
    plan: Said = PLAN,
    answer: Said | None = None,
    compare: Said = "They differ.\nINCONSISTENT",
    joint: Said = "Who wrote it? Hugo did.",
    baseline: Said = "BASE",
    final: Said = "FINAL",
) -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        if call.stage == "answer":
            return "; ".join(f"{w} is known" for w in asked(call)) if answer is None else answer
        if call.stage == "sample":
            return final if "<draft-" in call.last else baseline
        return {"plan": plan, "joint": joint, "compare": compare}[call.stage]

    return ScriptedUpstream(script, roles=ROLES)


def asked(call: Seen) -> list[str]:
    """The words that the questions of a prompt begin with."""
    block = re.findall(r"<questions-[0-9a-f]+>\n(.*?)\n</questions", call.last, re.S)[-1]
    return [w for w in ("Who", "When", "Where") if w in block]


def final_of(up: ScriptedUpstream) -> Seen:
    (call,) = [c for c in up.of("sample") if "<draft-" in c.last]
    return call


@pytest.mark.parametrize(
    ("mode", "stages", "depth"),
    [
        ("joint", ["joint", "sample", "sample"], 3),
        ("two_step", ["answer", "plan", "sample", "sample"], 4),
        ("factored", ["answer"] * 3 + ["plan", "sample", "sample"], 4),
        ("factor_revise", ["answer"] * 3 + ["compare"] * 3 + ["plan", "sample", "sample"], 5),
    ],
)
async def test_calls_and_depth_of_each_mode(mode: Any, stages: list[str], depth: int) -> None:
    async with verifying() as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model", "Which book?", cove_mode=mode, cove_questions=3)
        assert (answer.text, up.stages()) == ("FINAL", stages)
        assert (answer.info["calls"], answer.info["depth"]) == (len(stages), depth)
        assert final_of(up).last.startswith("Which book?")
        assert "\nBASE\n" in final_of(up).last
    assert worst(cove, mode=mode, questions=3) == len(stages)


async def test_questions_are_answered_each_alone_and_without_the_baseline() -> None:
    async with verifying() as up, serving(up) as proxy:
        await proxy.ask("cove-test-model")
        answers = up.of("answer")
        assert sorted(asked(c)[0] for c in answers if len(asked(c)) == 1) == ["When", "Where", "Who"]
        assert not any("BASE" in c.text for c in answers)
        assert "BASE" in up.of("plan")[0].text
        shown = final_of(up).last
        # In the order of the plan, whoever was answered first.
        places = [shown.index(t) for t in ("Who wrote it?", "Who is known", "When was it?", "Where is known")]
        assert places == sorted(places)


async def test_two_steps_answer_all_at_once_without_the_baseline() -> None:
    async with verifying() as up, serving(up) as proxy:
        await proxy.ask("cove-test-model", cove_mode="two_step")
        (call,) = up.of("answer")
        assert asked(call) == ["Who", "When", "Where"]
        assert "BASE" not in call.text
        assert "Who is known; When is known; Where is known" in final_of(up).last


async def test_joint_shows_questions_and_answers_as_they_are() -> None:
    async with verifying() as up, serving(up) as proxy:
        await proxy.ask("cove-test-model", cove_mode="joint")
        assert "Hugo did" in final_of(up).last


async def test_comparisons_see_the_baseline_and_reach_the_final_prompt() -> None:
    async with verifying() as up, serving(up) as proxy:
        await proxy.ask("cove-test-model", cove_mode="factor_revise")
        assert all("BASE" in c.last and "is known" in c.last for c in up.of("compare"))
        assert final_of(up).last.count("INCONSISTENT") == 3


async def test_a_failed_comparison_leaves_the_answer() -> None:
    async with verifying(compare=Fault(status=500)) as up, serving(up) as proxy:
        assert (await proxy.ask("cove-test-model", cove_mode="factor_revise")).text == "FINAL"
        assert "Who is known" in final_of(up).last


async def test_no_more_questions_than_asked_for() -> None:
    async with verifying() as up, serving(up) as proxy:
        assert (await proxy.ask("cove-test-model", cove_questions=2)).info["calls"] == 5
        assert "at most 2" in up.of("plan")[0].last


@pytest.mark.parametrize("lost", ["NONE", Reply(""), Fault(status=503)])
async def test_without_questions_the_baseline_is_the_answer(lost: Said) -> None:
    async with verifying(plan=lost) as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model")
        assert (answer.text, up.stages()) == ("BASE", ["plan", "sample"])


@pytest.mark.parametrize("mode", ["two_step", "factored", "factor_revise"])
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
async def test_without_answers_the_baseline_is_the_answer(mode: str, lost: Said) -> None:
    async with verifying(answer=lost) as up, serving(up) as proxy:
        assert (await proxy.ask("cove-test-model", cove_mode=mode)).text == "BASE"
        assert len(up.of("sample")) == 1


async def test_a_lost_answer_is_left_out() -> None:
    async with verifying() as up, serving(up) as proxy:
        inner = up.script
        assert callable(inner)
        lost = Fault(status=500)
        up.script = lambda call: lost if call.stage == "answer" and asked(call) == ["When"] else inner(call)
        assert (await proxy.ask("cove-test-model")).text == "FINAL"
        assert "When was it?" not in final_of(up).last
        assert "Where is known" in final_of(up).last


@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
async def test_a_lost_final_reply_leaves_the_baseline(lost: Said) -> None:
    async with verifying(final=lost) as up, serving(up) as proxy:
        assert (await proxy.ask("cove-test-model")).text == "BASE"


async def test_truncated_final_reply_says_so() -> None:
    async with verifying(final=Reply("FIN", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("cove-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("FIN", "length")


async def test_no_usable_baseline_is_an_error() -> None:
    async with verifying(baseline=Reply("")) as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model")
        assert (answer.status, answer.error["code"], len(up.calls)) == (502, "upstream_empty", 1)


async def test_tool_calls_survive() -> None:
    async with verifying(baseline=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model", tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert len(up.calls) == 1
    async with verifying(final=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model", tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert all(("tools" in c.body) == (c.stage == "sample") for c in up.calls)


async def test_conversation_and_images_are_untouched() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": pictured("Q")},
    ]
    async with verifying() as up, serving(up) as proxy:
        await proxy.ask("cove-test-model", messages=messages, cove_mode="factor_revise")
        assert [images(c.messages) for c in up.calls] == [1] * 9
        assert up.calls[0].messages == messages
        assert final_of(up).messages[0] == messages[0]


@pytest.mark.parametrize("stage", ["baseline", "plan", "answer", "compare", "final"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    async with verifying(**{stage: refusal(401, "no")}) as up, serving(up) as proxy:
        assert (await proxy.ask("cove-test-model", cove_mode="factor_revise")).status == 401


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
async def test_a_budget_leaves_the_baseline(calls: int) -> None:
    async with verifying() as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model", optillm_budget={"max_calls": calls})
        assert (answer.text, answer.info["cut_short"], len(up.calls)) == ("BASE", "max_calls", calls)


async def test_the_final_reply_streams_live() -> None:
    async with verifying() as up, serving(up) as proxy:
        assert streamed(await proxy.events("cove-test-model")) == "FINAL"
        assert [bool(c.body.get("stream")) for c in up.calls] == [False] * 5 + [True]


async def test_n_choices_are_n_pipelines() -> None:
    async with verifying() as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model", n=2)
        assert (answer.texts, answer.info["calls"], answer.info["depth"]) == (["FINAL"] * 2, 12, 4)


@pytest.mark.parametrize(
    ("field", "value"), [("mode", "fast"), ("questions", 0), ("questions", 17), ("temperature", "hot")]
)
async def test_bad_parameters_make_no_call(field: str, value: Any) -> None:
    async with verifying() as up, serving(up) as proxy:
        answer = await proxy.ask("cove-test-model", **{f"cove_{field}": value})
        assert (answer.status, answer.error["param"], up.calls) == (400, f"cove_{field}", [])


async def test_two_at_once_each_with_its_own_mode() -> None:
    async with verifying() as up, serving(up) as proxy:
        await asyncio.gather(
            proxy.ask("cove-test-model", "marker-a", cove_mode="joint"),
            proxy.ask("cove-test-model", "marker-b", cove_mode="factor_revise", cove_questions=2),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 7)
