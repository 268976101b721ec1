"""Sampling that stops once the majority is settled: alone, and as a switch of self-consistency."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def says(answers: Sequence[str | None]) -> Callable[[Seen], Said]:
    """Sample number i, told by its seed, answers with the i-th of these."""

    def script(call: Seen) -> Said:
        first = int(call.body.get("seed", 0))
        return [_reply(i, answers[i]) for i in range(first, first + call.n)]

    return script


def _reply(i: int, answer: str | None) -> Reply:
    return Reply(f"path {i}\nThe answer is {answer}" if answer else f"path {i} is a long walk without an end")


async def note(proxy: Proxy, answer: Answer, name: str) -> dict[str, Any]:
    run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    (found,) = (r["data"] for r in run["records"] if r["kind"] == "note" and r["name"] == name)
    return dict(found)


async def test_four_that_agree_end_it() -> None:
    async with ScriptedUpstream(says(["7"] * 40)) as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency-m", seed=0)
        assert answer.text == "path 0\nThe answer is 7"
        assert [c.n for c in up.calls] == [4]
        assert (answer.info["calls"], answer.info["depth"], answer.info["samples_saved"]) == (1, 1, 36)
        assert await note(proxy, answer, "stop") == {"rule": "beta", "batches": [4], "saved": 36}
        assert (await note(proxy, answer, "adaptive.votes"))["votes"] == [
            {"answer": "7", "samples": [0, 1, 2, 3]}
        ]


async def test_a_dissent_takes_as_many_more_as_it_must() -> None:
    answers = ["7", "8", *["7"] * 38]
    async with ScriptedUpstream(says(answers)) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("adaptive_consistency-m", seed=0)
        assert (len(up.calls), answer.info["depth"], answer.info["samples_saved"]) == (7, 2, 33)
        assert sorted(c.body["seed"] for c in up.calls) == list(range(7)), "no sample is drawn twice"


async def test_the_majority_wins_at_the_limit() -> None:
    answers = ["1", "2", "3", "2", "1", "2"]
    async with ScriptedUpstream(says(answers)) as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency(samples=6)-m", seed=0)
        assert answer.text == "path 1\nThe answer is 2"
        assert sum(c.n for c in up.calls) == 6
        assert answer.info["samples_saved"] == 0


async def test_dirichlet_is_stricter_with_many_answers() -> None:
    answers = ["7", "1", "2", "3", *["7"] * 36]
    drawn = {}
    for rule in ("beta", "dirichlet"):
        async with ScriptedUpstream(says(answers)) as up, serving(up) as proxy:
            await proxy.ask(f"adaptive_consistency(stop={rule})-m", seed=0)
            drawn[rule] = sum(c.n for c in up.calls)
    assert drawn["beta"] < drawn["dirichlet"] < 40


async def test_a_unanimous_window_ends_it_and_all_paths_vote() -> None:
    answers = ["1", "1", "2", "3", "3", "3", "4", "4", "4"]
    async with ScriptedUpstream(says(answers)) as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency(stop=window,stop_window=3,samples=9)-m", seed=0)
        assert answer.text == "path 3\nThe answer is 3"
        assert [c.n for c in up.calls] == [3, 3]
        assert (answer.info["depth"], answer.info["samples_saved"]) == (2, 3)


async def test_texts_that_cannot_be_compared_take_all_samples() -> None:
    async with ScriptedUpstream(says([None] * 9)) as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency(samples=9)-m", seed=0)
        assert (answer.status, sum(c.n for c in up.calls), answer.info["samples_saved"]) == (200, 9, 0)


async def test_truncated_samples_do_not_vote() -> None:
    cut = Reply("The answer is 9", finish="length")

    def script(call: Seen) -> Said:
        return cut if call.body["seed"] < 4 else f"The answer is {1}"

    async with ScriptedUpstream(script) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("adaptive_consistency-m", seed=0)
        assert answer.text == "The answer is 1"
        assert (len(up.calls), answer.info["depth"]) == (8, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("samples", 0), ("samples", 65), ("stop", "no"), ("stop_threshold", 0.4), ("stop_window", 1)],
)
async def test_out_of_range(field: str, value: object) -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency-m", **{f"adaptive_consistency_{field}": value})
        assert (answer.status, answer.error["param"]) == (400, f"adaptive_consistency_{field}")
        assert up.calls == []


@pytest.mark.parametrize("slug", ["adaptive_consistency", "self_consistency", "sets", "ranked_vote"])
async def test_a_window_larger_than_all_samples_is_a_contradiction(slug: str) -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.ask(f"{slug}(stop=window,stop_window=9,samples=4)-m")
        assert (answer.status, answer.error["param"]) == (400, f"{slug}_stop_window")
        assert up.calls == []


@pytest.mark.parametrize("mode", ["similarity", "llm"])
async def test_self_consistency_counts_no_answers_in_this_mode(mode: str) -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency-m", sc_mode=mode, self_consistency_stop="beta")
        assert (answer.status, answer.error["param"]) == (400, "self_consistency_stop")
        assert up.calls == []


async def test_the_switch_of_self_consistency() -> None:
    async with ScriptedUpstream(says(["7"] * 20)) as up, serving(up, n_mode="fanout") as proxy:
        fields = {"sc_samples": 20, "seed": 0}
        answer = await proxy.ask("self_consistency-m", self_consistency_stop="beta", **fields)
        assert (len(up.calls), answer.info["samples_saved"]) == (4, 16)
        without = await proxy.ask("self_consistency-m", **fields)
        assert (len(up.calls), without.text) == (4 + 20, answer.text)
        assert "samples_saved" not in without.info


async def test_worst_case_is_refused_before_the_first_call() -> None:
    async with ScriptedUpstream() as up, serving(up, max_upstream_calls=39, n_mode="fanout") as proxy:
        answer = await proxy.ask("adaptive_consistency-m")
        assert (answer.status, answer.error["code"]) == (400, "too_many_calls")
        assert "can take 40 upstream calls" in answer.error["message"]
        assert up.calls == []


@pytest.mark.parametrize("mode", ["ignore", "reject"])
async def test_upstream_without_n(mode: str) -> None:
    async with ScriptedUpstream(says(["7"] * 8), n_mode=mode) as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency-m", seed=0)
        assert answer.text == "path 0\nThe answer is 7"
        assert len(up.calls) == 4 + (mode == "reject")
        assert answer.info["samples_saved"] == 36


@pytest.mark.parametrize("calls", [1, 3, 5, 9])
async def test_a_budget_ends_it_with_the_votes_so_far(calls: int) -> None:
    answers = ["1", "2", "2", "1", "2", "1", "2", "2", *["2"] * 32]
    async with ScriptedUpstream(says(answers)) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("adaptive_consistency-m", seed=0, optillm_budget={"max_calls": calls})
        assert answer.status == 200
        assert (len(up.calls), answer.info["cut_short"]) == (calls, "max_calls")
        assert answer.text == ("path 0\nThe answer is 1" if calls == 1 else "path 1\nThe answer is 2")
        assert answer.info["samples_saved"] == 0


async def test_a_failing_batch_loses_nothing() -> None:
    def script(call: Seen) -> Said:
        seed = int(call.body["seed"])
        return Fault(status=500) if seed >= 4 else f"The answer is {'1121'[seed]}"

    async with ScriptedUpstream(script) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("adaptive_consistency-m", seed=0)
        assert (answer.status, answer.text, answer.info["samples_saved"]) == (200, "The answer is 1", 0)


async def test_a_refusal_is_the_client_s() -> None:
    async with ScriptedUpstream(refusal(401, "no such key")) as up, serving(up) as proxy:
        assert (await proxy.ask("adaptive_consistency-m")).status == 401
        assert len(up.calls) == 1


async def test_nothing_usable_is_an_error() -> None:
    async with ScriptedUpstream(Reply(None)) as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency(samples=6)-m")
        assert (answer.status, answer.error["type"]) == (502, "upstream_empty")


async def test_tool_calls_survive() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = Reply(None, tool_calls=(call,), finish="tool_calls")
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        answer = await proxy.ask("adaptive_consistency(samples=5)-m")
        choice = answer.json["choices"][0]
        assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([call], "tool_calls")


async def test_the_conversation_goes_up_untouched() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
    ]
    async with ScriptedUpstream("The answer is 1") as up, serving(up) as proxy:
        await proxy.ask("adaptive_consistency-m", messages=messages)
        assert [c.messages for c in up.calls] == [messages]


async def test_two_at_once_each_with_its_own_rule() -> None:
    async with ScriptedUpstream(says(["7"] * 40)) as up, serving(up, n_mode="fanout") as proxy:
        a, b = await asyncio.gather(
            proxy.ask("adaptive_consistency(stop_threshold=0.6)-m", "marker-a", seed=0),
            proxy.ask("adaptive_consistency(stop_threshold=0.99)-m", "marker-b", seed=0),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (1, 6)
        assert (a.info["samples_saved"], b.info["samples_saved"]) == (39, 34)


async def test_streaming_gives_the_same_answer() -> None:
    async with ScriptedUpstream(says(["7", "8", *["7"] * 38])) as up, serving(up) as proxy:
        chunks = [json.loads(e) for e in (await proxy.events("adaptive_consistency-m", seed=0))[:-1]]
        text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
        assert text == "path 0\nThe answer is 7"
