"""Self-consistency: the acceptance cases of its specification."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import Reply, Said, ScriptedUpstream, Seen
from tests.serving import serving

pytestmark = pytest.mark.anyio

LONG = "We add the numbers one after another, and check the sum twice. " * 20


def samples(*texts: Reply | str) -> ScriptedUpstream:
    return ScriptedUpstream(list(texts))


async def vote(up: ScriptedUpstream, k: int, **fields: object) -> str:
    async with up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency-test-model", sc_samples=k, **fields)
        assert answer.status == 200, answer.json
        return answer.text


async def test_answers_vote_not_texts() -> None:
    texts = [f"{LONG}The answer is {a}" for a in ("8", "9", "9.0")]
    assert await vote(samples(*texts), 3) == texts[1]


async def test_forms_of_a_number_are_one_answer() -> None:
    answers = ("18", "$18.00", "17", "17", "18 dollars")
    texts = [f"{i}. The answer is {a}" for i, a in enumerate(answers)]
    assert await vote(samples(*texts), 5) == texts[0]


async def test_tie_goes_to_the_lowest_index() -> None:
    texts = [f"{i}: The answer is {a}" for i, a in enumerate("ABBAC")]
    assert await vote(samples(*texts), 5) == texts[0]


async def test_truncated_sample_has_no_vote_but_its_tokens_count() -> None:
    up = samples(Reply("The answer is 1", finish="length"), "The answer is 2", "So the answer is 2")
    async with up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency-test-model", sc_samples=3)
        assert answer.text == "The answer is 2"
        assert answer.json["usage"]["completion_tokens"] == 4 + 4 + 5


async def test_nothing_usable_is_an_error() -> None:
    async with samples(Reply(None)) as up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency-test-model")
        assert (answer.status, answer.error["type"]) == (502, "upstream_empty")


async def test_free_text_is_clustered_by_similarity() -> None:
    a = "The sea was calm and blue, and gulls cried over the little boats near the old harbour wall."
    b = "In winter the mountain village lies silent under deep snow while smoke rises from the chimneys."
    assert await vote(samples(a, b, b.replace("deep", "thick")), 3) == b


async def test_a_model_may_select() -> None:
    def script(call: Seen) -> Said:
        return "They agree.\nChoice: 2" if call.stage == "select" else ["x one", "y two", "z three"]

    up = ScriptedUpstream(script)
    async with up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency-test-model", sc_samples=3, sc_mode="llm")
        assert answer.text == "y two"
        assert (answer.info["calls"], answer.info["depth"]) == (2, 2)


@pytest.mark.parametrize("choice", ["Choice: 9", "none of them", ""])
async def test_an_unreadable_selection_falls_back(choice: str) -> None:
    def script(call: Seen) -> Said:
        return Reply(choice) if call.stage == "select" else ["one", "two", "two"]

    assert await vote(ScriptedUpstream(script), 3, sc_mode="llm") == "two"


async def test_five_samples_of_an_upstream_without_n_run_at_once() -> None:
    async with ScriptedUpstream("The answer is 1") as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("self_consistency-test-model")
        assert (len(up.calls), answer.info["depth"]) == (5, 1)


async def test_two_at_once_each_with_its_own_samples() -> None:
    async with ScriptedUpstream("The answer is 1") as up, serving(up, n_mode="fanout") as proxy:
        a, b = await asyncio.gather(
            proxy.ask("self_consistency-test-model", "marker-a", sc_samples=3),
            proxy.ask("self_consistency-test-model", "marker-b", sc_samples=7),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 7)
        assert (a.info["depth"], b.info["depth"]) == (1, 1)


async def test_votes_are_in_the_trace() -> None:
    async with samples("The answer is 1", "The answer is 2", "Answer: 2") as up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency-test-model", sc_samples=3)
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
        note = next(r for r in run["records"] if r["kind"] == "note")
        assert note["data"]["votes"] == [{"answer": "1", "samples": [0]}, {"answer": "2", "samples": [1, 2]}]


ROOTS = (r"2\sqrt{2}", "5", "5", r"\sqrt{8}", r"\frac{4}{\sqrt{2}}")
SETS = (r"\{1, 2\}", "7", "7", r"\{2, 1\}", r"\{2,1\}")


@pytest.mark.parametrize(
    ("answers", "wins"),
    [
        (("3x", "2^{11}", "3y", "2^{10}", "1024"), 3),
        (("3x", "3y", "3*x"), 0),
        (("x^2+2", "x^2+1", "1+x^2"), 1),
        (("(1,2)", "(2,1)", r"\left(2, 1\right)"), 1),
    ],
)
async def test_other_mathematics_is_another_answer(answers: tuple[str, ...], wins: int) -> None:
    """Formulas without a backslash are formulas too, not texts with a number in them."""
    texts = [rf"{i}. \boxed{{{a}}}" for i, a in enumerate(answers)]
    async with samples(*texts) as up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency-m", sc_samples=len(texts))
        assert answer.text == texts[wins]


@pytest.mark.parametrize("answers", [ROOTS, SETS], ids=["roots", "sets"])
@pytest.mark.parametrize("sandbox", ["auto", "off"])
async def test_the_same_mathematics_is_one_answer(answers: tuple[str, ...], sandbox: str) -> None:
    """By math-verify, which runs in the sandbox; without one, other writings are other answers."""
    texts = [rf"{i}. \boxed{{{a}}}" for i, a in enumerate(answers)]
    async with samples(*texts) as up, serving(up, sandbox=sandbox) as proxy:
        answer = await proxy.ask("self_consistency-m", sc_samples=5)
        assert answer.info["calls"] == 1
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    (votes,) = (r["data"]["votes"] for r in run["records"] if r["kind"] == "note" and r["name"] == "sc.votes")
    told = [r["data"] for r in run["records"] if r.get("name") == "mathematics.not_compared"]
    assert [set(answers) - set(t["answers"]) for t in told] == ([set()] if sandbox == "off" else [])
    if sandbox == "off":
        assert answer.text in (texts[1], texts[3])
        assert [1, 2] in [v["samples"] for v in votes]
    else:
        assert answer.text == texts[0]
        assert [v["samples"] for v in votes] == [[0, 3, 4], [1, 2]]
