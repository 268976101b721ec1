"""Cerebras planning and optimisation: different plans, and the best of several completions."""

from __future__ import annotations

import json

import pytest

from optillm.approaches.planning.cepo_prompts import read_approaches
from optillm.approaches.planning.cepo_rating import points
from tests.approaches.cepo_steps import CUT, ask, by, kind, notes, number, steps
from tests.fakes import Fault, Reply, Said, Seen

pytestmark = pytest.mark.anyio


async def test_each_completion_plans_along_an_approach_of_its_own() -> None:
    ways = json.dumps({"1": "by algebra", "2": "by drawing"})
    async with steps(approaches=f"Here:\n```json\n{ways}\n```") as (up, proxy):
        answer = await ask(proxy, bestofn_n=2, planning_m=2, planning_n=2, cepo_use_plan_diversity=True)
        (first,) = up.step("approaches")
        assert (first.body["temperature"], first.body["max_tokens"]) == (0.7, 1024)
        assert "reasoning_effort" not in first.body
        told = {number(c): ("by algebra" in c.text, "by drawing" in c.text) for c in up.step("plan")}
        assert told == {0: (True, False), 1: (True, False), 2: (False, True), 3: (False, True)}
        assert (answer.info["calls"], answer.info["depth"]) == (1 + 2 * (4 + 2) + 2, 6)


@pytest.mark.parametrize("said", ["no list", '{"1": "only one"}', "{broken", Fault(status=503)])
async def test_after_two_tries_completions_plan_without(said: Said) -> None:
    async with steps(approaches=said) as (up, proxy):
        answer = await ask(proxy, bestofn_n=2, cepo_use_plan_diversity=True)
        assert (answer.status, up.counts["approaches"]) == (200, 2)
        assert not any("Take this approach" in c.text for c in up.step("plan"))


def test_reading_approaches() -> None:
    assert read_approaches('<think>{"1": "x"}</think>{"1": "a", "2": " b ", "3": "c"}', 2) == ["a", "b"]
    assert read_approaches('{"1": "a", "2": {"x": 1}}', 2) == []
    assert read_approaches("[" * 10**5 + "{" * 10**5, 2) == []


async def test_ratings_0_1_1_choose_the_second() -> None:
    def rate(call: Seen) -> str:
        return "Rating: [[0]]" if "answer 0!" in call.text else "I said [[0]], but no.\n**Rating: [[1]]**"

    async with steps(rate=rate) as (_, proxy):
        answer = await ask(proxy, bestofn_n=3)
        assert answer.text == "answer 1!"
        (told,) = await notes(proxy, answer, "cepo.ratings")
        assert told == {"kind": "absolute", "scores": [0, 1, 1], "winner": 1}


@pytest.mark.parametrize("said", ["fine", "Rating: [[7]]", Fault(status=503), Reply("")])
async def test_a_rating_that_cannot_be_read_is_below_all(said: Said) -> None:
    def rate(call: Seen) -> Said:
        return "Rating: [[0]]" if "answer 2!" in call.text else said

    async with steps(rate=rate) as (_, proxy):
        answer = await ask(proxy, bestofn_n=3)
        (told,) = await notes(proxy, answer, "cepo.ratings")
        assert (told["scores"], answer.text) == ([-1, -1, 0], "answer 2!")


async def test_a_verdict_is_found_before_a_long_end() -> None:
    def rate(call: Seen) -> str:
        verdict = f"Rating: [[{int('answer 1!' in call.text)}]]"
        return verdict + "\n" + "so it is. " * 100

    async with steps(rate=rate) as (_, proxy):
        assert (await ask(proxy, bestofn_n=3)).text == "answer 1!"


async def test_pairs() -> None:
    # Who wins when shown as (first, second); None: no verdict.
    table = {(0, 1): 1, (1, 0): 0, (0, 2): 0, (2, 0): None, (1, 2): 0, (2, 1): 0}

    def compare(call: Seen) -> str:
        shown = sorted((call.text.index(f"answer {i}!"), i) for i in range(3) if f"answer {i}!" in call.text)
        better = table[shown[0][1], shown[1][1]]
        return "both" if better is None else f"Better Response: [[{better}]]"

    async with steps(compare=compare) as (up, proxy):
        answer = await ask(proxy, bestofn_n=3, cepo_bestofn_rating_type="pairwise")
        assert (answer.text, up.counts["compare"]) == ("answer 1!", 6)
        (told,) = await notes(proxy, answer, "cepo.ratings")
        assert told == {"kind": "pairwise", "scores": [1.5, 3.0, 1.5], "winner": 1}


def test_points_are_shared_out() -> None:
    assert points({(0, 1): None, (1, 0): None}, 2) == [1.0, 1.0]
    assert points({(0, 1): 1, (1, 0): 1}, 2) == [1.0, 1.0]
    assert sum(points({(i, j): 0 for i in range(4) for j in range(4) if i != j}, 4)) == 12


async def test_those_without_an_answer_are_no_majority() -> None:
    answers = by({0: "Well,\nwho knows.", 1: "Let us see\nwhat comes.", 2: "Thus\nthe answer is 42"})
    async with steps(answer=answers) as (up, proxy):
        answer = await ask(proxy, bestofn_n=3, cepo_bestofn_rating_type="majority")
        assert "42" in answer.text
        assert (up.counts["rate"], up.counts["compare"], answer.info["depth"]) == (0, 0, 4)


async def test_the_majority_wins_however_its_answer_is_written() -> None:
    answers = by({0: "The answer is (A)", 1: "The answer is 1/2", 2: "So:\n\\boxed{\\frac{1}{2}}"})
    async with steps(answer=answers) as (_, proxy):
        answer = await ask(proxy, bestofn_n=3, cepo_bestofn_rating_type="majority")
        assert answer.text == "The answer is 1/2"


async def test_a_majority_may_write_its_mathematics_differently() -> None:
    """By math-verify, which the development environment has in its sandbox."""
    answers = by({0: r"So \boxed{3}", 1: r"So \boxed{\sqrt{8}}", 2: r"So \boxed{2\sqrt{2}}"})
    async with steps(answer=answers) as (_, proxy):
        answer = await ask(proxy, bestofn_n=3, cepo_bestofn_rating_type="majority")
        assert answer.text == r"So \boxed{\sqrt{8}}"


@pytest.mark.parametrize("rating", ["absolute", "pairwise"])
async def test_completions_without_text_are_left_out(rating: str) -> None:
    fields = {"cepo_planning_max_tokens_step3": 0, "cepo_bestofn_rating_type": rating}

    def execute(call: Seen) -> Said:
        return CUT if number(call) == 1 else f"execute {number(call)}!"

    async with steps(execute=execute, direct=Reply("")) as (up, proxy):
        answer = await ask(proxy, bestofn_n=3, **fields)
        (told,) = await notes(proxy, answer, "cepo.ratings")
        assert len(told["scores"]) == 2
        assert up.counts["rate"] + up.counts["compare"] == 2
        assert answer.text in ("answer 0!", "answer 2!")


async def test_the_rating_model() -> None:
    async with steps() as (up, proxy):
        await ask(proxy, bestofn_n=2, cepo_rating_model="judge-model")
        assert {c.body["model"] for c in up.step("rate")} == {"judge-model"}
        assert {c.body["model"] for c in up.calls if kind(c) != "rate"} == {"test-model"}


async def test_it_chooses_among_what_others_made() -> None:
    def rate(call: Seen) -> str:
        return f"Rating: [[{int('second!' in call.text)}]]"

    async with steps(direct=lambda c: "second!" if "again" in c.last else "first!", rate=rate) as (up, proxy):
        answer = await proxy.ask("test-model", optillm_approach="(cot_reflection|re2)>cepo")
        assert (answer.text, answer.info["calls"], up.counts["rate"]) == ("second!", 4, 2)
