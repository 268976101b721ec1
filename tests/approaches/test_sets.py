"""SETS: chains of verification and correction, and the vote over their ends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

import pytest

from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

ROLES = {"verify answers": "verify"}


def about(call: Seen) -> str:
    """The answer that a verification or correction is about."""
    found = re.search(r"<answer-[0-9a-f]{12}>\n(.*?)\n</answer", call.last, re.S)
    return found[1] if found else ""


def chains(
    samples: str,
    right: Callable[[int], bool] = lambda a: a == 5,
    correct: Callable[[int], Said] | None = None,
) -> ScriptedUpstream:
    """Samples answer with these digits; a correction adds one; a verification knows what is right."""

    def script(call: Seen) -> Said:
        if call.stage == "verify":
            good = right(int(about(call)[-1]))
            return f"Checked {about(call)!r}.\n**Verdict:** {'correct' if good else 'incorrect'}"
        if about(call):
            value = int(about(call)[-1])
            return correct(value) if correct else f"corrected: the answer is {value + 1}"
        first = int(call.body.get("seed", 0))
        return [f"{i}: the answer is {samples[i % len(samples)]}" for i in range(first, first + call.n)]

    return ScriptedUpstream(script, roles=ROLES)


async def test_right_answers_are_left_alone_and_wrong_ones_corrected() -> None:
    async with chains("4153") as up, serving(up) as proxy:
        answer = await proxy.ask("sets(samples=4,rounds=2)-m", "How many?", seed=0)
        # 4 → 5 verified; 1 → 2 → 3; 5; 3 → 4 → 5 not verified again.
        assert answer.text == "corrected: the answer is 5"
        assert len(up.of("verify")) == 2 + 2 + 1 + 2
        corrections = [c for c in up.of("sample") if about(c)]
        assert len(corrections) == 1 + 2 + 0 + 2
        assert (answer.info["calls"], answer.info["depth"]) == (1 + 7 + 5, 5)
        for call in corrections:
            assert call.last.startswith("How many?\n\n")
            assert f"Checked {about(call)!r}." in call.last, "the correction sees its own verification"
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
        (note,) = (r["data"] for r in run["records"] if r["kind"] == "note")
        assert note["votes"] == [{"answer": "5", "samples": [0, 2, 3]}, {"answer": "3", "samples": [1]}]


async def test_all_right_is_one_round() -> None:
    async with chains("5") as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("sets(samples=3)-m")
        assert (answer.info["calls"], answer.info["depth"]) == (3 + 3, 2)


async def test_no_rounds_is_self_consistency() -> None:
    async with chains("122") as up, serving(up) as proxy:
        answer = await proxy.ask("sets(samples=3,rounds=0)-m", seed=0)
        assert (answer.text, answer.info["calls"]) == ("1: the answer is 2", 1)


@pytest.mark.parametrize("said", ["no idea", Reply(None), Fault(status=500)])
async def test_an_unreadable_verdict_ends_the_chain(said: Said) -> None:
    def script(call: Seen) -> Said:
        return said if call.stage == "verify" else "the answer is 1"

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        answer = await proxy.ask("sets(samples=2,rounds=3)-m")
        assert (answer.text, answer.info["calls"]) == ("the answer is 1", 1 + 2)


@pytest.mark.parametrize("said", [Reply(""), Reply("the answer is", finish="length"), Fault(status=500)])
async def test_a_correction_that_fails_is_dropped(said: Said) -> None:
    async with chains("11", correct=lambda a: said) as up, serving(up) as proxy:
        answer = await proxy.ask("sets(samples=2,rounds=3)-m", seed=0)
        assert (answer.text, answer.info["calls"]) == ("0: the answer is 1", 1 + 2 + 2)


async def test_a_truncated_answer_may_be_completed() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "verify":
            return "Verdict: incorrect"
        return "the answer is 5" if about(call) else Reply("the answer", finish="length")

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        choice = (await proxy.ask("sets(samples=2,rounds=1)-m")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("the answer is 5", "stop")


async def test_chains_start_until_their_ends_settle_it() -> None:
    async with chains("45") as up, serving(up) as proxy:
        answer = await proxy.ask("sets(samples=20,stop=beta)-m", seed=0)
        assert answer.text == "corrected: the answer is 5"
        assert [c.n for c in up.calls if c.stage == "sample" and not about(c)] == [4]
        assert (answer.info["samples_saved"], answer.info["depth"]) == (16, 4)


async def test_it_reduces_the_candidates_of_others() -> None:
    async with chains("4") as up, serving(up) as proxy:
        answer = await proxy.ask("(re2|cot_reflection)>sets(rounds=1)-m", seed=0)
        assert answer.text == "corrected: the answer is 5"
        assert answer.info["calls"] == 2 + 2 * 2


async def test_the_worst_case_is_exact() -> None:
    never = chains("1", right=lambda a: False, correct=lambda a: "the answer is 1")
    async with never as up, serving(up, n_mode="fanout", max_upstream_calls=3 + 3 * 4) as proxy:
        answer = await proxy.ask("sets(samples=3,rounds=2)-m")
        assert (answer.info["calls"], answer.info["depth"]) == (15, 5)
        answer = await proxy.ask("sets(samples=4,rounds=2)-m")
        assert (answer.status, answer.error["code"]) == (400, "too_many_calls")
        assert "can take 20 upstream calls" in answer.error["message"]


@pytest.mark.parametrize("calls", range(1, 13, 2))
async def test_a_budget_leaves_the_answers_as_they_are(calls: int) -> None:
    async with chains("4153") as up, serving(up) as proxy:
        answer = await proxy.ask("sets(samples=4)-m", seed=0, optillm_budget={"max_calls": calls})
        assert (answer.status, answer.info["cut_short"], len(up.calls)) == (200, "max_calls", calls)
        assert re.search(r"the answer is \d$", answer.text)


async def test_another_model_may_verify_and_tools_stay_with_answers() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with chains("4") as up, serving(up) as proxy:
        await proxy.ask("sets(samples=1,verify_model=judge,verify_temperature=0)-m", tools=tools, seed=0)
        assert {c.body["model"] for c in up.of("verify")} == {"judge"}
        assert {c.body["temperature"] for c in up.of("verify")} == {0}
        assert all(("tools" in c.body) == (c.stage == "sample") for c in up.calls)


async def test_tool_calls_survive() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = Reply(None, tool_calls=(call,), finish="tool_calls")

    def script(seen: Seen) -> Said:
        return "Verdict: correct" if seen.stage == "verify" else said

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        choice = (await proxy.ask("sets-m")).json["choices"][0]
        assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([call], "tool_calls")
        assert '[tool call] {"name":"look"' in up.of("verify")[0].last


async def test_bad_input_and_refusals() -> None:
    async with ScriptedUpstream(refusal(401, "no such key"), roles=ROLES) as up, serving(up) as proxy:
        for field, value in (("samples", 0), ("rounds", 9), ("rounds", -1), ("stop", "soon")):
            answer = await proxy.ask("sets-m", **{f"sets_{field}": value})
            assert (answer.status, answer.error["param"]) == (400, f"sets_{field}")
        assert up.calls == []
        assert (await proxy.ask("sets-m")).status == 401
    async with ScriptedUpstream(Reply(None), roles=ROLES) as up, serving(up) as proxy:
        assert (await proxy.ask("sets-m")).error["type"] == "upstream_empty"


async def test_two_at_once_and_streaming() -> None:
    async with chains("5") as up, serving(up, n_mode="fanout") as proxy:
        _, _, events = await asyncio.gather(
            proxy.ask("sets(samples=2)-m", "marker-a", seed=0),
            proxy.ask("sets(samples=6)-m", "marker-b", seed=0),
            proxy.events("sets-m", "marker-c", seed=0),
        )
        assert [len(up.stages(marker=f"marker-{m}")) for m in "abc"] == [4, 12, 10]
        chunks = [json.loads(e) for e in events[:-1]]
        text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
        assert text == "0: the answer is 5"
