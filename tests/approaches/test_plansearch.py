"""PlanSearch: the pure tree, and the acceptance cases of chain and tree."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.search.plansearch import branches, grow, subsets
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, serving

ROLES = {
    "observe problems": "observe",
    "derive new insights": "derive",
    "plan solutions in words": "plan",
    "why plans fail": "criticise",
    "plans into pseudocode": "pseudo",
    "select the best solutions": "pick",
}
SAID: Mapping[str, Said] = {
    "observe": "<observations>\n1. sorted\n2. unique\n3. small\n</observations>",
    "derive": "<observations>1. use sets\n2. use heaps</observations>",
    "plan": "Because it is sorted: halve.",
    "criticise": "Too slow. <plan>hash them</plan>",
    "pseudo": "LOOP",
    "pick": "Choices: 1",
}
QUESTION = "Write a function add that adds two numbers."


def planner(implement: Said | None = None, **said: Said) -> ScriptedUpstream:
    """Implementations are numbered in the order of arrival unless given."""
    made: list[Seen] = []

    def script(call: Seen) -> Said:
        if call.stage == "sample":
            made.append(call)
            return f"code {len(made)}" if implement is None else implement
        return {**SAID, **said}[call.stage]

    return ScriptedUpstream(script, roles=ROLES)


async def ask(up: ScriptedUpstream, model: str = "plansearch-test-model", **fields: Any) -> Answer:
    settings = {k: fields.pop(k) for k in ("n_mode", "params", "sandbox") if k in fields}
    async with up, serving(up, n=fields.pop("server_n", 1), **settings) as proxy:
        return await proxy.ask(model, fields.pop("question", QUESTION), **fields)


TREE = {"plansearch_mode": "tree"}


# -- chain -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_chain() -> None:
    up = planner("done")
    answer = await ask(up)
    assert answer.text == "done"
    assert [c.stage for c in up.calls] == ["observe", "derive", "plan", "sample"]
    assert (answer.info["calls"], answer.info["depth"]) == (4, 4)
    _, derive, plan, implement = up.calls
    assert "\n1. sorted\n2. unique\n3. small\n</insights-" in derive.last
    assert "\n1. sorted\n2. unique\n3. small\n4. use sets\n5. use heaps\n</insights-" in plan.last
    assert "\nBecause it is sorted: halve.\n</plan-" in implement.last
    assert all(QUESTION in c.text for c in up.calls)
    assert implement.last.startswith(QUESTION)


@pytest.mark.anyio
async def test_only_items_are_observations() -> None:
    up = planner(observe="Here are 3 observations:\n1. a\n\n2. b\n3) c")
    await ask(up)
    assert "\n1. a\n2. b\n3. c\n</insights-" in up.of("derive")[0].last


@pytest.mark.anyio
async def test_a_plan_that_is_cut_off_is_used() -> None:
    up = planner(plan=Reply("half plan", finish="length"))
    assert (await ask(up)).status == 200
    prompt = up.of("sample")[0].last
    assert "\nhalf plan\n</plan-" in prompt
    assert "Error" not in prompt


@pytest.mark.anyio
@pytest.mark.parametrize("fields", [{"n": 3}, {"server_n": 3}])
async def test_n_chains(fields: dict[str, Any]) -> None:
    up = planner()
    answer = await ask(up, **fields)
    assert sorted(answer.texts) == ["code 1", "code 2", "code 3"]
    assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (12, 4, 12)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("said", "stages", "shown"),
    [
        ({"observe": Reply("")}, ["observe", "plan", "sample"], "Because it is sorted"),
        ({"observe": Fault(status=500)}, ["observe", "plan", "sample"], "Because it is sorted"),
        ({"derive": Reply("")}, ["observe", "derive", "plan", "sample"], "Because it is sorted"),
        ({"plan": Reply("")}, ["observe", "derive", "plan", "sample"], "5. use heaps\n</insights-"),
        ({"plan": Fault(status=503)}, ["observe", "derive", "plan", "sample"], "1. sorted"),
    ],
)
async def test_steps_that_fail_are_left_out(said: dict[str, Said], stages: list[str], shown: str) -> None:
    up = planner("done", **said)
    answer = await ask(up)
    assert (answer.status, answer.text) == (200, "done")
    assert [c.stage for c in up.calls] == stages
    assert shown in up.calls[-1].last


@pytest.mark.anyio
async def test_without_derived_observations_the_first_ones_serve() -> None:
    up = planner(derive=Reply(""))
    await ask(up)
    assert "\n1. sorted\n2. unique\n3. small\n</insights-" in up.of("plan")[0].last


@pytest.mark.anyio
async def test_a_list_that_is_cut_off_keeps_its_complete_items() -> None:
    up = planner(observe=Reply("<observations>\n1. a\n2. b\n3. hal", finish="length"))
    await ask(up)
    assert "\n1. a\n2. b\n</insights-" in up.of("derive")[0].last


@pytest.mark.anyio
async def test_numbers_of_observations() -> None:
    up = planner(observe="\n".join(f"- o{i}" for i in range(9)))
    answer = await ask(up, plansearch_observations=5, plansearch_derived=0)
    assert answer.info["calls"] == 3
    assert "Write 5 insights" in up.of("observe")[0].last
    assert "\n5. o4\n</insights-" in up.of("plan")[0].last


@pytest.mark.anyio
async def test_an_empty_implementation_is_dropped_and_all_empty_is_an_error() -> None:
    replies = iter([Reply(""), Reply("x"), Reply("")])
    up = ScriptedUpstream(lambda c: next(replies) if c.stage == "sample" else SAID[c.stage], roles=ROLES)
    assert (await ask(up, n=3)).texts == ["x"]
    answer = await ask(planner(Reply(None)))
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_what_an_implementation_may_be() -> None:
    choice = (await ask(planner(Reply("de", finish="length")))).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("de", "length")
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tool = Reply(None, finish="tool_calls", tool_calls=(call,))
    choice = (await ask(planner(tool), return_full_response=True)).json["choices"][0]
    assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([call], "tool_calls")


@pytest.mark.anyio
async def test_client_options_and_temperatures() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    content = [{"type": "text", "text": QUESTION}, image]
    up = planner()
    await ask(up, question=content, stop=["x"], temperature=0.2)
    assert ["stop" in c.body for c in up.calls] == [False, False, False, True]
    assert {c.body["temperature"] for c in up.calls} == {0.2}
    assert all(image in c.messages[-1]["content"] for c in up.calls)
    up = planner()
    await ask(up)
    assert {c.body["temperature"] for c in up.calls} == {0.7}
    up = planner()
    await ask(up, plansearch_temperature=1.1, temperature=0.2)
    assert [c.body["temperature"] for c in up.calls] == [1.1, 1.1, 1.1, 0.2]


@pytest.mark.anyio
async def test_full_response_has_the_plan_first() -> None:
    assert (
        await ask(planner("done"), return_full_response=True)
    ).text == "Because it is sorted: halve.\n\ndone"


@pytest.mark.anyio
@pytest.mark.parametrize("stage", ["observe", "derive", "plan", "sample"])
@pytest.mark.parametrize("mode", ["chain", "tree"])
async def test_a_refusal_reaches_the_client(stage: str, mode: str) -> None:
    said: Any = {"implement" if stage == "sample" else stage: refusal(404, "no such model")}
    assert (await ask(planner(**said), plansearch_mode=mode)).status == 404


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("most", "stages"),
    [
        (1, ["sample"]),
        (2, ["observe", "sample"]),
        (3, ["observe", "derive", "sample"]),
    ],
)
async def test_the_last_call_of_a_budget_is_the_answer(most: int, stages: list[str]) -> None:
    up = planner("done")
    answer = await ask(up, optillm_budget={"max_calls": most})
    assert (answer.text, answer.info["cut_short"]) == ("done", "max_calls")
    assert [c.stage for c in up.calls] == stages


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["chain", "tree"])
async def test_when_tokens_end_before_the_answer_its_plan_is_there(mode: str) -> None:
    up = planner(plan=Reply("the plan", usage={"completion_tokens": 99_999}))
    answer = await ask(up, plansearch_mode=mode, plansearch_leaves=1, optillm_budget={"max_tokens": 50_000})
    assert (answer.text, answer.info["cut_short"]) == ("the plan", "max_tokens")


@pytest.mark.anyio
async def test_the_implementation_streams_live() -> None:
    async with planner("the whole program") as up, serving(up) as proxy:
        chunks = [json.loads(e) for e in (await proxy.events("plansearch-m", QUESTION))[:-1]]
        pieces = [c["delta"].get("content") for k in chunks for c in k["choices"]]
        assert "".join(p or "" for p in pieces) == "the whole program"
        assert len([p for p in pieces if p]) > 1
        assert [bool(c.body.get("stream")) for c in up.calls] == [False, False, False, True]
        for fields in ({"return_full_response": True}, {**TREE, "return_full_response": True}):
            chunks = [json.loads(e) for e in (await proxy.events("plansearch-m", QUESTION, **fields))[:-1]]
            text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
            assert text == "Because it is sorted: halve.\n\nthe whole program"


# -- tree ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_tree() -> None:
    up = planner(pick="I like 3. Choices: 3")
    answer = await ask(up, **TREE)
    assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (25, 5, 25)
    assert [len(up.of(s)) for s in ("observe", "derive", "plan", "sample", "pick")] == [1, 7, 8, 8, 1]
    shown = up.of("pick")[0].last
    assert f"<candidate-3-{shown.split('<candidate-3-')[1][:12]}>\n{answer.text}\n" in shown


@pytest.mark.anyio
async def test_branches_and_leaves_differ() -> None:
    up = planner()
    await ask(up, **TREE)
    insights = [c.last.partition("Insights into the problem:")[2] for c in up.of("derive")]
    sizes = sorted(sum(word in text for word in ("sorted", "unique", "small")) for text in insights)
    assert sizes == [0, 1, 1, 1, 2, 2, 2]
    assert len({c.last for c in up.of("plan")}) == 8


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "calls", "depth"),
    [
        ({"plansearch_leaves": 1}, 1 + 1 + 2, 4),
        ({"plansearch_leaves": 4}, 1 + 4 + 8 + 1, 5),
        ({"plansearch_subset": 1, "plansearch_leaves": 20}, 1 + 4 + 2 * 12 + 1, 5),
        ({"plansearch_derived": 0}, 1 + 2 * 7 + 1, 4),
        ({"plansearch_leaves": 3, "plansearch_pseudocode": True}, 1 + 3 + 9 + 1, 6),
        ({"plansearch_leaves": 3, "plansearch_criticism": True}, 1 + 3 + 12 + 1, 6),
        (
            {"plansearch_leaves": 3, "plansearch_criticism": True, "plansearch_pseudocode": True},
            1 + 3 + 18 + 1,
            7,
        ),
    ],
)
async def test_shapes_of_trees(fields: dict[str, Any], calls: int, depth: int) -> None:
    answer = await ask(planner(), **TREE, **fields)
    assert (answer.info["calls"], answer.info["depth"]) == (calls, depth)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "worst"),
    [
        ({}, 4),
        ({"plansearch_derived": 0}, 3),
        ({"n": 4}, 16),
        (TREE, 25),
        ({**TREE, "n": 3}, 25),
        ({**TREE, "plansearch_leaves": 3, "plansearch_criticism": True, "plansearch_pseudocode": True}, 23),
        ({**TREE, "plansearch_leaves": 1}, 4),
    ],
)
async def test_worst_case(fields: dict[str, Any], worst: int) -> None:
    async with planner() as up, serving(up, max_upstream_calls=worst - 1) as proxy:
        refused = await proxy.ask("plansearch-test-model", **fields)
        assert f"can take {worst} " in refused.error["message"]
        assert up.calls == []
    async with planner() as up, serving(up, max_upstream_calls=worst) as proxy:
        answer = await proxy.ask("plansearch-test-model", **fields)
        assert (answer.status, answer.info["calls"]) == (200, worst)


@pytest.mark.anyio
async def test_a_second_idea_follows_its_criticism() -> None:
    up = planner()
    await ask(up, **TREE, plansearch_leaves=1, plansearch_criticism=True, plansearch_pseudocode=True)
    assert "\nBecause it is sorted: halve.\n</plan-" in up.of("criticise")[0].last
    plans = sorted(c.last for c in up.of("pseudo"))
    assert ["hash them" in p for p in plans] == [False, True]
    answers = sorted(c.last.partition("<plan-")[2] for c in up.of("sample"))
    assert ["\nhash them\n\nLOOP\n" in a for a in answers] == ["hash" in a for a in answers]
    assert sum("\nhash them\n\nLOOP\n" in a for a in answers) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("n", [2, 8])
async def test_n_distinct_results(n: int) -> None:
    up = planner(pick="Choices: 5, 2")
    answer = await ask(up, **TREE, n=n)
    assert len(set(answer.texts)) == n
    assert len(up.of("pick")) == (n < 8)
    if n == 2:
        shown = up.of("pick")[0].last
        order = [
            shown.index(f"\n{text}\n</candidate-{k}-") for text, k in zip(answer.texts, (5, 2), strict=True)
        ]
        assert order[0] > order[1]


@pytest.mark.anyio
async def test_equal_results_need_no_selection_and_still_make_n_choices() -> None:
    up = planner("same")
    answer = await ask(up, **TREE, n=3)
    assert answer.texts == ["same"] * 3
    assert answer.info["calls"] == 24


@pytest.mark.anyio
@pytest.mark.parametrize("pick", ["Choices: 99", "no idea", Reply(""), Fault(status=500)])
async def test_a_selection_that_cannot_be_read_takes_the_first(pick: Said) -> None:
    async with planner(pick=pick) as up, serving(up, n_mode="fanout", max_concurrency=1) as proxy:
        assert (await proxy.ask("plansearch-m", QUESTION, **TREE)).status == 200
        first = up.of("pick")[0].last.split("<candidate-1-")[1].split("\n")[1]
        assert (await proxy.ask("plansearch-m", QUESTION, **TREE, plansearch_leaves=1)).status == 200
        assert first.startswith("code ")


@pytest.mark.anyio
async def test_results_that_are_cut_off_count_only_if_there_is_no_other() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "sample":
            empty = "1. " not in call.last and "halve" not in call.last
            return "whole" if empty else Reply("half", finish="length")
        return Reply("") if call.stage == "plan" else SAID[call.stage]

    up = ScriptedUpstream(script, roles=ROLES)
    answer = await ask(up, **TREE, plansearch_derived=0)
    assert (answer.text, answer.json["choices"][0]["finish_reason"]) == ("whole", "stop")
    assert up.of("pick") == []


@pytest.mark.anyio
async def test_without_observations_the_tree_is_one_leaf() -> None:
    up = planner(observe=Reply(""))
    answer = await ask(up, **TREE, n=2)
    assert sorted(answer.texts) == ["code 1", "code 2"]
    assert up.stages() == ["observe", "plan", "plan", "sample", "sample"]


@pytest.mark.anyio
async def test_failed_leaves_are_dropped_and_the_first_error_is_told_if_all_fail() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "sample":
            return Fault(status=500) if "halve" in call.last else "good"
        if call.stage == "plan":
            return "halve" if "sorted" in call.last else "double"
        return SAID[call.stage]

    assert (await ask(ScriptedUpstream(script, roles=ROLES), **TREE)).text == "good"
    answer = await ask(planner(Fault(status=503)), **TREE)
    assert answer.status == 502


@pytest.mark.anyio
@pytest.mark.parametrize("most", [1, 2, 3, 4, 6, 9, 12, 20, 24])
async def test_a_budget_of_calls_that_ends_anywhere(most: int) -> None:
    up = planner()
    answer = await ask(up, **TREE, optillm_budget={"max_calls": most})
    assert (answer.status, answer.info["cut_short"]) == (200, "max_calls")
    assert answer.text.startswith("code ")
    assert answer.info["calls"] == len(up.calls) <= most


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"plansearch_observations": 11}, "plansearch_observations"),
        ({"plansearch_derived": -1}, "plansearch_derived"),
        ({"plansearch_subset": 3}, "plansearch_subset"),
        ({"plansearch_leaves": 0}, "plansearch_leaves"),
        ({"plansearch_mode": "forest"}, "plansearch_mode"),
        ({"plansearch_temperature": "hot"}, "plansearch_temperature"),
        ({"plansearch_pseudocode": True}, "plansearch_pseudocode"),
        ({"plansearch_criticism": True}, "plansearch_criticism"),
        ({**TREE, "plansearch_leaves": 4, "n": 5}, "plansearch_leaves"),
    ],
)
async def test_parameters_that_are_wrong(fields: dict[str, Any], param: str) -> None:
    up = planner()
    answer = await ask(up, **fields)
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, param, 0)


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_n() -> None:
    async with planner() as up, serving(up) as proxy:
        a, b = await asyncio.gather(
            proxy.ask("plansearch-test-model", "marker-a", n=1),
            proxy.ask("plansearch-test-model", "marker-b", n=4),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (4, 16)
        assert (a.info["calls"], b.info["calls"], len(b.texts)) == (4, 16, 4)


# -- selection by the question's own tests -----------------------------------------------------


TESTED = f"{QUESTION}\nassert add(1, 2) == 3\nassert add(-1, 1) == 0\n>>> add(2, 2)\n4\n"


def coders(*bodies: str) -> ScriptedUpstream:
    """One program per body, for the plans with no insight, the first, the second…"""

    def script(call: Seen) -> Said:
        if call.stage == "plan":
            return next((w for w in ("sorted", "unique", "small") if f". {w}" in call.last), "none")
        if call.stage == "sample":
            index = ("none", "sorted", "unique", "small").index(call.last.split("\n<plan-")[1].split("\n")[1])
            return f"```python\ndef add(a, b):\n    return {bodies[index]}\n```"
        return SAID[call.stage]

    return ScriptedUpstream(script, roles=ROLES)


FOUR: dict[str, Any] = {**TREE, "plansearch_leaves": 4, "plansearch_derived": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("n", [1, 2])
async def test_tests_in_the_question_decide(n: int) -> None:
    up = coders("a - b", "a * b", "a + b", "abs(a + b) + (a > 1)")
    answer = await ask(up, question=TESTED, n=n, **FOUR)
    assert ["return a + b" in t for t in answer.texts] == [True, False][:n]
    assert up.of("pick") == []
    assert (answer.info["calls"], answer.info["depth"]) == (1 + 8, 3)


@pytest.mark.anyio
async def test_a_model_selects_where_no_test_is_passed() -> None:
    up = coders("1 / 0", "1 / 0 + 1", "1 / 0 + 2", "None")
    answer = await ask(up, question=TESTED, **FOUR)
    assert len(up.of("pick")) == 1
    assert "1 / 0\n" in answer.text


@pytest.mark.anyio
async def test_a_model_selects_where_there_is_no_sandbox() -> None:
    up = coders("a - b", "a * b", "a + b", "a")
    answer = await ask(up, question=TESTED, sandbox="off", **FOUR)
    assert len(up.of("pick")) == 1
    assert f"\n{answer.text}\n</candidate-1-" in up.of("pick")[0].last


# -- the pure tree -------------------------------------------------------------------------------

words = st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=2), unique=True, max_size=5)
sizes = st.integers(1, 2)


@given(words, sizes, st.integers(1, 12), st.integers())
def test_branches(first: list[str], size: int, most: int, seed: int) -> None:
    found = branches(first, size, most, random.Random(seed))
    assert len(found) == min(most, len(subsets(first, size)))
    assert len({frozenset(b) for b in found}) == len(found)
    assert found[0] == ()
    assert [len(b) for b in found] == sorted(len(b) for b in found)
    assert all(set(b) <= set(first) and len(b) <= size for b in found)
    assert found == branches(first, size, most, random.Random(seed))


@given(words, st.data(), sizes, st.integers(1, 40), st.integers())
def test_leaves(first: list[str], data: st.DataObject, size: int, most: int, seed: int) -> None:
    roots = branches(first, size, 8, random.Random(seed))
    derived: Sequence[list[str]] = [data.draw(words) for _ in roots]
    leaves = grow(roots, derived, size, most, random.Random(seed))
    assert 1 <= len(leaves) <= most
    assert len({frozenset(leaf) for leaf in leaves}) == len(leaves)

    def grown(leaf: tuple[str, ...], root: tuple[str, ...], more: list[str]) -> bool:
        return leaf[: len(root)] == root and leaf[len(root) :] in subsets(more, size)

    assert all(any(grown(leaf, r, m) for r, m in zip(roots, derived, strict=True)) for leaf in leaves)
    everything = {frozenset((*r, *s)) for r, m in zip(roots, derived, strict=True) for s in subsets(m, size)}
    assert len(leaves) == min(most, len(everything))
