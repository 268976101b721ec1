"""Cerebras planning and optimisation: calls, attempts, and what each step is sent."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from optillm.approaches.planning.cepo import cepo
from tests.approaches.cepo_steps import CUT, SEED, ask, by, kind, notes, number, steps
from tests.approaches.common import calls_a_tool, images, params, pictured, tool, worst
from tests.fakes import Fault, Reply, Said, Seen

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("rating", ["absolute", "pairwise", "majority"])
@pytest.mark.parametrize(("b", "m", "n"), [(1, 1, 1), (3, 6, 3), (2, 4, 2)])
async def test_calls_and_depth_are_those_of_the_formulas(b: int, m: int, n: int, rating: str) -> None:
    async def all_at_once(call: Seen) -> str:
        # None is complete before all are under way, so that all really run.
        await up.until(lambda: up.counts["execute"] == b * m)
        return "done"

    async with steps(execute=all_at_once) as (up, proxy):
        answer = await ask(proxy, bestofn_n=b, planning_m=m, planning_n=n, cepo_bestofn_rating_type=rating)
        ratings = {"absolute": b, "pairwise": b * (b - 1), "majority": 0}[rating] if b > 1 else 0
        expected = b * (2 * m + 2) + ratings
        assert answer.info["calls"] == len(up.calls) == expected
        assert answer.info["depth"] == 4 + (ratings > 0)
        shape = {"bestofn_n": b, "planning_m": m, "planning_n": n, "bestofn_rating_type": rating}
        # At worst no attempt gets to its end, and each completion is answered directly.
        assert worst(cepo, **shape) == expected + b


async def test_the_default_takes_45_calls_at_depth_5() -> None:
    async def all_at_once(call: Seen) -> str:
        await up.until(lambda: up.counts["execute"] == 18)
        return "done"

    async with steps(execute=all_at_once) as (up, proxy):
        answer = await proxy.ask("cepo-test-model")
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (45, 5, 45)


async def test_the_worst_case_comes_true() -> None:
    fields = {
        "cepo_use_plan_diversity": True,
        "cepo_bestofn_n": 2,
        "cepo_planning_m": 2,
        "cepo_planning_n": 1,
    }
    async with steps(execute=CUT, approaches="none") as (up, proxy):
        answer = await proxy.ask("cepo-test-model", seed=SEED, **fields)
        short = {k.removeprefix("cepo_"): v for k, v in fields.items()}
        assert answer.info["calls"] == len(up.calls) == worst(cepo, **short) == 2 + 2 * (4 + 1 + 2) + 2
        assert answer.info["depth"] == 2 + 2 + 1 + 2 + 1


async def test_the_worst_case_with_retries_and_less_effort_comes_true() -> None:
    def always_fails(call: Seen) -> Said:
        return Fault(status=503)

    async with steps(
        plan=lambda c: Fault(status=503) if c.body["reasoning_effort"] == "high" else "plan",
        execute=always_fails,
        direct=lambda c: Fault(status=503) if c.body["reasoning_effort"] != "low" else "direct",
        reconcile=always_fails,
        answer=always_fails,
    ) as (up, proxy):
        answer = await ask(proxy, cepo_preset="gptoss")
        assert answer.text == "direct"
        # Of 3 tries with high effort and one with medium; for the direct answer one more with low.
        assert dict(up.counts) == {"plan": 4, "execute": 4, "direct": 5, "reconcile": 4, "answer": 4}
        shape = {"preset": "gptoss", "bestofn_n": 1, "planning_m": 1, "planning_n": 1}
        assert worst(cepo, **shape) == answer.info["calls"] == 21


async def test_too_many_calls_are_refused_before_the_first() -> None:
    async with steps({"max_upstream_calls": 47}) as (up, proxy):
        answer = await proxy.ask("cepo-test-model")
        assert (answer.status, answer.error["code"], up.calls) == (400, "too_many_calls", [])


async def test_of_four_complete_attempts_of_six_the_first_three_are_used() -> None:
    async with steps(plan=by({1: CUT}), execute=by({3: CUT})) as (up, proxy):
        answer = await ask(proxy, planning_m=6, planning_n=3)
        (told,) = await notes(proxy, answer, "cepo.completion")
        assert (told["attempts"], told["direct"], told["reconciled"]) == ([0, 2, 4], False, True)
        (asked,) = up.step("reconcile")
        assert [f"\nexecute {i}!\n" in asked.last for i in range(6)] == [
            True,
            False,
            True,
            False,
            True,
            False,
        ]
        assert up.counts["direct"] == 0


async def test_nothing_complete_is_answered_directly() -> None:
    content = pictured("What is 2+2?")
    async with steps(execute=CUT) as (up, proxy):
        answer = await ask(proxy, question=content, planning_m=3, planning_n=2)
        assert answer.text == "answer 0!"
        assert dict(up.counts) == {"plan": 3, "execute": 3, "direct": 1, "reconcile": 1, "answer": 1}
        (direct,) = up.step("direct")
        assert direct.messages == [{"role": "user", "content": content}]
        sent = {k: direct.body[k] for k in ("temperature", "top_p", "max_tokens")}
        assert sent == {"temperature": 0.1, "top_p": 0.95, "max_tokens": 4096}
        assert "\ndirect 0!\n" in up.step("reconcile")[0].last


async def test_failed_empty_and_unfinished_attempts_are_dropped() -> None:
    execute = by({0: Fault(status=500), 1: Reply(""), 2: Reply(None, finish="length")})
    async with steps(execute=execute) as (_, proxy):
        answer = await ask(proxy, planning_m=4, planning_n=2)
        (told,) = await notes(proxy, answer, "cepo.completion")
        assert (answer.status, told["attempts"]) == (200, [3])


async def test_eager_cancels_the_surplus_once_enough_are_complete() -> None:
    begun = itertools.count()

    async def only_the_first(call: Seen) -> Said:
        if next(begun) == 0:
            await up.until(lambda: up.counts["execute"] == 3)
            return "quick"
        return Fault("hang")

    async with steps(execute=only_the_first) as (up, proxy):
        answer = await proxy.ask("cepo-test-model", cepo_bestofn_n=1, cepo_planning_m=3, cepo_planning_n=1)
        assert answer.status == 200
        await up.until(lambda: Counter(c.outcome for c in up.step("execute"))["cancelled"] == 2)
        assert "\nquick\n" in up.step("reconcile")[0].last
        assert answer.info["calls"] == 3 + 3 + 2


async def test_with_a_seed_all_come_to_their_end_and_the_first_by_index_is_kept() -> None:
    async def execute(call: Seen) -> Said:
        if number(call) == 0:
            await up.until(lambda: outcomes().count("answered") == 2)
        return f"execute {number(call)}!"

    def outcomes() -> list[str]:
        return [c.outcome for c in up.step("execute")]

    async with steps(execute=execute) as (up, proxy):
        answer = await ask(proxy, planning_m=3, planning_n=1)
        (told,) = await notes(proxy, answer, "cepo.completion")
        assert told["attempts"] == [0]
        assert "\nexecute 0!\n" in up.step("reconcile")[0].last
        assert outcomes() == ["answered"] * 3
        assert answer.info["calls"] == 3 * 2 + 2


async def test_lazy_begins_another_attempt_for_each_that_fails() -> None:
    async with steps(plan=by({0: CUT}), execute=by({1: CUT})) as (up, proxy):
        answer = await ask(proxy, planning_m=6, planning_n=2, cepo_launch="lazy")
        (told,) = await notes(proxy, answer, "cepo.completion")
        assert told["attempts"] == [2, 3]
        assert sorted(number(c) for c in up.step("plan")) == [0, 1, 2, 3]
        assert sorted(number(c) for c in up.step("execute")) == [1, 2, 3]
        # Attempt 3 begins after attempt 1 has failed in its second call.
        assert (answer.info["calls"], answer.info["depth"]) == (4 + 3 + 2, 2 + 2 + 2)


async def test_lazy_ends_with_the_attempts() -> None:
    async with steps(plan=CUT) as (up, proxy):
        await ask(proxy, planning_m=3, planning_n=2, cepo_launch="lazy")
        assert dict(up.counts) == {"plan": 3, "direct": 1, "reconcile": 1, "answer": 1}


async def test_each_attempt_is_a_sample_of_its_own() -> None:
    async with steps() as (up, proxy):
        await ask(proxy, bestofn_n=2, planning_m=2, planning_n=2)
        for step in ("plan", "execute"):
            assert sorted(number(c) for c in up.step(step)) == [0, 1, 2, 3]
        assert [sorted(number(c) for c in up.step(s)) for s in ("reconcile", "answer")] == [[0, 1]] * 2


DEFAULT = {
    "plan": (0.55, 4096),
    "execute": (0.25, 4096),
    "reconcile": (0.1, 4096),
    "answer": (0, 4096),
    "rate": (0.1, 4096),
}
QWEN3 = {
    "plan": (0.8, 28672),
    "execute": (0.8, 24576),
    "reconcile": (0.8, 20481),
    "answer": (0.8, 20482),
}
GPTOSS = {
    "plan": (1, 40960),
    "execute": (1, 40960),
    "reconcile": (1, 40960),
    "answer": (0.5, 40960),
    "rate": (0.6, 40960),
}


@pytest.mark.parametrize(("preset", "expected"), [("default", DEFAULT), ("qwen3", QWEN3), ("gptoss", GPTOSS)])
async def test_each_step_has_its_own_temperature_and_limit(
    preset: str, expected: dict[str, tuple[float, int]]
) -> None:
    async with steps() as (up, proxy):
        await ask(proxy, bestofn_n=2, cepo_preset=preset)
        sent = {kind(c): (c.body["temperature"], c.body["max_tokens"]) for c in up.calls}
        assert sent == expected


async def test_single_parameters_beat_the_preset() -> None:
    async with steps() as (up, proxy):
        own = {"cepo_planning_temperature_step2": 0.33, "cepo_planning_max_tokens_step2": 222}
        answer = await ask(proxy, bestofn_n=1, cepo_preset="qwen3", **own)
        (execute,) = up.step("execute")
        assert (execute.body["temperature"], execute.body["max_tokens"]) == (0.33, 222)
        assert up.step("plan")[0].body["max_tokens"] == 28672
        (config,) = await notes(proxy, answer, "cepo.config")
        assert (config["preset"], config["planning_temperature_step2"]) == ("qwen3", 0.33)
        assert config["planning_max_tokens_step3"] == 20481


async def test_what_a_request_says_beats_what_the_server_was_told() -> None:
    told = {"cepo": {"preset": "qwen3", "bestofn_n": 2, "planning_n": 1, "planning_m": 1}}
    async with steps({"params": told}) as (up, proxy):
        answer = await proxy.ask("cepo-test-model", cepo_bestofn_n=1, cepo_planning_max_tokens_step1=99)
        limits = {kind(c): c.body["max_tokens"] for c in up.calls}
        assert limits == {"plan": 99, "execute": 24576, "reconcile": 20481, "answer": 20482}
        assert answer.info["calls"] == 4
        assert (await proxy.ask("cepo-test-model", cepo_preset="default")).info["calls"] == 2 * 4 + 2


def test_presets() -> None:
    qwen3, gptoss = params(cepo, preset="qwen3").config, params(cepo, preset="gptoss").config
    assert (qwen3.planning_n, qwen3.planning_m, qwen3.bestofn_rating_type) == (2, 4, "majority")
    assert (gptoss.use_reasoning_fallback, gptoss.num_of_retries, gptoss.print_output) == (True, 2, True)
    assert (qwen3.planning_temperature_direct_resp, qwen3.planning_max_tokens_direct_resp) == (0.6, 32768)
    assert params(cepo, preset="gptoss", print_output=False, num_of_retries=0).config.num_of_retries == 0


async def test_in_calls_that_write_a_reply_the_client_s_options_beat_the_preset() -> None:
    client = {"temperature": 0.9, "max_completion_tokens": 77, "top_p": 0.5, "reasoning_effort": "low"}
    async with steps(execute=by({0: CUT})) as (up, proxy):
        await ask(proxy, **client, cepo_planning_temperature_step4=0.2)
        (direct,), (answer,), (plan,) = up.step("direct"), up.step("answer"), up.step("plan")
        assert {k: direct.body[k] for k in client} == client
        assert {k: answer.body[k] for k in client} == {**client, "temperature": 0.2}
        assert (plan.body["temperature"], plan.body["max_completion_tokens"]) == (0.55, 4096)
        assert (plan.body["reasoning_effort"], "top_p" in plan.body) == ("high", False)


async def test_the_plan_is_asked_with_the_question_twice_and_carried_out_in_the_same_conversation() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "SYS"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": pictured("How many?")},
    ]
    async with steps() as (up, proxy):
        await ask(proxy, messages=messages, tools=[tool()], stop=["X"])
        (plan,), (execute,), (answer,) = up.step("plan"), up.step("execute"), up.step("answer")
        assert plan.last.count("How many?") == 2
        assert all(text in plan.last for text in ("SYS", "first", "second", "confiden"))
        assert images(plan.messages) == 1
        assert [m["role"] for m in plan.messages] == ["system", "user"]
        assert execute.messages[:2] == plan.messages
        assert execute.messages[2] == {"role": "assistant", "content": "plan 0!"}
        assert "less sure" in execute.last
        assert answer.messages[:3] == messages[:3]
        assert answer.messages[3]["content"][:2] == messages[3]["content"]
        assert "\nreconcile 0!\n" in answer.last
        sent = [("tools" in c.body, "stop" in c.body) for c in (plan, execute, answer)]
        assert sent == [(False, False), (False, False), (True, True)]


MULTIPLE_CHOICE = (
    "Which is the capital of France?\n\nA) Paris\nB) Rome\n\n"
    "The last line of your response should be 'Answer: $LETTER' where LETTER is one of AB."
)


async def test_instructions_on_form_are_for_the_calls_that_write_a_reply() -> None:
    async with steps(execute=by({0: CUT}), approaches='{"1": "w0", "2": "w1"}') as (up, proxy):
        await ask(proxy, question=MULTIPLE_CHOICE, bestofn_n=2, cepo_use_plan_diversity=True)
        told = {kind(c): "last line of your response" in c.text for c in up.calls if kind(c) != "rate"}
        assert told == {
            "approaches": False, "plan": False, "execute": False, "reconcile": False,
            "direct": True, "answer": True,
        }  # fmt: skip
        assert all("A) Paris" in c.text for c in up.calls)


async def test_step_1_can_be_left_out() -> None:
    async with steps() as (up, proxy):
        answer = await ask(proxy, planning_m=2, planning_n=2, cepo_planning_max_tokens_step1=0)
        assert dict(up.counts) == {"execute": 2, "reconcile": 1, "answer": 1}
        assert (answer.info["depth"], up.step("execute")[0].last.count("What is 2+2?")) == (3, 2)
        shape = {"bestofn_n": 1, "planning_m": 2, "planning_n": 2, "planning_max_tokens_step1": 0}
        assert worst(cepo, **shape) == 2 + 1 + 2


async def test_steps_3_and_4_can_be_left_out() -> None:
    async with steps() as (up, proxy):
        answer = await ask(proxy, cepo_planning_max_tokens_step4=0)
        assert (answer.text, answer.info["calls"]) == ("reconcile 0!", 3)
        answer = await ask(proxy, cepo_planning_max_tokens_step3=0)
        assert (answer.text, answer.info["calls"]) == ("answer 0!", 3)
        assert "\nexecute 0!\n" in up.calls[-1].last


@pytest.mark.parametrize("failure", [CUT, Reply(""), Fault(status=503)])
async def test_when_step_3_fails_the_first_response_goes_on(failure: Said) -> None:
    async with steps(reconcile=failure) as (up, proxy):
        answer = await ask(proxy, planning_m=2, planning_n=2)
        assert answer.text == "answer 0!"
        assert "\nexecute 0!\n" in up.step("answer")[0].last
        (told,) = await notes(proxy, answer, "cepo.completion")
        assert told["reconciled"] is False


@pytest.mark.parametrize("failure", [Reply(""), Fault(status=503), Reply(None, finish="length")])
async def test_when_step_4_fails_what_step_3_wrote_is_the_answer(failure: Said) -> None:
    async with steps(answer=failure) as (_, proxy):
        answer = await ask(proxy)
        assert (answer.status, answer.text) == (200, "reconcile 0!")


async def test_an_answer_that_is_cut_off_loses_to_a_complete_one() -> None:
    async with steps(answer=by({0: Reply("cut", finish="length")})) as (up, proxy):
        answer = await ask(proxy, bestofn_n=2)
        assert (answer.text, up.counts["rate"]) == ("answer 1!", 0)
        alone = await ask(proxy)
        assert (alone.text, alone.json["choices"][0]["finish_reason"]) == ("cut", "length")


async def test_a_tool_call_survives() -> None:
    async with steps(answer=calls_a_tool()) as (_, proxy):
        choice = (await ask(proxy, tools=[tool()])).json["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "look"
