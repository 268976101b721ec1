"""Tree of thoughts: the search as such, and what it asks of a model."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.search.tot import DepthFirst, State, proposals, survivors, unlike
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

ROLES = {
    "several ways to go on": "propose",
    "one step at a time": "thought",
    "evaluate partial solutions": "value",
    "choose between partial solutions": "vote",
}


# -- reading proposals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Proposal 1: (10 - 4) = 6\nProposal 2: 5 * 6 = 30", ["(10 - 4) = 6", "5 * 6 = 30"]),
        (
            "Three ideas:\n\n**Proposal 1:** add\nthen halve\n\n**Proposal 2:** double",
            ["add\nthen halve", "double"],
        ),
        ("**Proposal 1**: a\n- Proposal 2. b\n### Proposal 3: c\nProposal 4: d", ["a", "b", "c"]),
        (
            "Here are two:\n1. first\n   1.5 is not an item\n2) second",
            ["first\n   1.5 is not an item", "second"],
        ),
        ("Proposal 1:\nProposal 2: only this", ["only this"]),
        ("just think", ["just think"]),
        ("  \n", []),
    ],
)
def test_proposals_are_found(text: str, found: list[str]) -> None:
    assert proposals(text, 3) == found


def test_a_cut_proposal_is_left_out_unless_it_is_all_there_is() -> None:
    assert proposals("Proposal 1: whole\nProposal 2: ha", 3, truncated=True) == ["whole"]
    assert proposals("Proposal 1: ha", 3, truncated=True) == ["ha"]


# -- the search ----------------------------------------------------------------------------------


def states(values: list[float]) -> list[State]:
    return [State((f"t{i}",), value) for i, value in enumerate(values)]


@given(st.lists(st.floats(0, 1), max_size=20), st.integers(1, 8))
def test_a_beam_keeps_the_best_and_never_more_than_its_breadth(values: list[float], breadth: int) -> None:
    kept = survivors(states(values), breadth)
    assert len(kept) == min(breadth, len(values))
    left_out = [s for s in states(values) if s not in kept]
    assert all(k.value >= s.value for k in kept for s in left_out)
    assert [s.value for s in kept] == sorted((s.value for s in kept), reverse=True)
    for a, b in pairwise(kept):
        assert a.value > b.value or int(a.thoughts[0][1:]) < int(b.thoughts[0][1:])


def test_equal_states_count_once() -> None:
    root = State()
    assert unlike([root.then("a  b"), root.then("c"), root.then("a\nb ")]) == [
        root.then("a  b"),
        root.then("c"),
    ]


class Values:
    """A tree with given values: of the state with these thoughts, all children at once."""

    def __init__(self, width: int, values: list[float]) -> None:
        self.width, self.values = width, values

    def children(self, state: State) -> list[State]:
        names = [f"{state.thoughts[-1] if state.thoughts else ''}{i}" for i in range(self.width)]
        return [State((*state.thoughts, n), self.values[hash_of(n) % len(self.values)]) for n in names]


def hash_of(name: str) -> int:
    return sum((i + 1) * (ord(c) - 47) for i, c in enumerate(name))


@given(
    st.integers(1, 3),
    st.lists(st.floats(0, 1), min_size=1, max_size=11),
    st.integers(1, 4),
    st.floats(0, 0.7),
    st.integers(1, 40),
)
def test_depth_first_search_is_the_recursive_algorithm(
    width: int, values: list[float], levels: int, threshold: float, most: int
) -> None:
    """Against a direct transcription of algorithm 2 of the paper."""
    tree = Values(width, values)
    expected: list[State] = []

    def dfs(state: State) -> None:
        if len(state.thoughts) == levels:
            return
        expected.append(state)
        for child in sorted(tree.children(state), key=lambda s: -s.value):
            if child.value > threshold:
                dfs(child)

    dfs(State())
    order = DepthFirst(levels, threshold, most)
    expanded = []
    while (state := order.next()) is not None:
        expanded.append(state)
        order.found(tree.children(state))
    assert expanded == expected[:most]
    seen = [c for s in expanded for c in tree.children(s)]
    complete = [s for s in seen if len(s.thoughts) == levels and s.value > threshold]
    assert order.best.value == max(s.value for s in (complete or seen))


def test_depth_first_search_ends_when_it_is_sure() -> None:
    order = DepthFirst(2, 0, 100)
    assert order.next() == State()
    order.found([State(("a",), 1.0, sure=True), State(("b",), 0.05)])
    assert order.next() == State(("a",), 1.0, sure=True), "sure of a beginning is no end"
    order.found([State(("a", "c"), 1.0, sure=True)])
    assert order.next() is None
    assert order.best.thoughts == ("a", "c")


def test_a_final_answer_is_not_expanded() -> None:
    order = DepthFirst(5, 0, 100)
    order.next()
    order.found([State(("Final answer: 3",), 0.05)])
    assert order.next() is None
    assert not State(("there is no final answer: yet",)).solved
    assert not State(("Final answer: <the answer>",)).solved
    assert State(("so\n**Final Answer:** 3",)).solved


# -- what it asks of a model ---------------------------------------------------------------------


def thinker(verdicts: dict[str, str] | None = None, choice: str = "Choice: 1") -> ScriptedUpstream:
    """Thoughts are letters appended to those before; verdicts by the last thought."""

    def script(call: Seen) -> Said:
        path = "".join(re.findall(r"^thought (\w)$", call.text, re.M))
        if call.stage == "propose":
            return "\n".join(f"Proposal {i}: thought {letter}" for i, letter in enumerate("xyz", 1))
        if call.stage == "thought":
            return "thought s"
        if call.stage == "value":
            return "Verdict: " + (verdicts or {}).get(path, "maybe")
        if call.stage == "vote":
            return choice
        return f"FINAL {path}"

    return ScriptedUpstream(script, roles=ROLES)


async def search(up: ScriptedUpstream, **fields: Any) -> Any:
    async with up, serving(up) as proxy:
        named = {k if k in OPEN else f"tot_{k}": v for k, v in fields.items()}
        return await proxy.ask("tot-test-model", "Make 24 of the numbers 4 5 6 10.", **named)


OPEN = ("tools", "messages", "optillm_budget", "response_format", "n")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "calls", "depth"),
    [
        ({}, (1 + 3) + (2 + 6) + (2 + 6) + 1, 7),
        ({"steps": 1}, 1 + 3 + 1, 3),
        ({"breadth": 1, "steps": 2}, (1 + 3) * 2 + 1, 5),
        ({"breadth": 5, "steps": 2}, (1 + 3) + (3 + 9) + 1, 5),
        ({"votes": 3, "steps": 2}, (1 + 9) + (2 + 18) + 1, 5),
        ({"thoughts": 2, "steps": 2}, (1 + 2) + (2 + 4) + 1, 5),
        ({"evaluate": "vote"}, (1 + 1) + (2 + 1) + (2 + 1) + 1, 7),
        ({"evaluate": "vote", "votes": 5, "steps": 2}, (1 + 5) + (2 + 5) + 1, 5),
        ({"search": "dfs", "steps": 2}, 4 * (1 + 3) + 1, 9),
        ({"search": "dfs", "expansions": 2}, 2 * (1 + 3) + 1, 5),
    ],
)
async def test_calls_and_depth_are_those_of_the_formula(
    fields: dict[str, Any], calls: int, depth: int
) -> None:
    answer = await search(thinker(), **fields)
    assert (answer.info["calls"], answer.info["depth"]) == (calls, depth)


@pytest.mark.anyio
async def test_worst_calls_are_exact_and_known_before_the_first() -> None:
    up = thinker()
    answer = await search(up, steps=10, breadth=16, thoughts=16)
    # One state, then 16 on nine levels: a proposal each, and 16 verdicts; and the reply.
    assert (answer.status, len(up.calls)) == (400, 0)
    assert str(17 + 9 * 16 * 17 + 1) in answer.error["message"]
    up = thinker()
    answer = await search(up, search="dfs", expansions=100, steps=10, generate="sample", thoughts=4, votes=2)
    assert (answer.status, len(up.calls)) == (400, 0)
    assert str(100 * (4 + 8) + 1) in answer.error["message"]


@pytest.mark.anyio
async def test_the_most_promising_branch_wins() -> None:
    verdicts = {"y": "sure", "yz": "sure", "yzx": "sure", "x": "impossible"}
    up = thinker(verdicts)
    answer = await search(up)
    assert answer.text == "FINAL yzx"
    (final,) = up.of("sample")
    assert final.messages[0]["content"].startswith("Make 24 of the numbers 4 5 6 10.\n\n")
    assert re.search(r"<steps-([0-9a-f]{12})>\nthought y\n\nthought z\n\nthought x\n</steps-\1>", final.last)
    assert "thought x\n\nthought" not in "".join(c.text for c in up.of("propose"))


@pytest.mark.anyio
async def test_one_sure_verdict_outweighs_several_maybes() -> None:
    """20 to 1, as in the paper: a state with one sure of three before one with three maybes."""
    asked: list[str] = []

    def script(call: Seen) -> Said:
        if call.stage == "propose":
            return "Proposal 1: even\nProposal 2: mixed"
        if call.stage == "value":
            if "\neven\n" in call.text:
                return "Verdict: likely"
            asked.append("mixed")
            return "Verdict: sure" if len(asked) == 1 else "Verdict: impossible"
        return "FINAL mixed" if "\nmixed\n" in call.text else "FINAL even"

    answer = await search(ScriptedUpstream(script, roles=ROLES), steps=1, votes=3)
    assert answer.text == "FINAL mixed"


@pytest.mark.anyio
async def test_sampled_thoughts_that_are_equal_are_evaluated_once() -> None:
    up = thinker()
    answer = await search(up, generate="sample", steps=2)
    assert up.stages() == ["sample", *["thought"] * 6, "value", "value"]
    assert answer.text == "FINAL ss"
    assert all(c.body["temperature"] == 0.7 and "n" not in c.body for c in up.of("thought"))


@pytest.mark.anyio
async def test_votes_choose() -> None:
    up = thinker(choice="I compare.\nChoice: **2**")
    answer = await search(up, evaluate="vote", steps=2, breadth=1)
    assert answer.text == "FINAL yy"
    first, second = up.of("vote")
    assert re.search(r"<solution-2-([0-9a-f]{12})>\nthought y\n</solution-2-\1>", first.text)
    assert "thought y\n\nthought z" in second.text


@pytest.mark.anyio
async def test_a_solved_state_is_carried_on_and_not_expanded() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "propose":
            return "Proposal 1: done\nFinal answer: 24\nProposal 2: thought x"
        if call.stage == "value":
            return "Verdict: sure" if "Final answer: 24\n</steps" in call.text else "Verdict: maybe"
        return "FINAL 24" if "Final answer: 24" in call.text else "FINAL other"

    up = ScriptedUpstream(script, roles=ROLES)
    answer = await search(up)
    assert answer.text == "FINAL 24"
    assert all("done" not in c.text for c in up.of("propose"))
    # The first level; then the unsolved of two is expanded, and two solved ones fill the beam.
    assert up.stages() == ["propose", "propose", "sample", *["value"] * 4]


@pytest.mark.anyio
async def test_depth_first_prunes_and_comes_back() -> None:
    verdicts = {"x": "sure", "y": "maybe", "z": "impossible", "yx": "sure"}
    verdicts |= {f"x{c}": "impossible" for c in "xyz"}
    up = thinker(verdicts)
    answer = await search(up, search="dfs", steps=2)
    assert answer.text == "FINAL yx"
    seen = ["".join(re.findall(r"^thought (\w)$", c.text, re.M)) for c in up.of("propose")]
    assert seen == ["", "x", "y"], "z is never entered, and the sure end stops the search"


@pytest.mark.anyio
async def test_every_helper_sees_the_question_and_the_picture() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "What does the picture show?"}, image]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": content}]
    up = thinker()
    await search(up, messages=messages, steps=2)
    for call in up.calls:
        assert "What does the picture show?" in call.text
        assert image in call.messages[-1]["content"]
        assert [m["role"] for m in call.messages] == ["system", "user"]
        assert (call.messages[0]["content"] == "Be kind.") == (call.stage == "sample")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 11),
        ("thoughts", 17),
        ("breadth", 0),
        ("generate", "guess"),
        ("evaluate", "score"),
        ("search", "astar"),
        ("votes", 1.5),
        ("threshold", 1.1),
        ("expansions", 101),
        ("temperature", -1),
    ],
)
async def test_bad_parameters_make_no_call(name: str, value: Any) -> None:
    up = thinker()
    answer = await search(up, **{name: value})
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, f"tot_{name}", 0)


@pytest.mark.anyio
async def test_voting_contradicts_depth_first_search() -> None:
    up = thinker()
    answer = await search(up, evaluate="vote", search="dfs")
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, "tot_evaluate", 0)
    assert answer.error["code"] == "contradictory_parameters"


@pytest.mark.anyio
@pytest.mark.parametrize("said", [Fault(status=500), Reply(""), Reply(None), Reply("half", finish="length")])
@pytest.mark.parametrize("stage", ["value", "vote", "propose"])
async def test_failing_helpers_cost_their_own_part(said: Said, stage: str) -> None:
    up = thinker()
    inner = up.script
    assert callable(inner)
    up.script = lambda call: said if call.stage == stage else inner(call)
    answer = await search(up, steps=2, evaluate="vote" if stage == "vote" else "value")
    assert answer.status == 200
    assert answer.text == ("FINAL " if stage == "propose" else "FINAL xx")
    if stage == "propose" and said != Reply("half", finish="length"):
        assert len(up.calls) == 2, "nothing was generated: the question is answered directly"
        assert up.of("sample")[0].last == "Make 24 of the numbers 4 5 6 10."


@pytest.mark.anyio
async def test_a_refusal_reaches_the_client_after_one_call() -> None:
    up = ScriptedUpstream(refusal(400, "context too long"))
    answer = await search(up)
    assert (answer.status, len(up.calls)) == (400, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("silent", [Reply(""), Reply(None), Reply("<think>hm</think>")])
async def test_if_the_reply_is_empty_the_thoughts_are_the_answer(silent: Reply) -> None:
    up = thinker({"x": "sure", "xy": "sure"})
    inner = up.script
    assert callable(inner)
    up.script = lambda call: silent if call.stage == "sample" else inner(call)
    answer = await search(up, steps=2)
    assert (answer.status, answer.text) == (200, "thought x\n\nthought y")


@pytest.mark.anyio
async def test_nothing_at_all_is_an_error() -> None:
    answer = await search(ScriptedUpstream(Reply("")))
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_the_reply_has_the_tools_the_format_and_the_reason() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    up = thinker()
    inner = up.script
    assert callable(inner)
    reply = Reply(None, tool_calls=(call,), finish="tool_calls")
    up.script = lambda call: reply if "tools" in call.body else inner(call)
    answer = await search(up, steps=1, tools=[tool], response_format={"type": "json_object"})
    (choice,) = answer.json["choices"]
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("tool_calls", [call])
    assert [c.stage for c in up.calls if "tools" in c.body or "response_format" in c.body] == ["sample"]


@pytest.mark.anyio
async def test_a_cut_reply_says_so() -> None:
    up = thinker()
    inner = up.script
    assert callable(inner)
    up.script = lambda call: Reply("FIN", finish="length") if call.stage == "sample" else inner(call)
    answer = await search(up, steps=1)
    assert (answer.text, answer.json["choices"][0]["finish_reason"]) == ("FIN", "length")


@pytest.mark.anyio
@pytest.mark.parametrize("how", [{}, {"evaluate": "vote"}, {"search": "dfs"}], ids=["bfs", "vote", "dfs"])
async def test_a_budget_that_ends_anywhere_returns_the_best_so_far(how: dict[str, Any]) -> None:
    whole = (await search(thinker(), steps=2, **how)).info["calls"]
    for most in range(1, whole + 1):
        up = thinker()
        answer = await search(up, steps=2, optillm_budget={"max_calls": most}, **how)
        assert (answer.status, len(up.calls)) == (200, most)
        assert answer.info.get("cut_short") == ("max_calls" if most < whole else None)
        assert answer.text.startswith("FINAL" if most == whole else "thought ")


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_shape() -> None:
    async with thinker() as up, serving(up) as proxy:
        first, second = await asyncio.gather(
            proxy.ask("tot-test-model", "marker-a", tot_steps=1, tot_thoughts=2),
            proxy.ask("tot-test-model", "marker-b", tot_steps=2, tot_evaluate="vote"),
        )
        assert (first.info["calls"], second.info["calls"]) == (4, 6)
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (4, 6)


@pytest.mark.anyio
async def test_streaming_gives_the_same_answer() -> None:
    async with thinker() as up, serving(up) as proxy:
        whole = await proxy.ask("tot-test-model")
        events = await proxy.events("tot-test-model")
        pieces = re.findall(r'"content":"([^"]*)"', "".join(events))
        assert "".join(pieces) == whole.text == "FINAL xxx"
        assert [c.stage for c in up.calls if c.body.get("stream")] == ["sample"]
