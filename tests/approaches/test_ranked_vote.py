"""Ranked-voting consistency: the elections as pure functions, and the technique around them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.sampling.ranked_vote import (
    borda,
    elected,
    numbered_ballots,
    read_ranking,
    reciprocal_rank,
    runoff,
)
from tests.fakes import Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

# Plurality says 0, Borda 1, and the runoff 2: the classic example of a divided electorate.
DIVIDED = [*[[0, 1, 2]] * 4, *[[2, 1, 0]] * 3, *[[1, 2, 0]] * 2]


def test_the_methods_are_different_elections() -> None:
    assert [elected(m, DIVIDED, 3)[0] for m in ("irv", "borda", "mrr")] == [2, 1, 0]
    assert runoff(DIVIDED, 3) == [{0: 4, 1: 2, 2: 3}, {0: 4, 2: 5}]
    assert borda(DIVIDED, 3) == [4 * 3 + 5, 4 * 2 + 3 * 2 + 2 * 3, 4 + 3 * 3 + 2 * 2]
    assert [round(float(x), 4) for x in reciprocal_rank(DIVIDED, 3)] == [0.6296, 0.6111, 0.5926]


def test_ballots_of_which_all_are_out_do_not_block_a_majority() -> None:
    assert runoff([[0], [0], [1, 2], [2], [3]], 4)[-1][0] == 2
    assert elected("irv", [[0], [1], [2]], 3)[0] == 0, "of a tie the one named first"


BALLOTS = st.lists(
    st.permutations(range(4)).flatmap(lambda p: st.sampled_from([p, p[:2], p[:1]])), min_size=1
)


@given(BALLOTS, st.sampled_from(["irv", "borda", "mrr"]))
def test_unanimity_and_the_first_majority_win(ballots: list[list[int]], method: str) -> None:
    winner, _ = elected(method, ballots, 4)
    assert any(winner in b for b in ballots)
    firsts = [b[0] for b in ballots]
    if len(set(firsts)) == 1:
        assert winner == firsts[0]
    if method == "irv" and 2 * firsts.count(winner) <= len(firsts):
        assert all(2 * firsts.count(c) <= len(firsts) for c in range(4))


@given(st.text())
def test_reading_is_total(text: str) -> None:
    before, ranked = read_ranking(text)
    assert before in text
    assert all(ranked)


def test_reading_rankings() -> None:
    assert read_ranking("So.\n\n**Ranking:**\n1. **17**\n2) 18 dollars\n\n3. no") == (
        "So.",
        ["17", "18 dollars"],
    )
    assert read_ranking("Ranking:\n1. a\nthen\nRanking:\n1. b")[1] == ["b"]
    assert read_ranking("<think>Ranking:\n1. a</think>hm") == ("hm", [])
    assert read_ranking("A ranking:\n1. a")[1] == []


def test_forms_of_an_answer_are_one_candidate() -> None:
    names, ballots = numbered_ballots([["18", "$17.00"], ["17", "18 dollars", "17.0"], ["x"]])
    assert (names, ballots) == (["18", "$17.00", "x"], [[0, 1], [1, 0], [2]])


def ranking(i: int, answers: Sequence[str]) -> str:
    return f"reasons {i}\nRanking:\n" + "\n".join(f"{n}. {a}" for n, a in enumerate(answers, 1))


def ranked(*rankings: Sequence[str]) -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        first = int(call.body.get("seed", 0))
        return [ranking(i, rankings[i % len(rankings)]) for i in range(first, first + call.n)]

    return ScriptedUpstream(script)


@pytest.mark.parametrize(("method", "winner"), [("irv", "c"), ("borda", "b"), ("mrr", "a")])
async def test_the_method_decides(method: str, winner: str) -> None:
    up = ranked(*(["abc"[c] for c in ballot] for ballot in DIVIDED))
    async with up, serving(up) as proxy:
        answer = await proxy.ask(f"ranked_vote(method={method},samples=9)-m", seed=0)
        first = next(i for i, b in enumerate(DIVIDED) if "abc"[b[0]] == winner)
        assert answer.text == f"reasons {first}\n\nThe answer is {winner}"
        assert (answer.info["calls"], answer.info["depth"]) == (1, 1)
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
        (note,) = (r["data"] for r in run["records"] if r["kind"] == "note")
        assert (note["winner"], note["answers"], note["ballots"]) == (winner, ["a", "b", "c"], DIVIDED)


async def test_the_prompt_asks_for_the_list_after_the_question() -> None:
    async with ranked(["a"]) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("ranked_vote(answers=3)-m", "Which one?")
        assert (answer.info["calls"], answer.info["depth"]) == (5, 1)
        assert up.calls[0].last.startswith("Which one?\n\n")
        assert "one to 3 of them" in up.calls[0].last


async def test_everyone_s_second_choice_can_win() -> None:
    async with ranked(["a", "d"], ["b", "d"], ["c", "d"]) as up, serving(up) as proxy:
        answer = await proxy.ask("ranked_vote(method=borda,samples=3)-m", seed=0)
        assert answer.text == "The answer is d"


async def test_without_rankings_the_samples_vote() -> None:
    said = [ranking(0, ["9"]), "The answer is 1", "So the answer is 2", "the answer is 2"]
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        assert (await proxy.ask("ranked_vote(samples=4)-m")).text == "So the answer is 2"


async def test_truncated_rankings_do_not_count() -> None:
    said: list[Reply | str] = [Reply(ranking(0, ["a"]), finish="length"), ranking(1, ["b"])]
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        assert (await proxy.ask("ranked_vote(samples=2)-m")).text == "reasons 1\n\nThe answer is b"


async def test_tool_calls_survive() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = Reply(None, tool_calls=(call,), finish="tool_calls")
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        choice = (await proxy.ask("ranked_vote-m")).json["choices"][0]
        assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([call], "tool_calls")


async def test_first_choices_can_stop_the_sampling() -> None:
    async with ranked(["a", "b"]) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("ranked_vote(samples=20,stop=beta)-m", seed=0)
        assert (len(up.calls), answer.info["samples_saved"]) == (4, 16)


@pytest.mark.parametrize(
    ("field", "value"), [("samples", 0), ("answers", 1), ("answers", 11), ("method", "plurality")]
)
async def test_out_of_range(field: str, value: Any) -> None:
    async with ranked(["a"]) as up, serving(up) as proxy:
        answer = await proxy.ask("ranked_vote-m", **{f"ranked_vote_{field}": value})
        assert (answer.status, answer.error["param"], up.calls) == (400, f"ranked_vote_{field}", [])


async def test_nothing_usable_and_refusals_are_errors() -> None:
    async with ScriptedUpstream(Reply(None)) as up, serving(up) as proxy:
        assert (await proxy.ask("ranked_vote-m")).error["type"] == "upstream_empty"
    async with ScriptedUpstream(refusal(404, "no such model")) as up, serving(up) as proxy:
        assert (await proxy.ask("ranked_vote-m")).status == 404
        assert len(up.calls) == 1


async def test_two_at_once_and_streaming() -> None:
    async with ranked(["a"]) as up, serving(up, n_mode="fanout") as proxy:
        _, _, events = await asyncio.gather(
            proxy.ask("ranked_vote-m", "marker-a", ranked_vote_samples=2),
            proxy.ask("ranked_vote-m", "marker-b", ranked_vote_samples=7),
            proxy.events("ranked_vote-m", "marker-c"),
        )
        assert [len(up.stages(marker=f"marker-{m}")) for m in "abc"] == [2, 7, 5]
        chunks = [json.loads(e) for e in events[:-1]]
        text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
        assert text == "reasons 0\n\nThe answer is a"
