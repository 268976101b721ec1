"""Majority voting: self-consistency over answers, under its old name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from optillm.approaches.sampling.majority_voting import majority_voting
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

SLUG = "majority_voting-test-model"
PROSE = (
    "The sea was calm and blue, and gulls cried over the little boats near the harbour wall.",
    "In winter the mountain village lies silent, while smoke rises from every chimney there.",
)


async def voted(*texts: Reply | str, **fields: Any) -> str:
    async with ScriptedUpstream(list(texts)) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, **{"k": len(texts), **fields})
        assert answer.status == 200, answer.json
        return answer.text


async def test_the_majority_of_answers_wins() -> None:
    texts = [f"{i}. The answer is {a}" for i, a in enumerate(("41", "42", "42.0"))]
    assert await voted(*texts) == texts[1]


async def test_what_follows_an_answer_is_not_part_of_another() -> None:
    # The old one took the first "answer:" and all that followed.
    texts = ["Answer: unclear at first.\nAnswer: 42", "Answer: maybe 3?\nAnswer: 7", "So\nAnswer: 42.00"]
    assert await voted(*texts) == texts[0]


async def test_a_letter_at_a_line_start_is_no_vote() -> None:
    texts = ["A is wrong.\nThe answer is B", "A is wrong.\nThe answer is C", "A train.\nThe answer is (B)"]
    assert await voted(*texts) == texts[0]


async def test_a_tie_goes_to_the_lowest_index() -> None:
    texts = [f"{i}: The answer is {a}" for i, a in enumerate("ABBAC")]
    assert await voted(*texts) == texts[0]


async def test_without_any_answer_it_is_the_first_sample() -> None:
    first, other = PROSE
    # Also where two of the others are alike: only answers vote.
    assert await voted(first, other, other) == first


async def test_samples_without_an_answer_do_not_vote() -> None:
    assert await voted(*PROSE, "The answer is 5") == "The answer is 5"


async def test_truncated_and_empty_samples_do_not_vote() -> None:
    cut = Reply("The answer is 1", finish="length")
    assert await voted(cut, cut, Reply(None), "The answer is 2") == "The answer is 2"


async def test_a_truncated_sample_is_better_than_none() -> None:
    async with ScriptedUpstream(Reply("The answer is 1", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask(SLUG)).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("The answer is 1", "length")


@pytest.mark.parametrize(("mode", "calls"), [("native", 1), ("fanout", 8)])
async def test_eight_samples_at_once(mode: str, calls: int) -> None:
    async with ScriptedUpstream("The answer is 1") as up, serving(up, n_mode=mode) as proxy:
        answer = await proxy.ask(SLUG, temperature=1.5)
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (calls, 1, calls)
        assert sum(c.n for c in up.calls) == 8
        assert {(c.body["temperature"], c.body["max_tokens"]) for c in up.calls} == {(0.6, 4096)}
        assert calls in (1, worst(majority_voting))


async def test_an_upstream_that_ignores_n_is_asked_for_the_rest() -> None:
    async with ScriptedUpstream("The answer is 1", n_mode="ignore") as up, serving(up) as proxy:
        assert (await proxy.ask(SLUG, k=3)).info["calls"] == len(up.calls) == 3


async def test_one_sample_that_fails_is_left_out() -> None:
    def script(call: Seen) -> Said:
        return Fault(status=500) if call.body["seed"] == 1 else "The answer is 1"

    async with ScriptedUpstream(script) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask(SLUG, k=3, seed=0)
        assert (answer.text, len(up.calls)) == ("The answer is 1", 3)


@pytest.mark.parametrize("fault", [refusal(401, "no such key"), refusal(404, "no such model")])
async def test_a_refusal_reaches_the_client_after_one_call(fault: Fault) -> None:
    async with ScriptedUpstream(fault) as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG)
        assert (answer.status, len(up.calls)) == (fault.status, 1)


async def test_nothing_usable_is_an_error() -> None:
    async with ScriptedUpstream(Reply(None)) as up, serving(up) as proxy:
        assert (await proxy.ask(SLUG)).error["type"] == "upstream_empty"


@pytest.mark.parametrize("value", [0, 65, "8", 2.5, True])
async def test_bad_parameters_make_no_call(value: Any) -> None:
    async with ScriptedUpstream("x") as up, serving(up) as proxy:
        answer = await proxy.ask(SLUG, k=value)
        assert (answer.status, answer.error["param"], up.calls) == (400, "k", [])


async def test_the_task_goes_out_untouched_and_tool_calls_come_back() -> None:
    async with ScriptedUpstream(calls_a_tool()) as up, serving(up) as proxy:
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": pictured("Q")}]
        answer = await proxy.ask(SLUG, messages=messages, tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert up.calls[0].messages == messages
        assert images(up.calls[0].messages) == 1


async def test_a_budget_leaves_out_samples() -> None:
    async with ScriptedUpstream("The answer is 1") as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask(SLUG, optillm_budget={"max_calls": 3})
        assert (answer.text, answer.info["cut_short"], len(up.calls)) == ("The answer is 1", "max_calls", 3)


async def test_three_and_nine_at_once() -> None:
    async with ScriptedUpstream("The answer is 1") as up, serving(up, n_mode="fanout") as proxy:
        a, b = await asyncio.gather(
            proxy.ask(SLUG, "marker-a", k=3),
            proxy.ask("majority_voting(k=9)-test-model", "marker-b"),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 9)
        assert (a.info["calls"], b.info["calls"]) == (3, 9)


async def test_candidates_of_others_vote_too() -> None:
    async with ScriptedUpstream("The answer is 1") as up, serving(up) as proxy:
        answer = await proxy.ask("(re2|step_back|cod)>majority_voting-test-model")
        assert answer.text == "The answer is 1"
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
        votes = [r["data"] for r in run["records"] if r.get("name") == "majority_voting.votes"]
        assert votes == [{"votes": [{"answer": "1", "samples": [0, 1, 2]}], "winner": 0}]


async def test_streaming_gives_the_same_answer() -> None:
    texts = ["The answer is 1", "So: the answer is 2", "The answer is 2"]
    async with ScriptedUpstream(texts) as up, serving(up) as proxy:
        assert streamed(await proxy.events(SLUG, k=3)) == texts[1]
