"""Tournament: brackets and leagues as pure functions, and matches in both orders."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.sampling.tournament import fixtures, pairings, win_rates, winner_of
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

ROLES = {"impartial referee": "compare"}


@given(st.permutations(range(9)).flatmap(lambda p: st.integers(2, 9).map(lambda n: p[:n])))
def test_a_knockout_of_n_has_n_minus_1_matches(order: list[int]) -> None:
    standing, played, rounds = list(order), 0, 0
    while len(standing) > 1:
        pairs, byes = pairings(standing)
        assert sorted([*(i for pair in pairs for i in pair), *byes]) == sorted(standing)
        assert len(byes) == len(standing) % 2
        standing = [*(max(pair) for pair in pairs), *byes]
        played, rounds = played + len(pairs), rounds + 1
    assert standing == [max(order)], "the strongest wins from any place"
    assert (played, rounds) == (len(order) - 1, math.ceil(math.log2(len(order))))


@given(st.integers(2, 12), st.integers(1, 12), st.integers())
def test_a_league_gives_everyone_opponents(players: int, opponents: int, seed: int) -> None:
    pairs = fixtures(players, opponents, random.Random(seed))
    assert len(set(pairs)) == len(pairs) <= min(players * opponents, players * (players - 1) // 2)
    assert all(a < b for a, b in pairs)
    for player in range(players):
        assert sum(player in pair for pair in pairs) >= min(opponents, players - 1)


def test_rates_and_ties() -> None:
    assert win_rates(4, {(0, 1): 1.0, (0, 2): 0.5, (1, 2): None}) == [0.75, 0.0, 0.5, None]
    assert [winner_of((3, 1), r) for r in (1.0, 0.0, 0.5, None)] == [3, 1, 1, 1]


def word(call: Seen, mark: str) -> str:
    found = re.search(rf"<{mark}-[0-9a-f]+>\n(\w+)", call.last)
    assert found, call.last
    return found[1]


def referee(call: Seen) -> Said:
    return f"Because.\nVerdict: {'first' if word(call, 'first') > word(call, 'second') else 'second'}"


def rivals(names: str, verdict: Any = referee) -> ScriptedUpstream:
    """Candidates named by a letter each; later letters are better."""

    def script(call: Seen) -> Said:
        if call.stage == "compare":
            said: Said = verdict(call) if callable(verdict) else verdict
            return said
        return [f"{name} says so" for name in names]

    return ScriptedUpstream(script, roles=ROLES)


async def note(proxy: Proxy, answer: Answer) -> dict[str, Any]:
    run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    (found,) = (r["data"] for r in run["records"] if r["kind"] == "note")
    return dict(found)


@pytest.mark.parametrize("names", ["adcb", "abcde", "badfce", "bcdefgha", "ab"])
async def test_the_best_wins_a_knockout(names: str) -> None:
    n = len(names)
    async with rivals(names) as up, serving(up) as proxy:
        answer = await proxy.ask(f"tournament(n={n})-m", seed=7)
        assert answer.text == f"{max(names)} says so"
        depth = 1 + math.ceil(math.log2(n))
        assert (answer.info["calls"], answer.info["depth"]) == (1 + 2 * (n - 1), depth)
        bracket = await note(proxy, answer)
        assert [len(r["matches"]) for r in bracket["rounds"]] == _rounds(n)
        assert names[bracket["winner"]] == max(names)


def _rounds(n: int) -> list[int]:
    return [n // 2, *_rounds(n - n // 2)] if n > 1 else []


async def test_the_bracket_is_drawn_by_the_seed() -> None:
    async with rivals("abcdefgh") as up, serving(up) as proxy:

        async def first_round(seed: int) -> list[tuple[int, int]]:
            bracket = await note(proxy, await proxy.ask("tournament(n=8)-m", seed=seed))
            return [(m["a"], m["b"]) for m in bracket["rounds"][0]["matches"]]

        drawn = [await first_round(seed) for seed in (1, 1, 2, 3)]
        assert drawn[0] == drawn[1]
        assert len({str(d) for d in drawn}) > 1


async def test_each_match_is_played_in_both_orders_as_often_as_asked() -> None:
    async with rivals("abc") as up, serving(up) as proxy:
        answer = await proxy.ask("tournament(n=3,judge_samples=3)-m", "Who is right?")
        asked = [(word(c, "first"), word(c, "second")) for c in up.of("compare")]
        assert len(asked) == 2 * 2 * 3 == answer.info["calls"] - 1
        assert all(asked.count((a, b)) == asked.count((b, a)) == 3 for a, b in set(asked))
        assert all("Who is right?" in c.last for c in up.of("compare"))


@pytest.mark.parametrize(
    "verdict", ["Verdict: first", "Verdict: tie", "dunno", Reply(None), Fault(status=500)]
)
@pytest.mark.parametrize("mode", ["knockout", "league"])
async def test_without_a_real_verdict_the_first_candidate_wins(verdict: Said, mode: str) -> None:
    async with rivals("abcd", verdict) as up, serving(up) as proxy:
        assert (await proxy.ask(f"tournament(mode={mode})-m")).text == "a says so"


async def test_a_league_takes_the_highest_rate() -> None:
    async with rivals("badc") as up, serving(up) as proxy:
        answer = await proxy.ask("tournament(mode=league)-m")
        assert answer.text == "d says so"
        assert (answer.info["calls"], answer.info["depth"]) == (1 + 2 * 6, 2)
        assert (await note(proxy, answer))["rates"] == [1 / 3, 0.0, 1.0, 2 / 3]
        answer = await proxy.ask("tournament(mode=league,n=4,opponents=1)-m", seed=1)
        played = len((await note(proxy, answer))["matches"])
        assert 2 <= played <= 4
        assert answer.info["calls"] == 1 + 2 * played


async def test_fewer_rivals_fewer_matches() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "compare":
            return referee(call)
        return ["b says so", "b says so", Reply("z is cut", finish="length"), Reply(None), "a says so"]

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        answer = await proxy.ask("tournament(n=5)-m")
        assert (answer.text, answer.info["calls"]) == ("b says so", 1 + 2)
    async with rivals("aaaa") as up, serving(up) as proxy:
        assert (await proxy.ask("tournament-m")).info["calls"] == 1


async def test_it_reduces_the_candidates_of_others() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "compare":
            return referee(call)
        return "b by re2" if "again" in call.last else "a by cot"

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        answer = await proxy.ask("(cot_reflection|re2)>tournament-m")
        assert (answer.text, answer.info["calls"]) == ("b by re2", 2 + 2)


async def test_the_worst_case_is_exact() -> None:
    for spec, calls in (
        ("n=6", 6 + 10),
        ("n=6,mode=league,opponents=2", 6 + 24),
        ("n=3,judge_samples=2", 11),
    ):
        async with (
            rivals("abcdef") as up,
            serving(up, n_mode="fanout", max_upstream_calls=calls - 1) as proxy,
        ):
            answer = await proxy.ask(f"tournament({spec})-m")
            assert (answer.status, answer.error["code"], up.calls) == (400, "too_many_calls", [])
            assert f"can take {calls} upstream calls" in answer.error["message"]


@pytest.mark.parametrize("calls", [1, 2, 4, 6])
async def test_a_budget_leaves_a_candidate_still_standing(calls: int) -> None:
    async with rivals("abcd") as up, serving(up) as proxy:
        answer = await proxy.ask("tournament-m", seed=1, optillm_budget={"max_calls": calls})
        assert (answer.status, answer.info["cut_short"], len(up.calls)) == (200, "max_calls", calls)
        assert answer.text in {f"{x} says so" for x in "abcd"}
        if calls == 1:
            assert answer.text == "a says so"


async def test_tool_calls_can_win() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = Reply(None, tool_calls=(call,), finish="tool_calls")

    def script(seen: Seen) -> Said:
        if seen.stage == "compare":
            return f"Verdict: {'first' if '[tool call]' in seen.last.split('</first')[0] else 'second'}"
        return ["a", said]

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        choice = (await proxy.ask("tournament(n=2)-m")).json["choices"][0]
        assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([call], "tool_calls")


async def test_bad_input_and_refusals() -> None:
    async with rivals("ab", refusal(403, "no")) as up, serving(up) as proxy:
        for field, value in (("n", 1), ("opponents", 0), ("mode", "swiss"), ("judge_samples", 33)):
            answer = await proxy.ask("tournament-m", **{f"tournament_{field}": value})
            assert (answer.status, answer.error["param"]) == (400, f"tournament_{field}")
        assert up.calls == []
        assert (await proxy.ask("tournament-m")).status == 403
    async with ScriptedUpstream(Reply(None)) as up, serving(up) as proxy:
        assert (await proxy.ask("tournament-m")).error["type"] == "upstream_empty"


async def test_two_at_once_and_streaming() -> None:
    async with rivals("abcdef") as up, serving(up, n_mode="fanout") as proxy:
        up.script = lambda c: referee(c) if c.stage == "compare" else f"{'abcdef'[c.body['seed']]} says so"
        _, _, events = await asyncio.gather(
            proxy.ask("tournament(n=2)-m", "marker-a", seed=0),
            proxy.ask("tournament(n=5,mode=league,opponents=4)-m", "marker-b", seed=0),
            proxy.events("tournament-m", "marker-c", seed=0),
        )
        assert [len(up.stages(marker=f"marker-{m}")) for m in "abc"] == [4, 25, 10]
        chunks = [json.loads(e) for e in events[:-1]]
        text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
        assert text == "d says so"
