"""Self-discover: select, adapt, implement, then solve along the structure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.prompting.discovering import EXAMPLE, MODULES, json_object, selection
from optillm.approaches.prompting.self_discover import self_discover
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

ROLES = {"select ways": "select", "adapt general ways": "adapt", "step-by-step structure": "implement"}
PLAN = '{"Count the eggs": "", "Answer": ""}'
SOLVED = '{"Count the eggs": "9", "Answer": "18"}\n#### She makes 18 dollars.'


def discovering(
    select: Said = "These help.\nModules: 9, 38",
    adapt: Said = "- Split the eggs\n- Go egg by egg",
    implement: Said = f"```json\n{PLAN}\n```",
    final: Said = SOLVED,
) -> ScriptedUpstream:
    stages = {"select": select, "adapt": adapt, "implement": implement}
    return ScriptedUpstream(lambda call: stages.get(call.stage, final), roles=ROLES)


def final_of(up: ScriptedUpstream) -> Seen:
    (call,) = up.of("sample")
    return call


def test_there_are_39_different_modules() -> None:
    assert len(MODULES) == len(set(MODULES)) == 39
    assert json.loads(EXAMPLE)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Modules: 9, 38", [9, 38]),
        ("I think module 3 is no use.\n**Modules:** 9, 38, 9", [9, 38]),
        ("1. this\n4. that", [1, 4]),
        ("Modules: 0, 40, 390, 39", [39]),
        ("Modules: 1, 2, 3, 4, 5", [1, 2, 3]),
        ("none at all", []),
        ("", []),
    ],
)
def test_selection(text: str, numbers: list[int]) -> None:
    assert selection(text, 3) == numbers


@given(st.text(alphabet="modules: 0123459,.\n-", max_size=60), st.integers(1, 39))
def test_any_selection_is_of_modules(text: str, most: int) -> None:
    numbers = selection(text, most)
    assert len(set(numbers)) == len(numbers) <= most
    assert all(1 <= n <= 39 for n in numbers)


def test_structures_are_read_where_they_can_be() -> None:
    for text in (f"Here it is:\n```json\n{PLAN}\n```", f"{PLAN}\nThat {{is}} it."):
        found = json_object(text)
        assert found is not None
        assert json.loads(found) == json.loads(PLAN)
    for odd in ("", "no json", '{"a": ', "}{", '{"a":' * 5000 + "1" + "}" * 5000):
        assert json_object(odd) is None


@pytest.mark.anyio
async def test_four_stages_each_with_the_one_before() -> None:
    async with discovering() as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", "How much does she make?")
        assert answer.text == "She makes 18 dollars."
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (worst(self_discover), 4, 4)
        (select,), (adapt,), (implement,) = up.of("select"), up.of("adapt"), up.of("implement")
        assert all(module in select.last for module in MODULES)
        assert [m for m in MODULES if m in adapt.last] == [MODULES[8], MODULES[37]]
        assert "- Split the eggs\n- Go egg by egg" in implement.last
        assert final_of(up).last.startswith("How much does she make?")
        assert '"Count the eggs": ""' in final_of(up).last


@pytest.mark.anyio
async def test_the_filled_in_structure_is_reasoning_on_request() -> None:
    async with discovering() as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", self_discover_expose_structure=True)
        message = answer.json["choices"][0]["message"]
        assert message["content"] == "She makes 18 dollars."
        assert json.loads(message["reasoning_content"])["Answer"] == "18"


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), "none of these", Fault(status=503)])
async def test_without_a_selection_the_task_is_asked_as_it_is(lost: Said) -> None:
    async with discovering(select=lost, final="plain #### text") as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", "Q?")
        assert (answer.text, up.stages()) == ("plain #### text", ["sample", "select"])
        assert final_of(up).last == "Q?"


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
async def test_unadapted_modules_are_implemented(lost: Said) -> None:
    async with discovering(adapt=lost) as up, serving(up) as proxy:
        assert (await proxy.ask("self_discover-test-model")).text == "She makes 18 dollars."
        assert MODULES[8] in up.of("implement")[0].last


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("lost", "followed"), [(Fault(status=500), "Go egg by egg"), ("First count, then add.", "First count")]
)
async def test_without_json_the_last_text_is_followed(lost: Said, followed: str) -> None:
    async with discovering(implement=lost) as up, serving(up) as proxy:
        assert (await proxy.ask("self_discover-test-model")).text == "She makes 18 dollars."
        assert followed in final_of(up).last


@pytest.mark.anyio
async def test_a_reply_in_the_wrong_format_is_shown_whole() -> None:
    async with discovering(final="18 dollars") as up, serving(up) as proxy:
        assert (await proxy.ask("self_discover-test-model")).text == "18 dollars"


@pytest.mark.anyio
async def test_a_client_that_wants_json_gets_its_own_json() -> None:
    async with discovering(final='{"dollars": 18}') as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", response_format={"type": "json_object"})
        assert answer.text == '{"dollars": 18}'
        assert "####" not in final_of(up).last
        assert ["response_format" in c.body for c in up.calls] == [False] * 3 + [True]


@pytest.mark.anyio
@pytest.mark.parametrize(("mode", "calls"), [("native", 4), ("fanout", 6)])
async def test_n_choices_share_one_structure(mode: str, calls: int) -> None:
    async with discovering() as up, serving(up, n_mode=mode) as proxy:
        answer = await proxy.ask("self_discover-test-model", n=3)
        assert (answer.info["calls"], answer.info["depth"]) == (calls, 4)
        assert answer.texts == ["She makes 18 dollars."] * 3


@pytest.mark.anyio
async def test_images_are_seen_by_every_stage() -> None:
    async with discovering() as up, serving(up) as proxy:
        await proxy.ask("self_discover-test-model", pictured("Q"))
        assert [images(c.messages) for c in up.calls] == [1] * 4


@pytest.mark.anyio
async def test_empty_reply_is_an_error() -> None:
    async with discovering(final=Reply("")) as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model")
        assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_truncated_reply_says_so() -> None:
    async with discovering(final=Reply('{"Count', finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("self_discover-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ('{"Count', "length")


@pytest.mark.anyio
async def test_a_tool_call_survives() -> None:
    async with discovering(final=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert ["tools" in c.body for c in up.calls] == [False] * 3 + [True]


@pytest.mark.anyio
@pytest.mark.parametrize("stage", ["select", "adapt", "implement", "final"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    async with discovering(**{stage: refusal(401, "no such key")}) as up, serving(up) as proxy:
        assert (await proxy.ask("self_discover-test-model")).status == 401


@pytest.mark.anyio
@pytest.mark.parametrize("calls", [1, 2, 3, 4])
async def test_a_small_budget_still_ends_in_an_answer(calls: int) -> None:
    async with discovering() as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", optillm_budget={"max_calls": calls})
        assert (answer.status, len(up.calls)) == (200, calls)
        assert answer.text.endswith("She makes 18 dollars.")
        assert answer.info.get("cut_short") == ("max_calls" if calls < 4 else None)


@pytest.mark.anyio
async def test_a_budget_that_ends_before_the_reply_leaves_the_structure() -> None:
    costly = Reply(PLAN, usage={"completion_tokens": 9000, "total_tokens": 9000})
    async with discovering(implement=costly) as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", optillm_budget={"max_tokens": 8000})
        assert (json.loads(answer.text), answer.info["cut_short"]) == (json.loads(PLAN), "max_tokens")


@pytest.mark.anyio
async def test_only_the_reply_is_streamed() -> None:
    async with discovering(final=Reply(SOLVED, pieces=tuple(SOLVED))) as up, serving(up) as proxy:
        assert streamed(await proxy.events("self_discover-test-model")) == "She makes 18 dollars."
        assert [bool(c.body.get("stream")) for c in up.calls] == [False] * 3 + [True]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "value"), [("modules", 0), ("modules", 40), ("modules", "all"), ("temperature", -1)]
)
async def test_bad_parameters_make_no_call(field: str, value: Any) -> None:
    async with discovering() as up, serving(up) as proxy:
        answer = await proxy.ask("self_discover-test-model", **{f"self_discover_{field}": value})
        assert (answer.status, answer.error["param"], up.calls) == (400, f"self_discover_{field}", [])


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_selection() -> None:
    async with discovering() as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("self_discover-test-model", "marker-a", self_discover_modules=1),
            proxy.ask("self_discover-test-model", "marker-b", self_discover_modules=2, n=2),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (4, 5)
        adapted = {
            m: MODULES[37] in c.last for c in up.of("adapt") for m in ("marker-a", "marker-b") if m in c.text
        }
        assert adapted == {"marker-a": False, "marker-b": True}
