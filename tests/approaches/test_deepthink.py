"""DeepThink: a discovered structure, samples along it, and the route that their agreement decides."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.prompting.deepthink import agreement, deepthink
from optillm.approaches.prompting.discovering import MODULES
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

SLUG = "deepthink-test-model"
ROLES = {"select ways": "select", "adapt general ways": "adapt", "step-by-step structure": "implement"}
PLAN = '{"Count the eggs": "", "Answer": ""}'
GREEDY = f"{PLAN}\n#### The answer is 9"


def solution(number: object, words: str = "so") -> str:
    return f'{{"Count": "{words}", "Answer": "{number}"}}\n#### The answer is {number}'


def thinking(
    *samples: Reply | str,
    greedy: Said = GREEDY,
    select: Said = "Modules: 9, 38",
    adapt: Said = "- Split the eggs",
    implement: Said = f"```json\n{PLAN}\n```",
) -> ScriptedUpstream:
    stages = {"select": select, "adapt": adapt, "implement": implement}

    def script(call: Seen) -> Said:
        if call.stage != "sample":
            return stages[call.stage]
        if call.body["temperature"] == 0:
            return greedy
        return list(samples) if call.n > 1 else samples[call.body.get("seed", 0) % 1000]

    return ScriptedUpstream(script, roles=ROLES)


def kinds(up: ScriptedUpstream) -> list[str]:
    def kind(call: Seen) -> str:
        return "greedy" if call.stage == "sample" and call.body["temperature"] == 0 else call.stage

    return [kind(c) for c in up.calls]


DISCOVERY = ["select", "adapt", "implement"]


# -- agreement -------------------------------------------------------------------------------------


def agreed(*answers: str, solutions: tuple[str, ...] = ()) -> tuple[float, int]:
    found = agreement([f"The answer is {a}" for a in answers], solutions or answers)
    return found.confidence, found.leader


def test_agreement_is_the_share_of_the_largest_group() -> None:
    assert agreed("5", "5.0", "6") == (2 / 3, 0)
    assert agreed("6", "5", "5") == (2 / 3, 1)
    assert agreed("5") == (1, 0)
    assert agreement(["a long text\nwithout end"] * 2, ["", ""]).confidence == 0
    # One without an answer agrees with none.
    assert agreement(["The answer is 5", "prose\nand more of it"], ["", ""]).confidence == 1 / 2


def test_of_equal_groups_the_one_that_others_resemble_leads() -> None:
    solutions = ("we guess", "add two and three to get it", "add two and three, then one, to get it")
    assert agreed("7", "5", "6", solutions=solutions) == (1 / 3, 1)
    assert agreed("7", "5", "6", solutions=("x", "y", "z")) == (1 / 3, 0)
    # Likeness decides among equals only.
    assert agreed("7", "7", "5", solutions=("x", "y", "z z z")) == (2 / 3, 0)


@given(st.lists(st.sampled_from(["1", "2", "3", "no\nanswer"]), min_size=1, max_size=10))
def test_agreement_is_a_share_and_its_leader_is_of_a_largest_group(answers: list[str]) -> None:
    found = agreement(answers, answers)
    counts = {a: answers.count(a) for a in answers if a != "no\nanswer"}
    most = max(counts.values(), default=0)
    assert found.confidence == most / len(answers)
    if counts:
        assert counts[answers[found.leader]] == most


# -- the technique -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_two_of_three_agree_and_nothing_greedy_is_asked() -> None:
    async with thinking(solution(6), solution(5, "a"), solution(5, "b")) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, "How many?", confidence_threshold=0.6)
        assert answer.text == "The answer is 5"
        assert (answer.info["calls"], answer.info["depth"]) == (4, 4)
        assert kinds(up) == [*DISCOVERY, "sample"]
        assert answer.info["deepthink_confidence"] == 0.6667
        assert "deepthink_unstructured" not in answer.info
        sample = up.of("sample")[0]
        assert sample.n == 3
        assert sample.last.startswith("How many?")
        assert '"Count the eggs": ""' in sample.last
        fields = {k: sample.body[k] for k in ("temperature", "top_p", "max_tokens")}
        assert fields == {"temperature": 0.7, "top_p": 0.95, "max_tokens": 16382}


@pytest.mark.anyio
async def test_three_answers_lead_to_a_greedy_call() -> None:
    async with thinking(*map(solution, (5, 6, 7))) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG)
        assert answer.text == "The answer is 9"
        assert (answer.info["calls"], answer.info["depth"]) == (5, 5)
        assert kinds(up) == [*DISCOVERY, "sample", "greedy"]
        assert up.calls[-1].messages == up.calls[-2].messages
        assert answer.info["deepthink_confidence"] == 0.3333
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
        data = next(r["data"] for r in run["records"] if r.get("name") == "deepthink.agreement")
        assert (data["answers"], data["groups"], data["greedy"]) == (["5", "6", "7"], [[0], [1], [2]], True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("threshold", "greedy"), [(0, False), (0.5, False), (0.51, True), (0.75, True), (1, True)]
)
async def test_the_threshold_is_reached_by_its_own_value(threshold: float, greedy: bool) -> None:
    async with thinking(*map(solution, (5, 5, 6, 7))) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, deepthink_samples=4, confidence_threshold=threshold)
        assert ("greedy" in kinds(up)) is greedy
        assert answer.text == ("The answer is 9" if greedy else "The answer is 5")


@pytest.mark.anyio
async def test_the_stages_see_the_whole_task() -> None:
    question = "Mind this. " * 100 + "How many?"
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": pictured(question)}]
    async with thinking(*[solution(5)] * 3) as up, serving(up) as proxy:
        await proxy.ask(SLUG, messages=messages)
        assert kinds(up) == [*DISCOVERY, "sample"]
        for call in up.calls[:3]:
            assert question in call.last
            assert "Be kind." in call.last
            assert call.body["temperature"] == 0.3
        assert [images(c.messages) for c in up.calls] == [1] * 4
        assert up.calls[3].messages[0] == messages[0]
        assert [m for m in MODULES if m in up.of("adapt")[0].last] == [MODULES[8], MODULES[37]]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ({"implement": "First count, then add."}, "no JSON was written"),
        ({"implement": '{"Count": '}, "no JSON was written"),
        ({"implement": Fault(status=500)}, "no JSON was written"),
        ({"select": "none of them"}, "no module was selected"),
        ({"select": Fault(status=500)}, "no module was selected"),
    ],
)
async def test_without_a_structure_the_task_is_sampled_as_it_is(lost: dict[str, Said], why: str) -> None:
    async with thinking(*["The answer is 5 #### 6"] * 3, **lost) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, "Q?")
        assert answer.text == "The answer is 5 #### 6"
        assert answer.info["deepthink_unstructured"] == why
        assert up.of("sample")[0].messages == [{"role": "user", "content": "Q?"}]


@pytest.mark.anyio
async def test_a_stage_between_that_fails_is_passed_over() -> None:
    async with thinking(*[solution(5)] * 3, adapt=Fault(status=500)) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG)
        assert (answer.text, "deepthink_unstructured" in answer.info) == ("The answer is 5", False)
        assert MODULES[8] in up.of("implement")[0].last


@pytest.mark.anyio
async def test_without_self_discovery_there_are_only_samples() -> None:
    async with thinking(*["The answer is 5"] * 3) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, "Q?", enable_self_discover=False)
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("The answer is 5", 1, 1)
        assert up.calls[0].messages == [{"role": "user", "content": "Q?"}]
        assert "deepthink_unstructured" not in answer.info


@pytest.mark.anyio
async def test_free_text_has_no_agreement() -> None:
    prose = "The sea was calm and blue.\nGulls cried over the little boats near the harbour."
    async with thinking(*[f"{PLAN}\n#### {prose}"] * 3) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG)
        assert (answer.text, answer.info["deepthink_confidence"]) == ("The answer is 9", 0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "lost", [Reply(""), Fault(status=500), Reply("half a", finish="length"), Reply("<think>hm</think>")]
)
async def test_a_greedy_reply_that_is_no_use_loses_nothing(lost: Said) -> None:
    async with thinking(*map(solution, (5, 6, 7)), greedy=lost) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG)
        assert (answer.status, answer.text) == (200, "The answer is 5")
        assert kinds(up)[-1] == "greedy"


@pytest.mark.anyio
async def test_truncated_samples_count_only_when_alone() -> None:
    cut = Reply(solution(5), finish="length")
    async with thinking(cut, cut, solution(6)) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG)
        assert (answer.text, answer.info["deepthink_confidence"]) == ("The answer is 6", 1)
    async with thinking(cut, cut, cut) as up, serving(up) as proxy:
        choice = (await proxy.ask(SLUG)).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("The answer is 5", "length")


@pytest.mark.anyio
async def test_the_clients_own_limits_win() -> None:
    async with thinking(*[solution(5)] * 3) as up, serving(up) as proxy:
        await proxy.ask(SLUG, top_p=0.5, max_completion_tokens=77, temperature=0.2)
        body = up.of("sample")[0].body
        assert (body["top_p"], body["max_completion_tokens"], body["temperature"]) == (0.5, 77, 0.7)
        assert "max_tokens" not in body
        up.calls.clear()
        await proxy.ask(SLUG, deepthink_top_p=0.6, deepthink_max_tokens=88)
        body = up.of("sample")[0].body
        assert (body["top_p"], body["max_tokens"]) == (0.6, 88)


@pytest.mark.anyio
async def test_a_client_that_wants_json_gets_its_own_json() -> None:
    async with thinking(*['{"eggs": 5}'] * 3, greedy='{"eggs": 6}') as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, response_format={"type": "json_object"})
        assert answer.text == '{"eggs": 5}'
        assert "####" not in up.of("sample")[0].last


@pytest.mark.anyio
@pytest.mark.parametrize(("mode", "calls"), [("native", 5), ("fanout", 7)])
async def test_the_worst_case(mode: str, calls: int) -> None:
    async with thinking(*map(solution, (5, 6, 7))) as up, serving(up, n_mode=mode) as proxy:
        answer = await proxy.ask(SLUG, seed=0)
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (calls, 5, calls)
        assert calls in (5, worst(deepthink))
    assert worst(deepthink, samples=10, enable_self_discover=False) == 11


@pytest.mark.anyio
async def test_an_upstream_that_ignores_n_is_asked_for_the_rest() -> None:
    async with thinking(*[solution(5)] * 3) as up, serving(up) as proxy:
        up.n_mode = "ignore"
        answer = await proxy.ask(SLUG, seed=0)
        assert (answer.text, kinds(up)) == ("The answer is 5", [*DISCOVERY, *["sample"] * 3])


@pytest.mark.anyio
@pytest.mark.parametrize("stage", [*DISCOVERY, "greedy"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    refused: dict[str, Any] = {stage: refusal(401, "no such key")}
    async with thinking(*map(solution, (5, 6, 7)), **refused) as up, serving(up) as proxy:
        assert (await proxy.ask(SLUG)).status == 401


@pytest.mark.anyio
@pytest.mark.parametrize("nothing", [Reply(""), Reply(None)])
async def test_nothing_usable_is_an_error(nothing: Reply) -> None:
    async with thinking(nothing, nothing, nothing) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG)
        assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_a_tool_call_survives() -> None:
    tools = [tool()]
    async with thinking(*[calls_a_tool()] * 3, greedy=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, tools=tools)
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert ["tools" in c.body for c in up.calls] == [False] * 3 + [True] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
async def test_a_budget_that_ends_anywhere_leaves_an_answer(calls: int) -> None:
    async with thinking(*map(solution, (5, 6, 7))) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, optillm_budget={"max_calls": calls})
        assert (answer.status, len(up.calls)) == (200, calls)
        assert answer.info.get("cut_short") == ("max_calls" if calls < 5 else None)
        assert answer.text.endswith("The answer is 9" if calls == 5 else "The answer is 5")


@pytest.mark.anyio
async def test_a_budget_that_ends_before_the_samples_leaves_the_structure() -> None:
    costly = Reply(PLAN, usage={"completion_tokens": 9000, "total_tokens": 9000})
    async with thinking(solution(5), implement=costly) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, optillm_budget={"max_tokens": 8000})
        assert ("Count the eggs" in answer.text, answer.info["cut_short"]) == (True, "max_tokens")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deepthink_samples", 0),
        ("deepthink_samples", 11),
        ("confidence_threshold", 1.1),
        ("confidence_threshold", "high"),
        ("reasoning_modules_limit", 2),
        ("reasoning_modules_limit", 16),
        ("enable_self_discover", 1),
        ("deepthink_temperature", -1),
        ("deepthink_top_p", 2),
        ("deepthink_max_tokens", 0),
    ],
)
async def test_bad_parameters_make_no_call(field: str, value: Any) -> None:
    async with thinking("x") as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, **{field: value})
        assert (answer.status, answer.error["param"], up.calls) == (400, field, [])


@pytest.mark.anyio
async def test_the_limit_of_modules_holds() -> None:
    async with thinking(*[solution(5)] * 3, select="Modules: 1, 2, 3, 4, 5") as up, serving(up) as proxy:
        await proxy.ask(SLUG, reasoning_modules_limit=3)
        assert "Select at most 3." in up.of("select")[0].last
        assert [m for m in MODULES if m in up.of("adapt")[0].last] == list(MODULES[:3])


@pytest.mark.anyio
async def test_streaming_and_several_choices() -> None:
    async with thinking(*map(solution, (5, 6, 5))) as up, serving(up) as proxy:
        assert streamed(await proxy.events(SLUG, confidence_threshold=0.5)) == "The answer is 5"
        answer = await proxy.ask(SLUG, confidence_threshold=0.5, n=2)
        assert (answer.texts, answer.info["calls"], answer.info["depth"]) == (["The answer is 5"] * 2, 8, 4)


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own() -> None:
    async with thinking(*map(solution, range(5, 11))) as up, serving(up, n_mode="fanout") as proxy:
        a, b = await asyncio.gather(
            proxy.ask(SLUG, "marker-a", deepthink_samples=1, enable_self_discover=False, seed=0),
            proxy.ask(SLUG, "marker-b", deepthink_samples=4, seed=0),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (1, 8)
        assert (a.text, b.text) == (solution(5), "The answer is 9")
