"""Step-level search: population, steps and selection as such, and what it asks of a model."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.search.beam import (
    Params,
    Partial,
    first_step,
    going_on,
    highest,
    selected,
    softmax,
    systematic,
    unlike,
)
from optillm.core.reply import Reply as CoreReply
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=16)


# -- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("one paragraph", "one paragraph"),
        ("\n\nfirst\nstill first\n\nsecond", "first\nstill first"),
        ("Step 1: add\nStep 2: halve", "Step 1: add"),
        ("**Step 1:** add 2\n  and 3\n**Step 2:** halve", "**Step 1:** add 2\n  and 3"),
        ("## Step 1\n\nadd\n\n## Step 2\n\nhalve", "## Step 1\n\nadd"),
        ("**Step 1**\n\nadd\n\nrest", "**Step 1**\n\nadd"),
        ("We have:\n\na = 1\n\nSo b = 2", "We have:\n\na = 1"),
        ("Code:\n```python\na = 1\n\nb = 2\n```\n\nDone", "Code:\n```python\na = 1\n\nb = 2\n```"),
        ("So\n\\[\na\n\n= b\n\\]\n\nrest", "So\n\\[\na\n\n= b\n\\]"),
        ("So\n$$\na\n\n= b\n$$\n\nrest", "So\n$$\na\n\n= b\n$$"),
        ("Both $$a$$ here\n\nrest", "Both $$a$$ here"),
        ("```\nnever closed\n\nand on", "```\nnever closed\n\nand on"),
        ("  \n ", ""),
    ],
)
def test_the_first_step_ends_where_the_next_begins(text: str, step: str) -> None:
    assert first_step(text) == step


@given(st.text(st.sampled_from("ab \n`$#:1\\[]Step"), max_size=80))
def test_a_first_step_is_the_start_of_its_text_and_is_its_own_first_step(text: str) -> None:
    step = first_step(text)
    squeezed = ["".join(t.split()) for t in (text, step)]
    assert squeezed[0].startswith(squeezed[1])
    assert bool(step) == bool(text.strip())
    assert first_step(step) == step


# -- the population ------------------------------------------------------------------------------


@given(VALUES, st.floats(0.01, 10))
def test_weights_sum_to_one_and_keep_the_order(values: list[float], temperature: float) -> None:
    weights = softmax(values, temperature)
    assert sum(weights) == pytest.approx(1)
    for value, weight in zip(values, weights, strict=True):
        assert weight == pytest.approx(weights[0] * math.exp((value - values[0]) / temperature), abs=1e-9)


@given(VALUES, st.integers(1, 64), st.integers(0, 99))
def test_systematic_resampling_gives_each_its_share_but_for_rounding(
    values: list[float], count: int, seed: int
) -> None:
    weights = softmax(values, 0.3)
    drawn = systematic(weights, count, Random(seed))
    assert len(drawn) == count
    assert drawn == sorted(drawn)
    times = Counter(drawn)
    for index, weight in enumerate(weights):
        assert math.floor(count * weight - 1e-9) <= times[index] <= math.ceil(count * weight + 1e-9)


def test_systematic_resampling_is_unbiased() -> None:
    weights = [0.05, 0.3, 0.0, 0.25, 0.4]
    rng, rounds = Random(1), 20_000
    times = Counter(i for _ in range(rounds) for i in systematic(weights, 4, rng))
    for index, weight in enumerate(weights):
        assert times[index] / rounds == pytest.approx(4 * weight, abs=0.015)
    assert times[2] == 0


def test_rounding_errors_never_run_out_of_particles() -> None:
    class Last(Random):
        def random(self) -> float:
            return 1 - 2**-53

    assert systematic([0.1] * 10, 64, Last())[-1] == 9
    assert systematic([1 - 1e-12], 3, Last()) == [0, 0, 0]


def population(values: list[float], finished: list[bool], width: int = 1) -> list[Partial]:
    return [
        Partial((CoreReply.of(f"c{i}"),), value, True, done, i // width)
        for i, (value, done) in enumerate(zip(values, finished, strict=True))
    ]


def params(**values: Any) -> Params:
    return Params(**values)


FINISHED = st.lists(st.booleans(), min_size=12, max_size=12)
TWELVE = st.lists(st.floats(0, 1), min_size=12, max_size=12)


@given(TWELVE, FINISHED, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_a_beam_goes_on_from_its_best_and_never_from_more(
    values: list[float], finished: list[bool], width: int
) -> None:
    candidates = population(values, finished)
    chosen = going_on(candidates, params(n=12, width=width), Random(0))
    best = highest(candidates, 12 // width)
    assert chosen == [c for c in best if not c.finished]
    assert all(b.value >= c.value for b in best for c in candidates if c not in best)


@given(TWELVE, FINISHED, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_every_subtree_goes_on_from_its_own_best(
    values: list[float], finished: list[bool], width: int
) -> None:
    candidates = population(values, finished, width)
    chosen = going_on(candidates, params(mode="dvts", n=12, width=width), Random(0))
    assert len({c.tree for c in chosen}) == len(chosen) <= 12 // width
    for tree in range(12 // width):
        own = candidates[tree * width : (tree + 1) * width]
        best = highest(own, 1)[0]
        assert [c for c in chosen if c.tree == tree] == ([] if best.finished else [best])


@given(VALUES, st.integers(1, 20), st.integers(0, 99))
def test_particles_stay_as_many_as_they_are(values: list[float], n: int, seed: int) -> None:
    candidates = population(values, [True] * len(values))
    chosen = going_on(candidates, params(mode="particle", n=n), Random(seed))
    assert len(chosen) == n
    assert all(c in candidates for c in chosen)


def test_a_low_temperature_follows_the_judge_and_a_high_one_hardly() -> None:
    candidates = population([0.9, 0.5, 0.5, 0.1], [False] * 4)
    sharp = going_on(candidates, params(mode="particle", n=8, resampling=0.01), Random(0))
    flat = going_on(candidates, params(mode="particle", n=8, resampling=10), Random(0))
    assert {c.text for c in sharp} == {"c0"}
    assert Counter(c.text for c in flat) == {"c0": 2, "c1": 2, "c2": 2, "c3": 2}


def solution(text: str, value: float, finish: str = "stop") -> Partial:
    return Partial((CoreReply.of(text, finish),), value, True, True)


def test_the_last_score_or_a_weighted_vote_selects() -> None:
    found = [
        solution("a\nThe answer is 4", 0.5),
        solution("b\nThe answer is 5", 0.8),
        solution("c\nThe answer is 4.0", 0.6),
        solution("d\nThe answer is 7", 1.0, "length"),
    ]
    assert selected(found, "last").text.startswith("b")
    assert selected(found, "vote").text.startswith("c"), "0.5 + 0.6 beat 0.8, and of the two the better"
    assert selected(found[3:], "vote").text.startswith("d"), "a cut one only when there is no other"
    prose = [solution("a long story, told to its end, without any result", 0.2)]
    assert selected(prose, "vote") is prose[0]


def test_equal_solutions_of_one_tree_are_one() -> None:
    twins = population([0.1, 0.2], [False, False])
    same = Partial((CoreReply.of("c0"),), 0.1, True, False, 7)
    assert unlike([*twins, twins[0], same]) == [*twins, same]


# -- what it asks of a model ---------------------------------------------------------------------


def step_number(call: Seen) -> int:
    found = re.search(r"Write step (\d+) and nothing else", call.last)
    return int(found[1]) if found else 0


def stepper(score: Any = None, last: int = 3) -> ScriptedUpstream:
    """Steps are ``step 2: a c`` with the letters of the path; the one numbered ``last`` ends it."""

    def script(call: Seen) -> Said:
        shown = re.findall(r"^way (\w+)$", call.text, re.M)
        if call.stage == "rate":
            return f"Score: {score(shown[-1]) if score else 5}"
        path = shown[-1] if shown else ""
        ends = "\nFinal answer: {}" if step_number(call) in (0, last) else ""
        seed = call.body.get("seed", 0)
        letters = [chr(ord("a") + (seed + i) % 26) for i in range(call.n)]
        return [f"way {path}{x}{ends.format(x)}\n\nand far too much" for x in letters]

    return ScriptedUpstream(script)


async def search(up: ScriptedUpstream, **fields: Any) -> Any:
    fields = {"seed": 0, **fields}
    async with up, serving(up, n_mode=fields.pop("n_mode", "auto")) as proxy:
        answer = await proxy.ask("beam-test-model", "How long is the way?", **fields)
        if answer.status == 200:
            run = await proxy.get(f"/v1/runs/{answer.info['run_id']}", Authorization="Bearer upstream-key")
            answer.json["run"] = run.json
        return answer


def notes(answer: Any) -> list[dict[str, Any]]:
    return [r["data"] for r in answer.json["run"]["records"] if r.get("name") == "beam.step"]


@pytest.mark.anyio
@pytest.mark.parametrize("n_mode", ["native", "fanout"])
@pytest.mark.parametrize(
    ("fields", "rounds", "parents", "judged"),
    [
        ({}, 3, 2, 4),
        ({"beam_n": 6, "beam_width": 3}, 3, 2, 6),
        ({"beam_n": 4, "beam_width": 1}, 3, 4, 4),
        ({"beam_n": 4, "beam_width": 4}, 3, 1, 4),
        ({"beam_steps": 1}, 1, 2, 4),
        ({"beam_mode": "dvts", "beam_n": 6}, 3, 3, 6),
    ],
)
async def test_calls_and_depth(
    fields: dict[str, Any], rounds: int, parents: int, judged: int, n_mode: str
) -> None:
    up = stepper()
    answer = await search(up, n_mode=n_mode, **fields)
    n, width = fields.get("beam_n", 4), fields.get("beam_width", 2)
    native = n_mode == "native"
    sampled = (1 if native else n) + (rounds - 1) * parents * (1 if native or width == 1 else width)
    assert (len(up.of("sample")), len(up.of("rate"))) == (sampled, rounds * judged)
    assert (answer.info["calls"], answer.info["depth"]) == (sampled + rounds * judged, 2 * rounds)


@pytest.mark.anyio
async def test_worst_calls_are_known_before_the_first() -> None:
    up = stepper()
    answer = await search(up, beam_n=16, beam_width=4, beam_steps=20, n_mode="native")
    assert (answer.status, len(up.calls)) == (400, 0)
    assert str(1 + 19 * 4 + 20 * 16) in answer.error["message"]
    answer = await search(stepper(), beam_n=16, beam_mode="particle", beam_steps=20, n_mode="native")
    assert (answer.status, len(up.calls)) == (400, 0)
    assert str(1 + 19 * 16 + 20 * 16) in answer.error["message"]


@pytest.mark.anyio
async def test_the_best_way_is_followed_to_its_end() -> None:
    up = stepper(score=lambda path: path.count("b") * 3)
    answer = await search(up)
    assert answer.text == "way b\n\nway bb\n\nway bbb\nFinal answer: b"
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert [n["best"]["value"] for n in notes(answer)] == [pytest.approx(v) for v in (0.3, 0.6, 0.9)]


@pytest.mark.anyio
async def test_a_step_sees_question_and_steps_between_marks_and_nothing_that_was_cut_off() -> None:
    up = stepper()
    await search(up)
    for call in up.calls:
        assert "How long is the way?" in call.text
        assert "far too much" not in call.text
    later = [c for c in up.of("sample") if step_number(c) > 1]
    assert later
    for call in later:
        assert re.search(r"<steps-([0-9a-f]{12})>\nway \w(\n\nway \w\w)?\n</steps-\1>", call.last)
        assert call.body["temperature"] == 0.8
        assert "stop" not in call.body
    assert all("may hold only the first of them" in c.text for c in up.of("rate"))


@pytest.mark.anyio
async def test_the_last_step_completes_the_solution_and_is_kept_whole() -> None:
    up = stepper(last=99)
    answer = await search(up, beam_steps=2)
    assert answer.text == "way a\n\nway aa\nFinal answer: a\n\nand far too much"
    assert all("Now complete the solution" in c.last for c in up.of("sample")[1:])


@pytest.mark.anyio
async def test_nothing_to_add_ends_a_solution_without_another_judgement() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 6"
        return [f"a story {i}" for i in range(call.n)] if step_number(call) == 1 else Reply("")

    up = ScriptedUpstream(script)
    answer = await search(up)
    assert answer.text == "a story 0"
    assert (len(up.of("rate")), answer.info["depth"]) == (4, 3)


@pytest.mark.anyio
async def test_the_pattern_of_a_final_answer_is_none() -> None:
    def script(call: Seen) -> Said:
        return "Score: 6" if call.stage == "rate" else f"step {step_number(call)}\nFinal answer: <the answer>"

    answer = await search(ScriptedUpstream(script), beam_n=2, beam_steps=3)
    assert answer.info["depth"] == 6


@pytest.mark.anyio
async def test_equal_candidates_are_judged_once() -> None:
    def script(call: Seen) -> Said:
        return "Score: 6" if call.stage == "rate" else "Final answer: 4"

    up = ScriptedUpstream(script)
    answer = await search(up, beam_n=8)
    assert (answer.text, len(up.of("rate"))) == ("Final answer: 4", 1)


@pytest.mark.anyio
async def test_subtrees_stay_apart() -> None:
    """A beam would follow the best beginning alone; each tree goes on from its own."""
    up = stepper(score=lambda path: 9 if path[0] in "ab" else 1)
    answer = await search(up, beam_mode="dvts")
    first = {path[0] for c in up.of("sample") for path in re.findall(r"^way (\w+)$", c.text, re.M)}
    assert first == {"a", "c"}
    assert [c["tree"] for c in notes(answer)[-1]["candidates"]] == [0, 0, 1, 1]
    seeds = Counter(c.body["seed"] for c in up.of("sample") if step_number(c) == 2)
    assert seeds == {0: 1, 2: 1}, "trees with equal beginnings must not draw the same samples"
    up = stepper(score=lambda path: 9 if path[0] in "ab" else 1)
    await search(up)
    first = {path[0] for c in up.of("sample") for path in re.findall(r"^way (\w+)$", c.text, re.M)}
    assert first == {"a", "b"}


@pytest.mark.anyio
@pytest.mark.parametrize("n_mode", ["native", "fanout"])
async def test_particles_are_drawn_by_their_scores(n_mode: str) -> None:
    up = stepper(score=lambda path: 9 if path[0] == "c" else 1)
    answer = await search(up, beam_mode="particle", beam_n=4, beam_resampling=0.05, n_mode=n_mode)
    assert answer.text.startswith("way c\n\n")
    first, second, third = notes(answer)
    assert first["chosen"] == [2, 2, 2, 2]
    assert len(second["candidates"]) == len(third["candidates"]) == 4
    second_step = [c for c in up.of("sample") if step_number(c) == 2]
    assert [c.n for c in second_step] == ([4] if n_mode == "native" else [1] * 4)
    assert len({str(c.body["seed"]) for c in second_step}) == len(second_step)


@pytest.mark.anyio
async def test_finished_particles_wait_and_take_part() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 8"
        if step_number(call) == 1:
            return ["short\nFinal answer: 1", "long"]
        return [f"on {step_number(call)} {i}\nFinal answer: 2" for i in range(call.n)]

    up = ScriptedUpstream(script)
    answer = await search(up, beam_mode="particle", beam_n=2)
    assert answer.status == 200
    assert len(up.of("rate")) == 3, "the finished one is judged once"
    assert notes(answer)[1]["candidates"][0]["finished"]


@pytest.mark.anyio
async def test_the_weighted_vote() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 8" if "Final answer: 9\n" in call.text else "Score: 5"
        return ["x\nFinal answer: 4", "y\nFinal answer: 9", "z\nFinal answer: 4.0", "w\nFinal answer: 1"]

    assert (await search(ScriptedUpstream(script))).text == "y\nFinal answer: 9"
    assert (await search(ScriptedUpstream(script), beam_select="vote")).text == "x\nFinal answer: 4"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("beam_mode", "best", "invalid_parameter"),
        ("beam_n", 0, "invalid_parameter"),
        ("beam_n", 65, "invalid_parameter"),
        ("beam_n", 5, "contradictory_parameters"),
        ("beam_width", 0, "invalid_parameter"),
        ("beam_steps", 41, "invalid_parameter"),
        ("beam_select", "first", "invalid_parameter"),
        ("beam_resampling", 0, "invalid_parameter"),
        ("beam_temperature", 3, "invalid_parameter"),
        ("beam_judge", "pairwise", "invalid_parameter"),
        ("beam_judge", "tests", "invalid_parameter"),
    ],
)
async def test_bad_parameters_make_no_call(name: str, value: Any, code: str) -> None:
    up = stepper()
    answer = await search(up, **{name: value})
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, name, 0)
    assert answer.error["code"] == code


@pytest.mark.anyio
async def test_a_refusal_reaches_the_client_after_one_call() -> None:
    up = ScriptedUpstream(refusal(404, "no such model"))
    answer = await search(up)
    assert (answer.status, len(up.calls)) == (404, 1)


@pytest.mark.anyio
async def test_a_failing_branch_costs_its_own_candidates() -> None:
    up = stepper(score=lambda path: 9 if path[0] == "a" else 5)
    inner = up.script
    assert callable(inner)

    def script(call: Seen) -> Said:
        failing = call.stage == "sample" and "\nway a\n" in call.text
        return Fault(status=500) if failing else inner(call)  # type: ignore[return-value]

    up.script = script
    answer = await search(up)
    assert (answer.status, answer.text[:5]) == (200, "way b")


@pytest.mark.anyio
async def test_without_any_finished_solution_the_failure_is_the_answer() -> None:
    up = stepper()
    inner = up.script
    assert callable(inner)
    up.script = lambda call: Fault(status=500) if step_number(call) == 2 else inner(call)
    assert (await search(up)).status == 502


@pytest.mark.anyio
async def test_unreadable_scores_lose_nothing() -> None:
    answer = await search(stepper(score=lambda path: "splendid"))
    assert answer.text == "way a\n\nway aa\n\nway aaa\nFinal answer: a"


@pytest.mark.anyio
@pytest.mark.parametrize("empty", [Reply(""), Reply(None), Reply("<think>hm</think>")])
async def test_nothing_usable_is_an_error(empty: Reply) -> None:
    up = ScriptedUpstream(empty)
    answer = await search(up)
    assert (answer.status, answer.error["code"], len(up.calls)) == (502, "upstream_empty", 1)


@pytest.mark.anyio
async def test_a_step_that_was_cut_ends_its_solution_and_loses_to_complete_ones() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 9" if "cut" in call.text else "Score: 3"
        if whole:
            return [Reply("cut", finish="length"), "whole\nFinal answer: 1"]
        return Reply("cut", finish="length")

    whole = True
    assert (await search(ScriptedUpstream(script))).text == "whole\nFinal answer: 1"
    whole = False
    up = ScriptedUpstream(script)
    answer = await search(up)
    assert (answer.text, answer.json["choices"][0]["finish_reason"]) == ("cut", "length")
    assert len(up.of("sample")) == 1


@pytest.mark.anyio
async def test_a_reply_cut_behind_its_first_step_is_a_whole_step() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 5"
        if step_number(call) == 1:
            return Reply("first\n\nsecond that is cu", finish="length")
        return "Final answer: 3"

    answer = await search(ScriptedUpstream(script))
    assert (answer.text, answer.json["choices"][0]["finish_reason"]) == ("first\n\nFinal answer: 3", "stop")


@pytest.mark.anyio
async def test_thinking_is_no_part_of_a_step() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 5"
        if step_number(call) == 1:
            return "<think>well\n\nnow</think>first\n\nsecond"
        return "<think>aha\n\nyes</think>Final answer: 3"

    up = ScriptedUpstream(script)
    assert (await search(up)).text == "first\n\nFinal answer: 3"
    assert all("well" not in call.text for call in up.calls)


@pytest.mark.anyio
async def test_a_tool_call_ends_the_search_and_survives() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

    def script(seen: Seen) -> Said:
        if seen.stage == "rate":
            return "Score: 5"
        return "first" if step_number(seen) == 1 else Reply(None, tool_calls=(call,), finish="tool_calls")

    answer = await search(ScriptedUpstream(script), tools=[tool])
    (choice,) = answer.json["choices"]
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("tool_calls", [call])
    assert choice["message"]["content"] == "first"


@pytest.mark.anyio
async def test_json_is_not_written_in_steps() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 9" if '{"a": 2}' in call.text else "Score: 1"
        return ['{"a": 1}', '{"a": 2}']

    up = ScriptedUpstream(script)
    answer = await search(up, response_format={"type": "json_object"})
    assert (answer.text, answer.info["depth"]) == ('{"a": 2}', 2)
    assert up.of("sample")[0].last == "How long is the way?"


@pytest.mark.anyio
async def test_log_probabilities_are_those_of_the_steps() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "rate":
            return "Score: 5"
        word = f"w{step_number(call)}"
        token = {"token": word, "logprob": -0.1, "bytes": None, "top_logprobs": []}
        text = word if step_number(call) == 1 else f"Final answer: {word}"
        return Reply(text, logprobs={"content": [token], "refusal": None})

    answer = await search(ScriptedUpstream(script), logprobs=True)
    assert [t["token"] for t in answer.json["choices"][0]["logprobs"]["content"]] == ["w1", "w2"]


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["beam", "dvts", "particle"])
async def test_a_budget_that_ends_anywhere_returns_the_best_so_far(mode: str) -> None:
    whole = (await search(stepper(), beam_mode=mode)).info["calls"]
    for most in range(1, whole + 1):
        up = stepper()
        answer = await search(up, beam_mode=mode, optillm_budget={"max_calls": most})
        assert (answer.status, len(up.calls)) == (200, most)
        assert answer.text.startswith("way ")
        assert answer.info.get("cut_short") == ("max_calls" if most < whole else None)


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_shape() -> None:
    async with stepper() as up, serving(up) as proxy:
        first, second = await asyncio.gather(
            proxy.ask("beam-test-model", "marker-a", beam_n=2),
            proxy.ask("beam-test-model", "marker-b", beam_n=6, beam_mode="dvts"),
        )
        assert (first.info["calls"], second.info["calls"]) == (3 * 1 + 6, 1 + 2 * 3 + 18)
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (9, 25)


@pytest.mark.anyio
async def test_streaming_gives_the_same_answer() -> None:
    async with stepper() as up, serving(up) as proxy:
        whole = await proxy.ask("beam-test-model", seed=3)
        events = await proxy.events("beam-test-model", seed=3)
        pieces = re.findall(r'"content":"([^"]*)"', "".join(events))
        assert "".join(pieces).replace("\\n", "\n") == whole.text
