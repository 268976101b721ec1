"""Reflexion: trials, checks, reflections in a bounded memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from optillm.approaches.refining.reflexion import reflexion
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

ROLES = {"own failed attempt": "reflect"}


def trying(
    scores: tuple[Said, ...] = ("2", "2", "2", "2", "2"),
    trials: dict[int, Said] | None = None,
    reflect: Said | None = None,
) -> ScriptedUpstream:
    """Trial i says "try i", is rated ``scores[i]``, and is reflected on as "lesson i".

    A trial is told by the attempt that it is shown.
    """

    def number(call: Seen) -> int:
        return int(call.last.rpartition("\ntry ")[2][0])

    def script(call: Seen) -> Said:
        if call.stage == "rate":
            said = scores[int(call.last.rpartition("\ntry ")[2][0])]
            return f"Score: {said}" if isinstance(said, str) else said
        if call.stage == "reflect":
            return f"lesson {number(call)}" if reflect is None else reflect
        trial = number(call) + 1 if "<attempt-" in call.last else 0
        return (trials or {}).get(trial, f"try {trial}")

    return ScriptedUpstream(script, roles=ROLES)


def lessons(call: Seen) -> list[int]:
    return [i for i in range(10) if f"\nlesson {i}\n" in call.last]


@pytest.mark.anyio
async def test_failed_trials_are_reflected_on_and_the_last_lessons_remembered() -> None:
    async with trying() as up, serving(up) as proxy:
        answer = await proxy.ask(
            "reflexion-test-model", "Q?", reflexion_trials=4, reflexion_memory=2, temperature=0.3
        )
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (11, 11, 11)
        acts = up.of("sample")
        assert acts[0].messages == [{"role": "user", "content": "Q?"}]
        assert [lessons(c) for c in acts] == [[], [0], [0, 1], [1, 2]]
        assert all(c.last.startswith("Q?") for c in acts)
        # The reflection knows the attempt, what the check said, and the lessons before.
        assert [lessons(c) for c in up.of("reflect")] == [[], [0], [0, 1]]
        assert all("0.20 of 1" in c.last for c in up.of("reflect"))
        # Nothing passed and all scored the same: the latest.
        assert answer.text == "try 3"
    assert worst(reflexion, trials=4) == 11
    assert worst(reflexion, trials=4, judge_samples=3) == 19
    assert worst(reflexion, trials=4, reference="1") == 7


@pytest.mark.anyio
@pytest.mark.parametrize(("scores", "text", "calls"), [(("9",), "try 0", 2), (("1", "8/10"), "try 1", 5)])
async def test_a_trial_that_passes_ends_it(scores: tuple[Said, ...], text: str, calls: int) -> None:
    async with trying(scores) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model")
        assert (answer.text, answer.info["calls"]) == (text, calls)


@pytest.mark.anyio
async def test_the_threshold_is_the_client_s() -> None:
    async with trying(("5",)) as up, serving(up) as proxy:
        assert (await proxy.ask("reflexion-test-model", reflexion_threshold=0.5)).info["calls"] == 2


@pytest.mark.anyio
async def test_without_a_pass_the_best_is_returned() -> None:
    async with trying(("3", "6", "5")) as up, serving(up) as proxy:
        assert (await proxy.ask("reflexion-test-model")).text == "try 1"


@pytest.mark.anyio
async def test_a_complete_trial_beats_a_truncated_one() -> None:
    async with trying(("3", "6", "2"), {1: Reply("try 1", finish="length")}) as up, serving(up) as proxy:
        assert (await proxy.ask("reflexion-test-model")).text == "try 0"


@pytest.mark.anyio
@pytest.mark.parametrize("unrated", ["great", Reply(""), Fault(status=500)])
async def test_an_unrated_trial_stands_below_a_rated_one(unrated: Said) -> None:
    async with trying(("1", unrated, unrated)) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model")
        assert (answer.text, answer.info["calls"]) == ("try 0", 8)
        assert "there was no verdict" in up.of("reflect")[1].last


@pytest.mark.anyio
async def test_exact_answers_are_compared_without_a_judge() -> None:
    trials: dict[int, Said] = {1: "try 1: The answer is Purple."}
    async with trying(trials=trials) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model", reflexion_reference="purple")
        assert answer.text == "try 1: The answer is Purple."
        assert (answer.info["calls"], answer.info["depth"]) == (3, 3)
        assert up.of("rate") == []
        # No prompt gives the reference away.
        assert not any("purple" in c.text.lower() for c in up.calls)
        assert "its final answer is wrong" in up.of("reflect")[0].last


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=503)])
async def test_a_lost_reflection_adds_nothing(lost: Said) -> None:
    async with trying(("2", "9"), reflect=lost) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model", "Q?", reflexion_trials=2)
        assert answer.info["calls"] == 5
        assert up.of("sample")[1].last == "Q?"


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=503)])
async def test_a_lost_trial_is_a_failure_without_a_reflection(lost: Said) -> None:
    async with trying(("2", "2"), {1: lost}) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model", reflexion_trials=2)
        assert (answer.text, up.stages()) == ("try 0", ["rate", "reflect", "sample", "sample"])


@pytest.mark.anyio
async def test_no_usable_trial_is_an_error() -> None:
    async with trying(trials={0: Reply("")}) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model")
        assert (answer.status, answer.error["code"], len(up.calls)) == (502, "upstream_empty", 3)


@pytest.mark.anyio
async def test_a_first_trial_that_fails_is_the_upstream_s_error() -> None:
    async with trying(trials={0: Fault(status=500)}) as up, serving(up) as proxy:
        assert ((await proxy.ask("reflexion-test-model")).status, len(up.calls)) == (502, 1)


@pytest.mark.anyio
async def test_a_tool_call_is_handed_on_at_once() -> None:
    async with trying(trials={1: calls_a_tool()}) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model", tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert len(up.calls) == 4
        assert all(("tools" in c.body) == (c.stage == "sample") for c in up.calls)


@pytest.mark.anyio
async def test_conversation_and_images_are_untouched() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": pictured("Q")},
    ]
    async with trying() as up, serving(up) as proxy:
        await proxy.ask("reflexion-test-model", messages=messages, reflexion_trials=2)
        assert [images(c.messages) for c in up.calls] == [1] * 5
        assert [c.messages[0] for c in up.of("sample")] == [messages[0]] * 2
        assert up.of("sample")[1].messages[1]["content"][:2] == messages[1]["content"]


@pytest.mark.anyio
async def test_a_refusal_reaches_the_client() -> None:
    no = refusal(401, "no")
    for up in (trying(trials={0: no}), trying((no,)), trying(reflect=no), trying(trials={1: no})):
        async with up, serving(up) as proxy:
            assert (await proxy.ask("reflexion-test-model")).status == 401


@pytest.mark.anyio
@pytest.mark.parametrize(("calls", "text"), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (7, 1), (8, 2)])
async def test_a_budget_leaves_the_best_trial(calls: int, text: int) -> None:
    async with trying(("2", "3", "4")) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model", optillm_budget={"max_calls": calls})
        assert (answer.text, len(up.calls)) == (f"try {text}", calls)
        assert answer.info.get("cut_short") == ("max_calls" if calls < 8 else None)


@pytest.mark.anyio
async def test_streaming_gives_the_same_answer() -> None:
    async with trying(("3", "6", "5")) as up, serving(up) as proxy:
        assert streamed(await proxy.events("reflexion-test-model")) == "try 1"


@pytest.mark.anyio
async def test_the_trace_shows_why() -> None:
    async with trying(("3", "9")) as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model")
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
        notes = [r for r in run["records"] if r.get("name") == "reflexion.trial"]
        assert "0.9" in json.dumps(notes[1])
        assert [json.dumps(n).count('"passed": true') for n in notes] == [0, 1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reflexion_trials": 0}, "reflexion_trials"),
        ({"reflexion_trials": 11}, "reflexion_trials"),
        ({"reflexion_memory": 4}, "reflexion_memory"),
        ({"reflexion_threshold": 8}, "reflexion_threshold"),
        ({"reflexion_checker": "oracle"}, "reflexion_checker"),
        ({"reflexion_checker": "exact"}, "reflexion_checker"),
        ({"reflexion_checker": "llm", "reflexion_reference": "42"}, "reflexion_reference"),
    ],
)
async def test_bad_and_contradictory_parameters_make_no_call(fields: dict[str, Any], param: str) -> None:
    async with trying() as up, serving(up) as proxy:
        answer = await proxy.ask("reflexion-test-model", **fields)
        assert (answer.status, answer.error["param"], up.calls) == (400, param, [])


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_number() -> None:
    async with trying() as up, serving(up) as proxy:
        await asyncio.gather(
            proxy.ask("reflexion-test-model", "marker-a", reflexion_trials=1),
            proxy.ask("reflexion-test-model", "marker-b", reflexion_trials=3),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (2, 8)
