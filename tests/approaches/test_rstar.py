"""rStar: the pure tree, and the acceptance cases of its specification."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.search.rstar import majority, rstar, stated_answer
from optillm.approaches.search.rstar_tree import (
    FOLLOWING,
    Candidate,
    Node,
    Tree,
    agreement,
    prefix_of,
    select,
    slots,
)
from optillm.core.reply import Reply as CoreReply
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, serving

pytestmark = pytest.mark.anyio

ROLES = {
    "take one next step": "A1",
    "finish solving": "A2",
    "next sub-question": "A3",
    "once more, from scratch": "A4",
    "rephrase problems": "A5",
    "solutions of others": "discriminate",
}
STEP = re.compile(r"\b(A[1-5])-(\d+)\b")
QUESTION = "There are 3 cars and 2 more."


def stated(answer: str) -> str:
    return f"The final answer is: {answer}"


SEVEN = stated("7")


def path_of(call: Seen) -> list[str]:
    """The steps that a prompt shows, as their actions."""
    return [action for action, _ in STEP.findall(call.last)]


def solver(
    answer: Said | Callable[[list[str]], Said] = SEVEN,
    complete: Said | Callable[[Seen], Said] = SEVEN,
    final: Said | Callable[[Seen], Said] | None = None,
    step: Callable[[str, Seen], Said | None] = lambda stage, call: None,
) -> ScriptedUpstream:
    """Steps say "A1-n", n being new for each; A2's ``answer`` may depend on the actions before it."""
    made: list[Seen] = []

    def script(call: Seen) -> Said:
        made.append(call)
        if call.stage in ("A1", "A3", "A4", "A5"):
            said = step(call.stage, call)
            return f"{call.stage}-{len(made)} is done. It helps." if said is None else said
        if call.stage == "A2":
            said = answer(path_of(call)) if callable(answer) else answer
            return f"A2-{len(made)}.\n{said}" if isinstance(said, str) else said
        if call.stage == "discriminate":
            return complete(call) if callable(complete) else complete
        if final is not None:
            return final(call) if callable(final) else final
        found = re.search(r"<answer-\w+>\n(.*)\n</answer-", call.last)
        return f"FINAL {found[1]}" if found else "FINAL"

    return ScriptedUpstream(script, roles=ROLES)


async def ask(up: ScriptedUpstream, question: Any = QUESTION, **fields: Any) -> Answer:
    async with up, serving(up, n_mode=fields.pop("n_mode", "auto")) as proxy:
        return await proxy.ask("rstar-test-model", question, **fields)


def by_start(**answers: str) -> Callable[[list[str]], str]:
    """The answer of a path, by its first action (``none`` for A2 at the root)."""
    return lambda path: stated(answers.get(path[0] if path else "none", "7"))


# -- the acceptance cases ------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["A1", "A3", "A5", "none"])
async def test_1_an_answer_that_nobody_else_reaches_loses(odd: str) -> None:
    # With A1 two of the five paths are odd; then one only.
    firsts: list[str] = []

    def answer(path: list[str]) -> str:
        start = path[0] if path else "none"
        firsts.append(start)
        return stated("9" if start == odd and firsts.count(odd) == 1 else "7")

    up = solver(answer)
    got = await ask(up)
    assert got.text == "FINAL 7"
    assert (got.info["calls"], got.info["depth"], len(up.calls)) == (19, 5, 19)
    assert len(up.of("discriminate")) == 5
    assert len(up.calls) <= worst(rstar)


async def test_2_agreement_needs_no_discriminator() -> None:
    up = solver()
    got = await ask(up)
    assert got.text == "FINAL 7"
    assert (got.info["calls"], got.info["depth"]) == (14, 4)
    assert up.of("discriminate") == []


async def test_3_the_discriminator_beats_the_majority() -> None:
    up = solver(by_start(A1="1", A3="2", A5="2"), complete=stated("1"))
    got = await ask(up, rstar_num_rollouts=3)
    assert got.text == "FINAL 1"
    assert got.info["calls"] == 13


@pytest.mark.parametrize("answer", ["−5", "3.14", "\\frac{1}{2}", "blue"])
async def test_4_answers_reach_the_final_prompt_unchanged(answer: str) -> None:
    up = solver(stated(answer))
    got = await ask(up, rstar_num_rollouts=1)
    assert (got.text, got.info["calls"]) == (f"FINAL {answer}", 4)
    assert f"\n{answer}\n</answer-" in up.calls[-1].last


async def test_5_without_an_answer_the_content_is_a_model_s_text() -> None:
    up = solver(lambda path: "I cannot tell, for the question\nasks nothing that could be counted.")
    got = await ask(up)
    assert got.text.startswith("A2-")
    assert "asks nothing" in got.text
    assert (got.info["calls"], up.of("discriminate"), up.of("sample")) == (13, [], [])


async def test_6_every_step_sees_its_whole_path() -> None:
    up = solver()
    await ask(up, rstar_max_depth=5, rstar_num_rollouts=30, rstar_parallel=5, seed=3)
    said = {c.stage for c in up.calls}
    assert said == {"A1", "A2", "A3", "A4", "A5", "sample"}
    texts: dict[str, list[str]] = {}
    for call in up.calls:
        steps = [f"{a}-{n}" for a, n in STEP.findall(call.last)]
        assert len(set(steps)) == len(steps)
        if call.stage == "A4":
            assert steps[-1].startswith("A3-")
        if call.stage == "A5":
            assert steps == []
        if steps and call.stage in FOLLOWING:
            # The path of the step before is the beginning of this one's.
            texts.setdefault(steps[-1], steps[:-1])
            assert texts[steps[-1]] == steps[:-1]
            assert call.stage in FOLLOWING[steps[-1][:2]]  # type: ignore[index]
    assert max(map(len, texts.values())) == 3


async def test_7_isolation() -> None:
    up = solver(by_start(A1="1", A3="2"))
    async with up, serving(up) as proxy:
        a, b = await asyncio.gather(
            proxy.ask("rstar-test-model", "marker-a", rstar_max_depth=2, rstar_num_rollouts=1),
            proxy.ask("rstar-test-model", "marker-b", rstar_num_rollouts=4),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 15)
        assert (a.info["calls"], b.info["calls"]) == (3, 15)


# -- calls and depth -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "rollouts", "calls"),
    [(3, 1, 3), (3, 4, 10), (3, 5, 13), (3, 6, 16), (2, 5, 9), (5, 6, 26)],
)
async def test_the_prototype_s_counts(depth: int, rollouts: int, calls: int) -> None:
    up = solver()
    got = await ask(up, rstar_max_depth=depth, rstar_num_rollouts=rollouts)
    assert (got.info["calls"], got.info["depth"]) == (calls + 1, depth + 1)
    assert up.stages().count("A2") == rollouts
    assert calls + 1 <= worst(rstar, max_depth=depth, num_rollouts=rollouts)


@pytest.mark.parametrize(
    ("n_mode", "calls", "depth"),
    [("native", 3 * 2 + 3 + 1, 4), ("fanout", 3 * 2 + 3 * 4 + 1, 4)],
)
async def test_votes(n_mode: str, calls: int, depth: int) -> None:
    up = solver([stated("7"), stated("7"), stated("7"), stated("8")])
    got = await ask(up, rstar_num_rollouts=3, rstar_votes=4, n_mode=n_mode)
    assert (got.text, got.info["calls"], got.info["depth"]) == ("FINAL 7", calls, depth)


async def test_the_worst_case_is_reached() -> None:
    # Three rollouts of four levels, each answer another one, three completions of each.
    up = solver(by_start(A1="1", A3="2", A5="3"), complete=stated("2"))
    got = await ask(up, rstar_num_rollouts=3, rstar_max_depth=4, rstar_masks=3)
    assert got.text == "FINAL 2"
    assert got.info["calls"] == worst(rstar, num_rollouts=3, max_depth=4, masks=3) == 3 * (3 + 1 + 3) + 1
    assert worst(rstar, num_rollouts=3, max_depth=4, votes=5, finalize=False) == 3 * (3 + 5 + 1)


@pytest.mark.parametrize(("parallel", "depth"), [(1, 4 * 3 + 1), (2, 2 * 3 + 1), (4, 3 + 1)])
async def test_waves(parallel: int, depth: int) -> None:
    # A2 at the root ends the last wave early when it is alone in it.
    got = await ask(solver(), rstar_num_rollouts=4, rstar_parallel=parallel)
    assert got.info["depth"] == (depth - 2 if parallel == 1 else depth)
    assert got.info["calls"] == 11


async def test_more_rollouts_than_places_take_a_second_wave() -> None:
    up = solver()
    got = await ask(up, rstar_max_depth=2, rstar_width=1, rstar_num_rollouts=6)
    # Four places at the root, three children with one A2 each: the search goes on where it may.
    assert got.status == 200
    assert got.info["calls"] <= 4 + 3 + 1
    assert up.stages().count("A2") == 4


@pytest.mark.parametrize("stage", ["A1", "A3"])
async def test_a_step_that_states_the_answer_ends_its_path(stage: str) -> None:
    up = solver(step=lambda s, call: f"{stage}-0 settles it.\n{SEVEN}" if s == stage else None)
    got = await ask(up, rstar_num_rollouts=2, rstar_max_depth=2)
    # Of the two paths one is a single step, the other one a step and its A2.
    assert (got.text, up.stages()) == ("FINAL 7", sorted(["A1", "A2", "A3", "sample"]))


@pytest.mark.parametrize("stage", ["A4", "A5"])
async def test_other_steps_do_not_end_it(stage: str) -> None:
    up = solver(step=lambda s, call: f"{stage}-0 settles it.\n{stated('8')}" if s == stage else None)
    got = await ask(up, rstar_max_depth=3, rstar_num_rollouts=30, rstar_parallel=3)
    assert got.text == "FINAL 7"
    assert any(path_of(c)[-1:] == [stage] for c in up.of("A2"))


async def test_too_many_calls_are_refused_before_the_first() -> None:
    up = solver()
    async with up, serving(up, max_upstream_calls=20) as proxy:
        got = await proxy.ask("rstar-test-model")
        assert (got.status, got.error["code"], up.calls) == (400, "too_many_calls", [])


# -- prompts ---------------------------------------------------------------------------------------


async def test_conversation_images_and_options() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": pictured("Q")},
    ]
    up = solver(by_start(A1="1", A3="2"))
    await ask(up, messages=messages, stop=["END"], max_tokens=77, temperature=0.1)
    assert [images(c.messages) for c in up.calls] == [1] * 19
    (final,) = up.of("sample")
    assert all(("stop" in c.body) == (c is final) for c in up.calls)
    assert {c.body["max_tokens"] for c in up.calls} == {4096, 77}
    assert {c.body["temperature"] for c in up.calls} == {0.8, 0.1}
    assert final.messages[0] == messages[0]
    assert final.messages[1]["content"][:2] == messages[1]["content"]
    assert all("Be brief." in c.last for c in up.calls if c is not final)
    assert all(stated("<short answer>") in c.last for c in up.calls if c.stage in ("A1", "A2", "A3"))


async def test_steps_are_quoted_and_a_rephrased_question_is_no_step() -> None:
    up = solver(by_start(A5="5"), complete=stated("5"))
    await ask(up)
    (after,) = [c for c in up.calls if path_of(c)[:1] == ["A5"] and len(path_of(c)) == 2 and c.stage == "A2"]
    nonce = after.last.split("<conversation-")[1].split(">")[0]
    assert re.search(rf"<rephrased-{nonce}>\nA5-\d+ is done\. It helps\.\n</rephrased-{nonce}>", after.last)
    assert re.search(
        rf"<steps-{nonce}>\nStep 1\. A[13]-\d+ is done\. It helps\.\n</steps-{nonce}>", after.last
    )
    # The winning path, written up, begins after the rephrasing.
    assert "A5-" not in up.of("sample")[0].last


async def test_the_discriminator_sees_a_beginning_only() -> None:
    up = solver(by_start(A1="1", A3="2"), complete=stated("1"))
    await ask(up, rstar_masks=3, rstar_discriminator_model="other")
    asked = up.of("discriminate")
    assert len(asked) == 15
    assert {c.body["model"] for c in asked} == {"other"}
    assert {c.body["model"] for c in up.calls if c.stage != "discriminate"} == {"test-model"}
    for call in asked:
        # Never the last step of a path, which holds its answer; of A2 alone not its last sentence.
        shown = call.last.split("<conversation-")[1]
        assert "The final answer is: 1" not in shown
        assert "The final answer is: 2" not in shown


async def test_a_seed_decides_the_search() -> None:
    async def actions(seed: int) -> Counter[str]:
        up = solver()
        await ask(up, seed=seed, rstar_max_depth=6, rstar_num_rollouts=6)
        return Counter(" ".join([*path_of(c), c.stage]) for c in up.calls if c.stage != "sample")

    assert await actions(1) == await actions(1)
    assert await actions(1) != await actions(2)


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [Reply(""), Reply("<think>hm"), Fault(status=503)])
async def test_a_lost_step_ends_its_path(lost: Said) -> None:
    up = solver(step=lambda stage, call: lost if stage == "A3" else None, answer=by_start(none="8"))
    got = await ask(up, rstar_num_rollouts=4, rstar_max_depth=2)
    # A1 A2, A3, A5 A2, A2: five calls less one, three completions and the final reply.
    assert (got.text, got.info["calls"]) == ("FINAL 7", 6 + 3 + 1)


async def test_a_refusal_reaches_the_client() -> None:
    no = refusal(401, "no")
    for up in (
        solver(step=lambda stage, call: no if stage == "A3" else None),
        solver(no),
        solver(by_start(A1="1"), complete=no),
        solver(final=no),
    ):
        got = await ask(up)
        assert got.status == 401


async def test_when_every_step_fails_it_is_the_upstream_s_error() -> None:
    got = await ask(solver(Fault(status=500), step=lambda stage, call: Fault(status=500)))
    assert (got.status, got.error["code"] == "upstream_empty") == (502, False)
    got = await ask(solver(Reply(""), step=lambda stage, call: Reply("")))
    assert (got.status, got.error["code"]) == (502, "upstream_empty")


@pytest.mark.parametrize(
    "lost", [Reply(""), Reply("no idea what to say about this one, sorry"), Fault(status=500)]
)
async def test_a_lost_completion_confirms_nothing(lost: Said) -> None:
    up = solver(by_start(A1="1", A3="2", A5="2"), complete=lost)
    got = await ask(up, rstar_num_rollouts=3)
    # No path is confirmed: all of them vote. Rewards 1, 1/2 and 2/3.
    assert (got.text, got.info["calls"]) == ("FINAL 2", 13)


@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
async def test_a_lost_final_reply_is_replaced_by_the_path(lost: Said) -> None:
    got = await ask(solver(final=lost), rstar_num_rollouts=1)
    assert re.fullmatch(r"A1-1 is done\. It helps\.\n\nA\d-2 .*\n\nA2-3\.\nThe final answer is: 7", got.text)


async def test_a_truncated_end_states_no_answer() -> None:
    up = solver(lambda path: Reply(stated("12"), finish="length") if path[:1] == ["A1"] else stated("7"))
    got = await ask(up)
    assert got.text == "FINAL 7"
    up = solver(Reply("x\n" + stated("12"), finish="length"))
    got = await ask(up)
    assert got.text == "x\n" + stated("12")
    assert got.json["choices"][0]["finish_reason"] == "length"
    got = await ask(solver(final=Reply("FIN", finish="length")))
    assert (got.text, got.json["choices"][0]["finish_reason"]) == ("FIN", "length")


async def test_a_tool_call_is_handed_on() -> None:
    up = solver(final=calls_a_tool())
    got = await ask(up, tools=[tool()])
    assert got.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
    assert all(("tools" in c.body) == (c.stage == "sample") for c in up.calls)


@pytest.mark.parametrize("finalize", [True, False])
@pytest.mark.parametrize("calls", range(1, 20))
async def test_a_budget_leaves_something_useful(calls: int, finalize: bool) -> None:
    up = solver(by_start(A1="1", A3="2"))
    got = await ask(up, rstar_finalize=finalize, optillm_budget={"max_calls": calls})
    assert got.status == 200
    assert len(up.calls) <= calls
    assert got.text.startswith("FINAL" if finalize else "A")
    assert bool(got.info.get("cut_short")) == (calls < 18 + finalize)
    if finalize:
        # The last call is always kept for the reply.
        assert up.calls[-1].stage == "sample"
        assert ("<steps-" in up.calls[-1].last) == (calls > 1)


async def test_a_budget_of_tokens_leaves_the_path() -> None:
    up = solver(Reply(stated("7"), usage={"completion_tokens": 10**6}))
    got = await ask(up, rstar_num_rollouts=1, optillm_budget={"max_tokens": 5 * 10**5})
    assert got.text.endswith(stated("7"))
    assert (got.info["cut_short"], up.of("sample")) == ("max_tokens", [])


# -- the reply -------------------------------------------------------------------------------------


async def test_without_finalize_the_path_is_the_reply() -> None:
    up = solver()
    got = await ask(up, rstar_num_rollouts=1, rstar_finalize=False)
    assert got.info["calls"] == 3
    assert got.text.endswith(stated("7"))
    assert got.text.count("\n\n") == 2


async def test_the_full_response_shows_the_path() -> None:
    got = await ask(solver(), rstar_num_rollouts=1, return_full_response=True)
    assert got.text.startswith("Step 1. A1-1 is done.")
    assert got.text.endswith("\n\nFINAL 7")


async def test_streaming_gives_the_same_answer() -> None:
    async with solver() as up, serving(up) as proxy:
        assert streamed(await proxy.events("rstar-test-model")) == "FINAL 7"
        assert [c.body.get("stream", False) for c in up.calls] == [False] * 13 + [True]


async def test_n_answers_are_n_searches() -> None:
    got = await ask(solver(), n=2)
    assert (got.texts, got.info["calls"], got.info["depth"]) == (["FINAL 7"] * 2, 28, 4)


async def test_the_trace_shows_why() -> None:
    async with solver(by_start(A1="1", A3="2", A5="2"), complete=stated("1")) as up, serving(up) as proxy:
        got = await proxy.ask("rstar-test-model", rstar_num_rollouts=3)
        run = (await proxy.get(f"/v1/runs/{got.info['run_id']}")).json
        notes = {r["name"]: r["data"] for r in run["records"] if r["kind"] == "note"}
        tree = notes["rstar.tree"]["nodes"]
        assert [n["path"] for n in tree] == ["0", "0.0", "0.0.0", "1", "1.0", "1.0.0", "2", "2.0", "2.0.0"]
        assert [n["mean"] for n in tree if n["path"].count(".") == 2] == [1, 0.5, pytest.approx(2 / 3)]
        choice = notes["rstar.choice"]
        assert [c["consistent"] for c in choice["candidates"]] == [True, False, False]
        assert choice["votes"] == [{"answer": "1", "reward": 1.0, "paths": 1}]
        assert json.dumps(choice["answer"]) == '"1"'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rstar_max_depth": 1}, "rstar_max_depth"),
        ({"rstar_max_depth": 11}, "rstar_max_depth"),
        ({"rstar_num_rollouts": 0}, "rstar_num_rollouts"),
        ({"rstar_num_rollouts": 65}, "rstar_num_rollouts"),
        ({"rstar_c": -1}, "rstar_c"),
        ({"rstar_width": 6}, "rstar_width"),
        ({"rstar_votes": 33}, "rstar_votes"),
        ({"rstar_masks": 9}, "rstar_masks"),
        ({"rstar_mask_range": [0.5]}, "rstar_mask_range"),
        ({"rstar_mask_range": [0.2, 0.5, 0.8]}, "rstar_mask_range"),
        ({"rstar_mask_range": [0.8, 0.2]}, "rstar_mask_range"),
        ({"rstar_mask_range": [0.1, 1.2]}, "rstar_mask_range"),
        ({"rstar_parallel": 0}, "rstar_parallel"),
        ({"rstar_temperature": 3}, "rstar_temperature"),
        ({"rstar_finalize": "yes"}, "rstar_finalize"),
    ],
)
async def test_bad_parameters_make_no_call(fields: dict[str, Any], param: str) -> None:
    up = solver()
    got = await ask(up, **fields)
    assert (got.status, got.error["param"], up.calls) == (400, param, [])


# -- the pure parts --------------------------------------------------------------------------------


def test_slots() -> None:
    assert slots(None, 0, 3, 2) == ["A1", "A3", "A5", "A2", "A1", "A3"]
    assert slots(None, 0, 3, 1) == ["A1", "A3", "A5", "A2"]
    assert slots("A3", 1, 3, 2) == ["A1", "A3", "A4", "A2", "A1", "A3"]
    assert slots("A1", 1, 4, 3) == ["A1", "A2", "A1", "A1"]
    assert slots("A5", 1, 4, 2) == slots("A4", 1, 4, 2) == ["A1", "A3", "A2", "A1", "A3"]
    assert slots("A3", 2, 3, 2) == ["A2"]
    assert slots("A2", 1, 3, 2) == slots("A2", 2, 3, 2) == []


@given(
    depth=st.integers(2, 6),
    width=st.integers(1, 4),
    c=st.floats(0, 5),
    sizes=st.lists(st.integers(1, 9), max_size=12),
    seed=st.integers(0, 2**32),
)
def test_the_tree(depth: int, width: int, c: float, sizes: list[int], seed: int) -> None:
    tree, rng = Tree(depth, width, c), random.Random(seed)
    rollouts, rewards = 0, 0.0
    for size in sizes:
        starts = tree.wave(size)
        # Something can always be done, and nothing twice at once.
        assert 1 <= len(starts) <= size
        fresh = [s for s in starts if s.pending]
        assert len({id(s) for s in fresh}) == len(fresh)
        assert all(n.virtual == 0 for n in (tree.root, *tree.nodes()))
        leaves = []
        for node in starts:
            while not node.terminal:
                node.text = "x"
                if node.action == "A2" or (node.action in ("A1", "A3") and rng.random() < 0.2):
                    node.terminal, node.free = True, []
                    node.reward = rng.random()
                following = tree.follow(node, rng)
                if following is None:
                    break
                node = following
            leaves.append(node)
        for leaf in leaves:
            assert leaf.terminal
            tree.backpropagate(leaf, leaf.reward)
            rollouts, rewards = rollouts + 1, rewards + leaf.reward
    assert tree.root.visits == rollouts
    assert tree.root.value == pytest.approx(rewards)
    for node in tree.nodes():
        parent = node.parent
        assert parent is not None
        assert node.action in FOLLOWING[parent.action]
        assert node.level == parent.level + 1 == len(node.path) <= depth
        assert not node.pending
        assert node.visits >= sum(child.visits for child in node.children)
        assert (node.level == depth) <= (node.action == "A2")
        counts = Counter(child.action for child in node.children)
        assert all(n <= (width if a in ("A1", "A3") else 1) for a, n in counts.items())
        # All rollouts pass through to a leaf.
        ended = 0 if node.children else node.visits
        assert node.visits == ended + sum(child.visits for child in node.children)
    # Of the root's places none is skipped.
    taken = [child.action for child in tree.root.children]
    assert taken == slots(None, 0, depth, width)[: len(taken)]


def test_uct_goes_where_the_reward_is() -> None:
    tree = Tree(3, 1, 0.0)
    for start, reward in zip(tree.wave(4), (0.1, 0.9, 0.2, 0.3), strict=True):
        start.terminal, start.free, start.reward = True, [], reward
        tree.backpropagate(start, reward)
    best = tree.root.children[1]
    # Nothing is free: the best terminal is visited again, without a new node.
    (again,) = tree.wave(1)
    assert again is best
    assert not again.pending
    tree = Tree(3, 1, 10.0)
    first, *others = tree.wave(4)
    for start in (first, *others):
        start.terminal, start.free = True, []
        tree.backpropagate(start, 0.5)
    # Virtual visits send a wave to different children.
    assert len({id(s) for s in tree.wave(4)}) == 4


def test_what_is_pending_is_left_for_the_next_wave() -> None:
    tree = Tree(3, 2, 1.0)
    starts = tree.wave(10)
    assert [s.action for s in starts] == ["A1", "A3", "A5", "A2", "A1", "A3"]
    assert tree.wave(1) == []


def test_answers_of_steps() -> None:
    assert stated_answer("So 5.\nThe final answer is: 5", last=False) == "5"
    assert stated_answer("The final answer is: <short answer>", last=False) is None
    assert stated_answer("The answer of the sub-question is 5.", last=False) is None
    assert stated_answer("Add them: 5", last=False) is None
    assert stated_answer("so \\boxed{5}", last=True) == "5"
    assert stated_answer("3 cars and 2 more make some.\nMany of them.", last=True) is None

    def replies(*texts: str) -> list[CoreReply]:
        return [CoreReply.of(t) for t in texts]

    kept, answer, share = majority(replies("x\nnone", stated("1"), stated("2"), stated("2.0")), 5)
    assert (kept.text, answer, share) == (stated("2"), "2", 0.4)
    assert majority(replies("x\nnone"), 1)[1:] == (None, 0.0)
    assert majority([CoreReply.of(stated("1"), "length")], 1)[1:] == (None, 0.0)


def test_agreement_is_a_share_of_all_paths() -> None:
    nodes = [Node("A2", None, [], answer=a) for a in ("7", "7.0", None, "9")]
    assert agreement("7", nodes) == 0.5
    assert agreement(None, nodes) == agreement("7", []) == 0.0


@given(st.lists(st.sampled_from(["a.", "b. c.", "d. e. f"]), min_size=1, max_size=9), st.floats(0, 1))
def test_a_prefix_leaves_something_out(steps: list[str], share: float) -> None:
    shown = prefix_of(steps, share)
    if len(steps) > 1:
        assert shown == steps[: len(shown)]
        assert 1 <= len(shown) < len(steps)
        assert abs(len(shown) - share * len(steps)) <= 1
    else:
        assert len(" ".join(shown)) < len(steps[0])
        assert steps[0].startswith(" ".join(shown))


def test_a_single_step_is_cut_between_sentences() -> None:
    step = "First this. Then that!\nSo there. The final answer is: 3"
    assert prefix_of([step], 0.5) == ["First this. Then that!"]
    assert prefix_of([step], 1.0) == ["First this. Then that! So there."]
    assert prefix_of(["All in one"], 0.9) == []
    assert prefix_of([], 0.5) == []


def test_the_choice() -> None:
    def candidate(rollout: int, answer: str, reward: float, consistent: bool, mean: float = 0.5) -> Candidate:
        node = Node("A2", None, [], answer=answer, reward=reward, visits=1, value=mean)
        return Candidate(node, rollout, consistent)

    a, b, c = candidate(0, "1", 1.0, False), candidate(1, "2", 0.5, True), candidate(2, "3", 0.4, True)
    assert select([a, b, c])[0] is b
    # More reward in sum, then more paths, then the first; of its paths the best mean.
    d, e = candidate(3, "3.0", 0.2, True, mean=0.9), candidate(4, "2", 0.1, True)
    assert select([a, b, c, d])[0] is d
    assert select([a, b, candidate(2, "3", 0.25, True), candidate(3, "3", 0.25, True)])[0].rollout == 2
    assert select([a, b, candidate(2, "3", 0.5, True)])[0] is b
    assert select([a, candidate(1, "2", 0.5, False)])[0] is a
    assert select([b, e, c])[1][0] == {"answer": "2", "reward": 0.6, "paths": 2}
