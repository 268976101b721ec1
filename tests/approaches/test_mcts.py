"""Monte Carlo tree search: the pure tree, and the acceptance cases of its specification."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.search.mcts import Node, Tree
from optillm.core.reply import Reply as CoreReply
from optillm.core.task import user
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen
from tests.serving import serving

SCORES = {"R0": 0.2, "R1": 0.6, "R2": 0.9}


def dialogue(
    evaluation: str | None = None, samples: Said = ("R0", "R1", "R2"), next_user: str = "more?"
) -> ScriptedUpstream:
    """The dialogue of the acceptance cases: scores by the root's child."""

    def script(call: Seen) -> Said:
        if call.stage == "user":
            return next_user
        if call.stage == "eval":
            if evaluation is not None:
                return evaluation
            return next(f"Score: {s}" for r, s in SCORES.items() if f"\n{r}\n" in call.text)
        if any(m["role"] == "assistant" for m in call.messages):
            return "ok"
        return samples

    return ScriptedUpstream(script)


async def search(up: ScriptedUpstream, **fields: Any) -> Any:
    question = fields.pop("question", "How do I boil an egg?")
    async with up, serving(up, n_mode=fields.pop("n_mode", "auto")) as proxy:
        return await proxy.ask("mcts-test-model", question, **fields)


@pytest.mark.anyio
async def test_two_simulations() -> None:
    up = dialogue()
    answer = await search(up)
    assert answer.text == "R1"
    assert (answer.info["calls"], answer.info["depth"]) == (7, 4)
    assert up.stages() == ["eval", "eval", "sample", "sample", "sample", "user", "user"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("s", "calls", "depth"),
    [(1, 4, 4), (2, 7, 4), (3, 10, 4), (4, 15, 9), (5, 20, 9), (6, 25, 9), (8, 31, 14)],
)
async def test_calls_by_simulations(s: int, calls: int, depth: int) -> None:
    answer = await search(dialogue(), mcts_simulations=s)
    assert answer.info["calls"] == calls
    assert answer.info["depth"] <= depth
    if s >= 3:
        assert answer.text == "R2"


@pytest.mark.anyio
async def test_helpers_see_the_question_and_roles_alternate() -> None:
    up = dialogue()
    await search(up, mcts_simulations=5, question="How do I boil an ostrich egg?")
    for call in up.calls:
        roles = [m["role"] for m in call.messages]
        assert "ostrich" in call.text
        assert all(a != b for a, b in pairwise(roles)), roles
        assert "system" not in roles[1:]


@pytest.mark.anyio
async def test_goodbye_in_the_question_ends_nothing() -> None:
    answer = await search(dialogue(), question="how do I say goodbye in French")
    assert (answer.status, answer.info["calls"]) == (200, 7)


@pytest.mark.anyio
async def test_unreadable_evaluations_count_half() -> None:
    answer = await search(dialogue(evaluation="great"))
    assert (answer.text, answer.info["calls"]) == ("R0", 7)


@pytest.mark.anyio
async def test_failed_evaluations_lose_nothing() -> None:
    up = dialogue()
    inner = up.script
    assert callable(inner)
    up.script = lambda call: Fault(status=500) if call.stage == "eval" else inner(call)
    assert (await search(up)).text == "R0"


@pytest.mark.anyio
async def test_upstream_that_ignores_n() -> None:
    up = dialogue(samples="R0")
    up.n_mode = "ignore"
    inner = up.script
    assert callable(inner)

    def script(call: Seen) -> Said:
        said = inner(call)
        return f"R{call.body['seed']}" if said == "R0" and call.stage == "sample" else said  # type: ignore[return-value]

    up.script = script
    answer = await search(up, seed=0)
    assert (answer.text, answer.info["calls"]) == ("R1", 9)


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_shape() -> None:
    async with dialogue() as up, serving(up) as proxy:
        await asyncio.gather(
            proxy.ask("mcts-test-model", "marker-a", mcts_simulations=1, mcts_depth=0),
            proxy.ask("mcts-test-model", "marker-b", mcts_simulations=3, mcts_depth=2),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (2, 16)


@pytest.mark.anyio
@pytest.mark.parametrize("bad", ["two", 0, 10**9, True, 1.5, None])
async def test_bad_simulations_make_no_call(bad: Any) -> None:
    up = dialogue()
    answer = await search(up, mcts_simulations=bad)
    assert answer.status == 400
    assert answer.error["param"] == "mcts_simulations"
    assert "1 to 64" in answer.error["message"]
    assert up.calls == []


@pytest.mark.anyio
async def test_a_satisfied_user_ends_the_rollout() -> None:
    answer = await search(dialogue(next_user="<END>"))
    # One sample, and for each simulation the user's end and the evaluation.
    assert (answer.text, answer.info["calls"]) == ("R1", 5)


@pytest.mark.anyio
async def test_one_usable_sample_is_the_answer() -> None:
    answer = await search(dialogue(samples=["R0", Reply(""), Reply(None)]))
    assert (answer.text, answer.info["calls"]) == ("R0", 1)


@pytest.mark.anyio
async def test_no_usable_sample_is_an_error() -> None:
    answer = await search(dialogue(samples=Reply(None)))
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_a_budget_returns_the_best_so_far() -> None:
    answer = await search(dialogue(), mcts_simulations=3, mcts_parallel=1, optillm_budget={"max_calls": 8})
    assert answer.status == 200
    assert answer.info["cut_short"] == "max_calls"
    assert answer.info["calls"] == 8
    assert answer.text == "R1"


def grown(values: list[float], width: int, wave: int, depth: int) -> Tree:
    """A tree after rollouts with these values, in waves."""
    tree = Tree(0.5, depth)
    tree.expand(tree.root, (user("q"),), [CoreReply.of(f"r{i}") for i in range(width)])
    left = list(values)
    while left:
        leaves = tree.wave(min(wave, len(left)))
        assert leaves
        assert len({leaf.path for leaf in leaves}) == len(leaves)
        for leaf in leaves:
            node = leaf
            if tree.expandable(leaf):
                tree.expand(leaf, leaf.messages, [CoreReply.of(f"c{i}") for i in range(width)])
                node = leaf.children[0]
            tree.backpropagate(node, left.pop())
    return tree


def every(node: Node) -> list[Node]:
    return [node, *(n for c in node.children for n in every(c))]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=24),
    st.integers(2, 4),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_tree_keeps_its_books(values: list[float], width: int, wave: int, depth: int) -> None:
    tree = grown(values, width, wave, depth)
    assert tree.root.visits == len(values)
    assert tree.root.value == pytest.approx(sum(values))
    for node in every(tree.root):
        assert node.virtual == 0
        assert node.level <= depth
        if node.children and node is not tree.root:
            assert node.visits == 1 + sum(c.visits for c in node.children)
    assert sum(c.visits for c in tree.root.children) == len(values)
    assert tree.best().visits == max(c.visits for c in tree.root.children)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=16))
def test_the_same_values_give_the_same_tree(values: list[float]) -> None:
    assert grown(values, 3, 3, 3).to_dict() == grown(values, 3, 3, 3).to_dict()


@given(st.integers(2, 6), st.integers(1, 10))
def test_every_child_is_tried_before_any_is_tried_again(width: int, wave: int) -> None:
    tree = grown([0.9] + [0.1] * (width - 1), width, wave, 3)
    assert [c.visits for c in tree.root.children] == [1] * width
