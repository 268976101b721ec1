"""Adaptive branching tree search: beliefs and tree as such, and what it asks of a model."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optillm.approaches.search.ab_mcts import PRIORS, Beta, Gaussian, Node, Tree
from optillm.core.reply import Reply as CoreReply
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

ANSWER = CoreReply.of("an answer")
SCORES = st.lists(st.none() | st.floats(0, 1), max_size=40)


# -- beliefs -------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_gaussian_belief_is_the_textbook_posterior(scores: list[float]) -> None:
    belief = Gaussian()
    for score in scores:
        belief = belief.seeing(score)
    n, mean = len(scores), sum(scores) / len(scores)
    around = sum((s - mean) ** 2 for s in scores)
    assert (belief.kappa, belief.nu) == (1 + n, 1 + n)
    assert belief.mean == pytest.approx(n * mean / (n + 1), abs=1e-9)
    assert belief.spread == pytest.approx(0.1 + around + n / (n + 1) * mean**2, abs=1e-9)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_a_beta_belief_counts_successes_and_failures(scores: list[float]) -> None:
    belief = Beta()
    for score in scores:
        belief = belief.seeing(score)
    assert belief.a == pytest.approx(0.5 + sum(scores))
    assert belief.a + belief.b == pytest.approx(1 + len(scores))


def test_draws_are_distributed_as_believed() -> None:
    """Means and variances of the marginals: Student's t with ν degrees for the Gaussian, Beta(a, b)."""
    gaussian, beta = Gaussian(0.6, 4, 9, 0.9), Beta(3, 2)
    rng = Random(1)
    draws = [gaussian.draw(rng) for _ in range(40_000)]
    mean = sum(draws) / len(draws)
    assert mean == pytest.approx(0.6, abs=0.005)
    variance = sum((d - mean) ** 2 for d in draws) / len(draws)
    assert variance == pytest.approx(0.9 / 4 / (9 - 2), rel=0.05)
    shares = [beta.draw(rng) for _ in range(40_000)]
    assert sum(shares) / len(shares) == pytest.approx(0.6, abs=0.005)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_draws_are_finite_whatever_the_generator_says(prior: type[Gaussian | Beta]) -> None:
    class Low(Random):
        def random(self) -> float:
            return 0.5**53

    assert math.isfinite(prior().draw(Low(0)))


# -- the tree ------------------------------------------------------------------------------------


def grown(prior: str, scores: list[float | None], wave: int, seed: int) -> Tree:
    tree = Tree(PRIORS[prior](), ("a", "b"), Random(seed))
    left = list(scores)
    while left:
        trials = [tree.ask() for _ in range(min(wave, len(left)))]
        for trial in trials:
            tree.tell(trial, ANSWER, left.pop(0))
    return tree


def below(node: Node) -> list[Node]:
    return [n for child in node.children for n in (child, *below(child))]


def rated(nodes: list[Node]) -> list[float]:
    return [node.score for node in nodes if node.score is not None]


@given(st.sampled_from(sorted(PRIORS)), SCORES, st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=60)
def test_every_score_is_counted_where_it_belongs_and_nowhere_else(
    prior: str, scores: list[float | None], wave: int, seed: int
) -> None:
    """GEN knows its children, CONT what is below them, an arm itself and everything below it."""
    tree = grown(prior, scores, wave, seed)
    assert [node.score for node in tree.nodes] == scores
    assert {id(n) for n in tree.nodes} == {id(n) for n in below(tree.root)}
    assert tree.root.arm == PRIORS[prior]()
    for node in (tree.root, *tree.nodes):
        children = rated(node.children)
        deeper = [s for child in node.children for s in rated(below(child))]
        assert weight(node.gen) == pytest.approx(len(children))
        assert weight(node.cont) == pytest.approx(len(deeper))
        if node is not tree.root:
            assert weight(node.arm) == pytest.approx(len(rated([node])) + len(children) + len(deeper))
        assert [child.path for child in node.children] == [(*node.path, i) for i in range(len(node.children))]
    for model in ("a", "b"):
        assert weight(tree.models[model]) == pytest.approx(
            len(rated([n for n in tree.nodes if n.model == model]))
        )


def weight(belief: Gaussian | Beta) -> float:
    """How many scores a belief has seen."""
    return belief.a + belief.b - 1 if isinstance(belief, Beta) else belief.kappa - 1


@given(SCORES, st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=30)
def test_the_same_scores_and_seed_grow_the_same_tree(
    scores: list[float | None], wave: int, seed: int
) -> None:
    assert grown("beta", scores, wave, seed).to_list() == grown("beta", scores, wave, seed).to_list()


def test_good_improvements_send_the_search_deeper_and_bad_ones_wider() -> None:
    def depth_of_choices(fresh: float, improved: float) -> float:
        tree = Tree(PRIORS["gaussian"](), (None,), Random(3))
        chosen = []
        for _ in range(60):
            trial = tree.ask()
            chosen.append(len(trial.node.path) > 0)
            tree.tell(trial, ANSWER, improved if trial.node is not tree.root else fresh)
        return sum(chosen[20:]) / 40

    assert depth_of_choices(0.3, 0.9) > 0.7
    assert depth_of_choices(0.9, 0.3) < 0.3


def test_the_better_model_is_asked_more_often() -> None:
    tree = Tree(PRIORS["beta"](), ("good", "bad"), Random(5))
    for _ in range(60):
        trial = tree.ask()
        tree.tell(trial, ANSWER, 0.9 if trial.model == "good" else 0.2)
    asked = Counter(node.model for node in tree.nodes)
    assert asked["good"] > 3 * asked["bad"] > 0


def test_a_complete_answer_beats_a_cut_one_and_a_rated_one_an_unrated_one() -> None:
    tree = Tree(PRIORS["beta"](), (None,), Random(0))
    root = tree.ask()
    cut = tree.tell(root, CoreReply.of("cut", "length"), 1.0)
    assert tree.best() is cut
    unrated = tree.tell(root, ANSWER, None)
    assert tree.best() is unrated
    low = tree.tell(root, ANSWER, 0.0)
    assert tree.best() is low
    tree.tell(root, ANSWER, 0.0)
    assert tree.best() is low, "of equals the earlier"


# -- what it asks of a model ---------------------------------------------------------------------


def improving(said: Said | None = None) -> ScriptedUpstream:
    """Answers are numbered by their seed; an answer that improves another names it and is better."""

    def script(call: Seen) -> Said:
        if call.stage == "rate":
            shown = re.search(r"\ntry (\S+)\n", call.text)
            return f"Score: {min(10, 3 + 2 * shown[1].count('<'))}" if shown else "none"
        if call.stage in ("list", "mark"):
            return "1. Is it right?" if call.stage == "list" else "1: yes"
        if said is not None:
            return said
        earlier = re.search(r"\ntry (\S+)\n", call.text)
        return f"try {call.body['seed']}" + (f"<{earlier[1]}" if earlier else "")

    return ScriptedUpstream(script, roles={"write checklists": "list", "mark replies": "mark"})


async def search(up: ScriptedUpstream, **fields: Any) -> Any:
    fields = {"seed": 100, **fields}
    async with up, serving(up) as proxy:
        answer = await proxy.ask("ab_mcts-test-model", "How do I boil an ostrich egg?", **fields)
        if answer.status == 200:
            run = await proxy.get(f"/v1/runs/{answer.info['run_id']}", Authorization="Bearer upstream-key")
            answer.json["run"] = run.json
        return answer


def chosen(answer: Any) -> list[dict[str, Any]]:
    notes = [r["data"] for r in answer.json["run"]["records"] if r.get("name") == "ab_mcts.tree"]
    return [choice for note in notes for choice in note["chosen"]]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "calls", "depth"),
    [
        ({}, 16, 8),
        ({"ab_mcts_simulations": 1}, 2, 2),
        ({"ab_mcts_simulations": 5, "ab_mcts_parallel": 3}, 10, 4),
        ({"ab_mcts_simulations": 4, "ab_mcts_parallel": 1}, 8, 8),
        ({"ab_mcts_simulations": 4, "ab_mcts_parallel": 16}, 8, 2),
        ({"ab_mcts_simulations": 3, "ab_mcts_judge_samples": 3}, 12, 4),
        ({"ab_mcts_simulations": 3, "ab_mcts_judge": "checklist"}, 3 + 2 + 3, 6),
        ({"ab_mcts_simulations": 3, "ab_mcts_judge": "exact", "ab_mcts_judge_reference": "try 101"}, 3, 2),
    ],
)
async def test_calls_and_depth(fields: dict[str, Any], calls: int, depth: int) -> None:
    up = improving()
    answer = await search(up, **fields)
    assert (answer.info["calls"], answer.info["depth"]) == (calls, depth)
    over = await search(improving(), **fields, seed=100)
    assert over.text == answer.text, "the same seed, the same search"


@pytest.mark.anyio
@pytest.mark.parametrize("native", ["native", "ignore", "reject"])
async def test_it_never_needs_n(native: str) -> None:
    up = improving()
    up.n_mode = native
    assert (await search(up)).info["calls"] == 16
    assert all("n" not in call.body for call in up.calls)


@pytest.mark.anyio
async def test_the_best_answer_wins_and_was_improved_on_the_way() -> None:
    up = improving()
    answer = await search(up, ab_mcts_simulations=16, ab_mcts_prior="beta", ab_mcts_parallel=1)
    tries = [c for c in up.calls if c.stage == "sample"]
    assert sorted(c.body["seed"] for c in tries) == list(range(100, 116)), "no two answers alike"
    deepest = max(chosen(answer), key=lambda c: len(c["at"]))["at"].count(".") + 2
    assert deepest >= 3
    assert answer.text.count("<") == min(4, deepest - 1)
    assert (answer.json["choices"][0]["finish_reason"]) == "stop"


@pytest.mark.anyio
async def test_an_improvement_sees_question_answer_and_score_between_marks() -> None:
    up = improving()
    answer = await search(up, ab_mcts_simulations=12)
    assert any(c["at"] for c in chosen(answer))
    for call in up.calls:
        assert "ostrich" in call.text
    for call in up.of("sample"):
        earlier = re.search(r"<answer-([0-9a-f]{12})>\n(try \S+)\n</answer-\1>", call.text)
        assert (earlier is None) == (call.last == "How do I boil an ostrich egg?")
        if earlier:
            points = 3 + 2 * earlier[2].count("<")
            assert f"A judge gave it {min(points, 10)}.0 points of 10." in call.last
            assert call.body["temperature"] == 1


@pytest.mark.anyio
async def test_models_are_arms() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 9" if "\nbright\n" in call.text else "Score: 1"
        return "bright" if call.body["model"] == "good-model" else "dull"

    up = ScriptedUpstream(script)
    answer = await search(up, ab_mcts_models=["good-model", "bad-model"], ab_mcts_simulations=24)
    assert answer.text == "bright"
    asked = Counter(c.body["model"] for c in up.of("sample"))
    assert asked["good-model"] > 2 * asked["bad-model"] > 0
    assert {c.body["model"] for c in up.of("rate")} == {"test-model"}


@pytest.mark.anyio
async def test_images_and_history_stay_as_they_are() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}
    up = improving()
    messages = [{"role": "system", "content": "Be kind."}, asked]
    await search(up, messages=messages, ab_mcts_simulations=12)
    for call in up.of("sample"):
        assert call.messages[0] == messages[0]
        assert call.messages[1]["content"][:2] == asked["content"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ab_mcts_simulations", 0),
        ("ab_mcts_simulations", 129),
        ("ab_mcts_simulations", "8"),
        ("ab_mcts_parallel", 0),
        ("ab_mcts_parallel", 17),
        ("ab_mcts_prior", "uniform"),
        ("ab_mcts_models", "one"),
        ("ab_mcts_models", [1]),
        ("ab_mcts_temperature", 2.5),
        ("ab_mcts_judge", "pairwise"),
    ],
)
async def test_bad_parameters_make_no_call(name: str, value: Any) -> None:
    up = improving()
    answer = await search(up, **{name: value})
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, name, 0)


@pytest.mark.anyio
async def test_the_worst_case_is_known_before_the_first_call() -> None:
    up = improving()
    answer = await search(up, ab_mcts_simulations=128, ab_mcts_judge_samples=2)
    assert (answer.status, len(up.calls)) == (400, 0)
    assert "384" in answer.error["message"]


@pytest.mark.anyio
async def test_a_refusal_reaches_the_client() -> None:
    up = ScriptedUpstream(refusal(404, "no such model"))
    answer = await search(up, ab_mcts_parallel=1)
    assert (answer.status, len(up.calls)) == (404, 1)


@pytest.mark.anyio
async def test_failed_generations_are_lost_simulations() -> None:
    up = improving()
    inner = up.script
    assert callable(inner)

    def script(call: Seen) -> Said:
        odd = call.stage == "sample" and call.body["seed"] % 2
        return Fault(status=500) if odd else inner(call)  # type: ignore[return-value]

    up.script = script
    answer = await search(up)
    assert (answer.status, answer.info["calls"]) == (200, 8 + 4)


@pytest.mark.anyio
async def test_nothing_but_failures_is_the_first_failure() -> None:
    answer = await search(ScriptedUpstream(Fault(status=500)))
    assert (answer.status, answer.error["code"]) != (200, "upstream_empty")
    assert answer.status == 502


@pytest.mark.anyio
@pytest.mark.parametrize("empty", [Reply(""), Reply(None), Reply("<think>hm</think>")])
async def test_nothing_usable_is_an_error(empty: Reply) -> None:
    up = improving(said=empty)
    answer = await search(up)
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")
    assert len(up.calls) == 8


@pytest.mark.anyio
async def test_without_any_readable_score_the_first_answer_wins() -> None:
    def script(call: Seen) -> Said:
        return "splendid" if call.stage == "rate" else f"try {call.body['seed']}"

    answer = await search(ScriptedUpstream(script))
    assert (answer.text, answer.info["calls"]) == ("try 100", 16)


@pytest.mark.anyio
async def test_a_cut_answer_loses_to_a_complete_one_and_keeps_its_reason() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 9" if "\ncut\n" in call.text else "Score: 2"
        return Reply("cut", finish="length") if call.body["seed"] < whole else "complete"

    whole = 102
    assert (await search(ScriptedUpstream(script), ab_mcts_simulations=3)).text == "complete"
    whole = 999
    answer = await search(ScriptedUpstream(script), ab_mcts_simulations=3)
    assert (answer.text, answer.json["choices"][0]["finish_reason"]) == ("cut", "length")


@pytest.mark.anyio
async def test_a_tool_call_survives() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    up = improving(said=Reply(None, tool_calls=(call,), finish="tool_calls"))
    answer = await search(up, tools=[tool], ab_mcts_simulations=4)
    (choice,) = answer.json["choices"]
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("tool_calls", [call])
    assert all("[tool call]" in c.text for c in up.of("rate"))


@pytest.mark.anyio
@pytest.mark.parametrize("most", range(1, 13))
async def test_a_budget_that_ends_anywhere_returns_the_best_so_far(most: int) -> None:
    up = improving()
    answer = await search(up, ab_mcts_simulations=6, ab_mcts_parallel=1, optillm_budget={"max_calls": most})
    assert (answer.status, len(up.calls)) == (200, min(most, 12))
    assert answer.text.startswith("try ")
    assert answer.info.get("cut_short") == ("max_calls" if most < 12 else None)
    said = [int(call.text.count("<answer-")) for call in up.of("sample")]
    assert answer.text.count("<") <= sum(said)


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_shape() -> None:
    async with improving() as up, serving(up) as proxy:
        first, second = await asyncio.gather(
            proxy.ask("ab_mcts-test-model", "marker-a", ab_mcts_simulations=3, seed=1),
            proxy.ask("ab_mcts-test-model", "marker-b", ab_mcts_simulations=7, ab_mcts_prior="beta", seed=2),
        )
        assert (first.info["calls"], second.info["calls"]) == (6, 14)
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (6, 14)


@pytest.mark.anyio
async def test_streaming_gives_the_same_answer() -> None:
    async with improving() as up, serving(up) as proxy:
        whole = await proxy.ask("ab_mcts-test-model", seed=7)
        events = await proxy.events("ab_mcts-test-model", seed=7)
        pieces = re.findall(r'"content":"([^"]*)"', "".join(events))
        assert "".join(pieces) == whole.text
