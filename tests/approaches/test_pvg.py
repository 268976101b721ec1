"""Prover-verifier game: the acceptance cases of its specification, and what must never happen."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.sampling.pvg import Rated, accept
from optillm.core.reply import Reply as CoreReply
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, serving

ROLES = {
    "Solve what you are asked correctly": "helpful",
    "test cases for a checker": "sneaky",
    "You verify solutions": "verify",
    "coach solvers": "refine",
}
QUESTION = "How many primes are below 100?"


def solution(call: Seen) -> str:
    found = re.search(r"<solution-[0-9a-f]+>\n(.*?)\n</solution-", call.text, re.S)
    assert found
    return found[1]


def game(
    scores: Mapping[str, str],
    helpful: Callable[[int], Said] = lambda r: f"H{r}",
    sneaky: Callable[[int], Said] = lambda r: f"Z{r}",
    refine: Said = "check the small primes",
) -> ScriptedUpstream:
    """A game by rounds, told by temperature; a score for each solution by its text."""

    def script(call: Seen) -> Said:
        if call.stage == "verify":
            return scores[solution(call)]
        if call.stage == "refine":
            return refine
        number = round((0.7 - call.body["temperature"]) * 10)
        return helpful(number) if call.stage == "helpful" else sneaky(number)

    return ScriptedUpstream(script, roles=ROLES)


async def play(up: ScriptedUpstream, **fields: Any) -> Answer:
    async with up, serving(up, n_mode=fields.pop("n_mode", "auto")) as proxy:
        return await proxy.ask("pvg-test-model", fields.pop("question", QUESTION), **fields)


ONE = {"pvg_rounds": 1, "pvg_solutions": 1}
TWO = {"pvg_rounds": 2, "pvg_solutions": 1}


@pytest.mark.anyio
async def test_a_sneaky_solution_never_wins() -> None:
    up = game({"H0": "Score: 6", "Z0": "Score: 9"})
    answer = await play(up, **ONE)
    assert answer.text == "H0"
    assert up.stages() == ["helpful", "sneaky", "verify", "verify"]
    assert (answer.info["calls"], answer.info["depth"]) == (4, 2)


@pytest.mark.anyio
async def test_accepted_beats_unaccepted() -> None:
    up = game({"H0": "Score: 8", "Z0": "Score: 9", "H1": "Score: 7", "Z1": "Score: 3"})
    answer = await play(up, **TWO)
    assert answer.text == "H1"
    assert (answer.info["calls"], answer.info["depth"]) == (9, 5)


def defaults(call: Seen) -> Said:
    if call.stage == "verify":
        return "Score: 5\nExplanation: plausible"
    return "points" if call.stage == "refine" else [f"{call.stage} {i}" for i in range(call.n)]


@pytest.mark.anyio
@pytest.mark.parametrize(("n_mode", "calls"), [("native", 17), ("fanout", 25)])
async def test_defaults(n_mode: str, calls: int) -> None:
    up = ScriptedUpstream(defaults, roles=ROLES)
    answer = await play(up, n_mode=n_mode)
    assert (answer.info["calls"], answer.info["depth"]) == (calls, 5)
    assert all(QUESTION in c.text for c in up.calls)
    assert all("helpful" not in c.system and "sneaky" not in c.text for c in up.of("helpful"))
    assert not any(word in c.system for c in up.of("verify") for word in ("helpful", "sneaky", "forger"))


@pytest.mark.anyio
async def test_worst_case_is_the_formula() -> None:
    async with ScriptedUpstream(defaults, roles=ROLES) as up:
        for n_mode, worst in (("native", 17), ("fanout", 25)):
            async with serving(up, n_mode=n_mode, max_upstream_calls=worst - 1) as proxy:
                refused = await proxy.ask("pvg-test-model")
                assert (refused.status, refused.error["code"]) == (400, "too_many_calls")
                assert f"can take {worst} " in refused.error["message"]
        assert up.calls == []


@pytest.mark.anyio
@pytest.mark.parametrize("refine", [Reply(None), Fault(status=500)])
async def test_without_points_the_next_round_has_its_question(refine: Said) -> None:
    up = game({f"{p}{r}": "5" for p in "HZ" for r in range(2)}, refine=refine)
    answer = await play(up, **TWO)
    assert answer.status == 200
    later = [c for c in up.of("helpful") if c.body["temperature"] == 0.6]
    assert len(later) == 1
    assert later[0].last == QUESTION
    assert "<hints-" not in later[0].text


@pytest.mark.anyio
async def test_points_go_to_the_helpful_prover_alone_and_never_replace_the_question() -> None:
    up = game({"H0": "Score: 4\nExplanation: forgot 2", "Z0": "1", "H1": "5", "Z1": "1"})
    await play(up, **TWO)
    refine = up.of("refine")[0]
    assert QUESTION in refine.text
    assert "\nH0\n" in refine.text
    assert "\nforgot 2\n</verdict-" in refine.text
    for call in up.calls:
        hinted = "check the small primes" in call.text
        assert hinted == (call.stage == "helpful" and call.body["temperature"] == 0.6)
        assert call.stage in ("verify", "refine") or call.last == QUESTION


@pytest.mark.anyio
async def test_forgeries_are_shown_to_the_verifier_of_the_next_round() -> None:
    scores = {"H0": "6", "H1": "7"} | {f"Z{i}": f"Score: {s}" for i, s in enumerate((5, 7, 6, 9))}
    up = game(scores, lambda r: f"H{r}", lambda r: ["Z0", "Z1", "Z2", "Z3"] if r == 0 else ["Z0"])
    await play(up, pvg_rounds=2, pvg_solutions=4)
    shown = [re.findall(r"<wrong-solution-\w+>\n(\w+)\n", c.text) for c in up.of("verify")]
    # The helpful solutions are equal texts, and all are rated: 8 in each round.
    assert shown[:8] == [[]] * 8
    assert shown[8:] == [["Z3", "Z1"]] * 8


@pytest.mark.anyio
async def test_an_unreadable_rating_ranks_last_and_a_marked_up_one_is_read() -> None:
    def helpful(number: int) -> Said:
        return ["A", "B", "C"]

    scores = {"A": "great", "B": "**Score:** 8", "C": "Score: 85", "Z0": "great"}
    up = game(scores, helpful)
    answer = await play(up, pvg_rounds=1)
    assert answer.text == "B"
    run = answer.info
    assert run["calls"] == 2 + 6


@pytest.mark.anyio
@pytest.mark.parametrize("sneaky", [refusal(400, "content policy"), Fault(status=500), Reply("")])
async def test_without_sneaky_solutions_the_game_goes_on(sneaky: Said) -> None:
    up = game({"H0": "4", "H1": "5"}, sneaky=lambda r: sneaky)
    answer = await play(up, **TWO)
    assert (answer.status, answer.text) == (200, "H1")
    assert len(up.of("verify")) == 2


@pytest.mark.anyio
async def test_a_refusal_reaches_the_client() -> None:
    answer = await play(ScriptedUpstream(refusal(401, "bad key"), roles=ROLES))
    assert answer.status == 401


@pytest.mark.anyio
async def test_no_helpful_solution_is_an_error_whatever_sneaky_ones_there_are() -> None:
    up = game({"Z0": "9", "Z1": "9"}, helpful=lambda r: Reply(""))
    answer = await play(up, **TWO)
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_a_round_that_fails_keeps_what_there_was() -> None:
    up = game({"H0": "5", "Z0": "4", "Z1": "1"}, helpful=lambda r: Fault(status=500) if r else "H0")
    answer = await play(up, **TWO)
    assert (answer.status, answer.text) == (200, "H0")


@pytest.mark.anyio
async def test_cut_off_solutions_count_only_if_there_is_no_other() -> None:
    cut = Reply("H0", finish="length")
    up = game({"H0": "10", "Z0": "1", "H1": "2", "Z1": "1"}, helpful=lambda r: "H1" if r else cut)
    assert (await play(up, **TWO)).text == "H1"
    choice = (await play(game({"H0": "10", "Z0": "1"}, helpful=lambda r: cut), **ONE)).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("H0", "length")


@pytest.mark.anyio
async def test_a_tool_call_may_win() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"n": 100}'}}
    tool = Reply(None, finish="tool_calls", tool_calls=(call,))
    scores = {'[tool call] {"name":"look","arguments":"{\\"n\\": 100}"}': "9", "Z0": "1"}
    up = game(scores, helpful=lambda r: tool)
    answer = await play(
        up, **ONE, return_full_response=True, tools=[{"type": "function", "function": {"name": "look"}}]
    )
    assert answer.json["choices"][0]["message"]["tool_calls"] == [call]
    assert [c.stage for c in up.calls if "tools" in c.body] == ["helpful"]


@pytest.mark.anyio
async def test_verifier_model_and_full_response() -> None:
    up = game({"H0": "Score: 7.5\n**Explanation:** holds\nup", "Z0": "1"})
    answer = await play(up, **ONE, pvg_verifier_model="small", return_full_response=True)
    assert answer.text == "H0\n\nVerifier's score: 7.5 of 10\nholds\nup"
    assert sorted(c.body["model"] for c in up.calls) == ["small", "small", "test-model", "test-model"]


@pytest.mark.anyio
async def test_usage_is_the_same_for_the_same_request() -> None:
    async with ScriptedUpstream(defaults, roles=ROLES) as up, serving(up) as proxy:
        first, second = [await proxy.ask("pvg-test-model", seed=4) for _ in range(2)]
        assert first.json["usage"] == second.json["usage"]
        assert first.json["usage"]["prompt_tokens"] * 2 == sum(len(c.text.split()) for c in up.calls)


@pytest.mark.anyio
@pytest.mark.parametrize("most", range(1, 9))
async def test_a_budget_of_calls_that_ends_anywhere(most: int) -> None:
    up = game({"H0": "4", "Z0": "9", "H1": "5", "Z1": "1"})
    answer = await play(up, **TWO, optillm_budget={"max_calls": most})
    assert (answer.status, answer.info["cut_short"]) == (200, "max_calls")
    assert answer.text in ("H0", "H1")
    assert len(up.calls) == answer.info["calls"] == most


@pytest.mark.anyio
async def test_a_budget_that_ends_when_only_sneaky_solutions_are_there() -> None:
    """The sneaky solution comes while the helpful one is still being written, and spends everything."""
    asked = asyncio.Event()

    async def script(call: Seen) -> Said:
        if call.stage == "helpful":
            asked.set()
            await asyncio.Event().wait()
        await asked.wait()
        return Reply("Z", usage={"completion_tokens": 10_000})

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        answer = await proxy.ask("pvg-test-model", **ONE, optillm_budget={"max_tokens": 5_000})
        assert (answer.status, answer.error["code"]) == (400, "max_tokens")
        await up.until(lambda: up.in_flight == 0)
        assert sorted(c.outcome for c in up.calls) == ["answered", "cancelled"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pvg_rounds", 0),
        ("pvg_rounds", 9),
        ("pvg_solutions", 17),
        ("pvg_solutions", "3"),
        ("pvg_rounds", 1.5),
    ],
)
async def test_parameters_out_of_range(name: str, value: Any) -> None:
    up = ScriptedUpstream(defaults, roles=ROLES)
    answer = await play(up, **{name: value})
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, name, 0)


@pytest.mark.anyio
async def test_an_upstream_that_ignores_n() -> None:
    async with ScriptedUpstream(defaults, n_mode="ignore", roles=ROLES) as up, serving(up) as proxy:
        for _ in range(2):
            assert (await proxy.ask("pvg-test-model", pvg_rounds=1)).info["calls"] == 6 + 6


@pytest.mark.anyio
async def test_streaming_gives_the_same_answer() -> None:
    up = game({"H0": "6", "Z0": "9"})
    async with up, serving(up) as proxy:
        chunks = [json.loads(e) for e in (await proxy.events("pvg-test-model", **ONE))[:-1]]
        assert "".join(c["delta"].get("content", "") for k in chunks for c in k["choices"]) == "H0"


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_game() -> None:
    async with ScriptedUpstream(defaults, roles=ROLES) as up, serving(up, n_mode="native") as proxy:
        a, b = await asyncio.gather(
            proxy.ask("pvg-test-model", "marker-a", pvg_rounds=1, pvg_solutions=2),
            proxy.ask("pvg-test-model", "marker-b", pvg_rounds=2, pvg_solutions=3),
        )
        for answer, marker, calls in ((a, "marker-a", 6), (b, "marker-b", 17)):
            own = [c for c in up.calls if marker in c.text]
            assert answer.info["calls"] == len(own) == calls
            assert answer.json["usage"]["prompt_tokens"] == sum(len(c.text.split()) for c in own)


scores_of = st.lists(st.none() | st.floats(0, 10), max_size=5)


def rated(scores: Sequence[float | None]) -> list[Rated]:
    return [Rated(CoreReply.of(str(i)), s, "", 0, i) for i, s in enumerate(scores)]


@given(scores_of, scores_of)
def test_acceptance_of_a_round(helpful: list[float | None], sneaky: list[float | None]) -> None:
    judged, forgeries = accept(rated(helpful), rated(sneaky))
    known = [s for s in sneaky if s is not None]
    best = max((s for s in helpful if s is not None), default=None)
    assert [j.score for j in judged] == helpful
    for j in judged:
        assert j.accepted == (j.score is not None and all(j.score > s for s in known))
    assert [f.score for f in forgeries] == [s for s in known if best is None or s >= best]
    ranked = sorted(judged, key=lambda j: j.rank, reverse=True)
    assert all(a.accepted or not b.accepted for a, b in pairwise(ranked))
