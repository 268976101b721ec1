"""Judges, through ``bon`` and ``mcts``: what they ask, what they cost, whom they prefer."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.fakes import Fault, Said, ScriptedUpstream, Seen
from tests.serving import Answer, serving

pytestmark = pytest.mark.anyio

ROLES = {
    "impartial referee": "compare",
    "verifier who checks": "aspect",
    "strict examiner": "verify",
    "write checklists": "checklist",
    "mark replies": "mark",
}
SAMPLES = ("poor c0", "good c1", "fair c2")
QUALITY = {"poor": 1, "fair": 2, "good": 3}


def shown(call: Seen, mark: str) -> str:
    """The word of quality between the marks of that name."""
    found = re.search(rf"<{mark}-[0-9a-f]+>\n(\w+)", call.last)
    assert found, call.last
    return found[1]


def judged(script: Callable[[Seen], Said]) -> ScriptedUpstream:
    def whole(call: Seen) -> Said:
        return list(SAMPLES) if call.stage == "sample" else script(call)

    return ScriptedUpstream(whole, roles=ROLES)


async def best(up: ScriptedUpstream, model: str = "bon-m", **fields: object) -> Answer:
    async with up, serving(up) as proxy:
        return await proxy.ask(model, "Which one?", **fields)


def referee(call: Seen) -> Said:
    first, second = QUALITY[shown(call, "first")], QUALITY[shown(call, "second")]
    return f"Because.\n**Verdict:** {'first' if first > second else 'second'}"


async def test_pairwise_compares_every_pair_in_both_orders() -> None:
    up = judged(referee)
    answer = await best(up, bon_judge="pairwise")
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("good c1", 1 + 6, 2)
    asked = {(shown(c, "first"), shown(c, "second")) for c in up.of("compare")}
    assert len(asked) == 6


async def test_pairwise_verdicts_that_follow_the_position_are_ties() -> None:
    assert (await best(judged(lambda c: "Verdict: first"), bon_judge="pairwise")).text == "poor c0"


async def test_pairwise_without_verdicts_leaves_the_first() -> None:
    assert (await best(judged(lambda c: "dunno"), bon_judge="pairwise")).text == "poor c0"


async def test_aspects_vote() -> None:
    def verifier(call: Seen) -> Said:
        quality = QUALITY[shown(call, "candidate")]
        return f"Verdict: {'yes' if quality == 3 or (quality == 2 and 'tone' in call.last) else 'no'}"

    up = judged(verifier)
    answer = await best(up, bon_judge="aspects", bon_judge_aspects=["the tone fits", "it is true"])
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("good c1", 1 + 3 * 2, 2)
    up = judged(verifier)
    assert (await best(up, bon_judge="aspects")).info["calls"] == 1 + 3 * 5


async def test_verify_repeats_and_takes_the_share() -> None:
    counted: dict[str, int] = {}

    def examiner(call: Seen) -> Said:
        quality = shown(call, "candidate")
        counted[quality] = counted.get(quality, 0) + 1
        return "Verdict: yes" if counted[quality] <= QUALITY[quality] else "Verdict: no"

    answer = await best(judged(examiner), bon_judge="verify", bon_judge_samples=4)
    assert (answer.text, answer.info["calls"]) == ("good c1", 1 + 3 * 4)
    assert counted == {"poor": 4, "good": 4, "fair": 4}


async def test_verify_checks_five_times_by_default() -> None:
    assert (await best(judged(lambda c: "Verdict: no"), bon_judge="verify")).info["calls"] == 1 + 15


async def test_checklist_is_made_once_and_marked_for_each() -> None:
    def marker(call: Seen) -> Said:
        if call.stage == "checklist":
            return "Here it is:\n1. Is it right?\n2. Is it short?\n3. Is it kind?"
        assert "2. Is it short?" in call.last
        return "\n".join(
            f"{i}: {'yes' if i <= QUALITY[shown(call, 'candidate')] else 'no'}" for i in (1, 2, 3)
        )

    up = judged(marker)
    answer = await best(up, bon_judge="checklist")
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("good c1", 1 + 1 + 3, 3)
    assert len(up.of("checklist")) == 1


@pytest.mark.parametrize("checklist", ["no list at all", Fault(status=500)])
async def test_without_a_checklist_nobody_is_rated(checklist: Said) -> None:
    answer = await best(judged(lambda c: checklist), bon_judge="checklist")
    assert (answer.text, answer.info["calls"]) == ("poor c0", 2)


@pytest.mark.parametrize(
    ("judge", "asks"),
    [("absolute", 1), ("aspects", 5), ("verify", 5), ("checklist", 2)],
)
async def test_mcts_values_nodes_by_another_judge(judge: str, asks: int) -> None:
    def script(call: Seen) -> Said:
        if call.stage == "checklist":
            return "1. Is it right?"
        quality = QUALITY[shown(call, "candidate")]
        return {"rate": f"Score: {quality}", "mark": f"1: {'yes' if quality == 3 else 'no'}"}.get(
            call.stage, f"Verdict: {'yes' if quality == 3 else 'no'}"
        )

    up = judged(script)
    answer = await best(up, f"mcts(judge={judge},simulations=3)-m")
    assert (answer.text, answer.info["calls"]) == ("good c1", 1 + 3 * asks)
    assert up.of("user") == [], "only the dialogue judge reads simulated exchanges"


async def test_mcts_has_no_pair_to_compare() -> None:
    answer = await best(judged(referee), "mcts(judge=pairwise)-m")
    assert (answer.status, answer.error["param"]) == (400, "mcts_judge")
    assert "'dialogue', 'absolute'" in answer.error["message"]


async def test_exact_needs_its_reference() -> None:
    up = judged(referee)
    answer = await best(up, bon_judge="exact")
    assert (answer.status, answer.error["param"]) == (400, "bon_judge_reference")
    assert up.calls == []
