"""Principles from mistakes: the acceptance cases of its specification, and faults at every step."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from optillm.approaches.prompting.leap import Example, mistakes_in, parse_examples
from optillm.core.reply import Reply as CoreReply
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, serving

ROLES = {
    "worked examples in prompts": "extract",
    "solve practice questions": "attempt",
    "general lessons from mistakes": "low",
    "condense lessons": "high",
}
QUESTION = "Q: 1+1?\nA: 2\nQ: 2+3?\nA: 5\nQ: 7+7?\nA:"
FOUND = '<output>[{"question": "1+1?", "answer": "2"}, {"question": "2+3?", "answer": "5"}]</output>'


def says(*answers: str) -> Said:
    return [f"I think so. <output>{a}</output>" for a in answers]


def learner(
    extract: Said = FOUND,
    attempts: tuple[Said, ...] = (says("2", "2", "3"), says("5", "5", "5")),
    low: Said = "Because. <output>carry the one</output>",
    high: Said = "<output>1. check sums\n2. go slowly</output>",
    apply: Said = "14",
) -> ScriptedUpstream:
    """Attempts by example, in the order of the examples above."""

    def script(call: Seen) -> Said:
        said = {"extract": extract, "low": low, "high": high, "sample": apply}
        if call.stage == "attempt":
            return attempts[0 if "1+1?" in call.text else 1]
        return said[call.stage]

    return ScriptedUpstream(script, roles=ROLES)


async def ask(up: ScriptedUpstream, **fields: Any) -> Answer:
    async with up, serving(up, n_mode=fields.pop("n_mode", "auto")) as proxy:
        return await proxy.ask("leap-test-model", fields.pop("question", QUESTION), **fields)


def applied(up: ScriptedUpstream) -> Seen:
    (call,) = up.of("sample")
    return call


@pytest.mark.anyio
async def test_without_examples() -> None:
    up = learner(extract="[]")
    answer = await ask(up, question="What is 7+7?")
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("14", 2, 2)
    assert applied(up).messages == [{"role": "user", "content": "What is 7+7?"}]


@pytest.mark.anyio
async def test_one_mistake() -> None:
    up = learner()
    answer = await ask(up)
    assert answer.text == "14"
    assert up.stages() == ["attempt", "attempt", "extract", "high", "low", "sample"]
    assert (answer.info["calls"], answer.info["depth"]) == (6, 5)
    assert "1. check sums\n2. go slowly\n</principles-" in applied(up).system
    assert applied(up).messages[-1] == {"role": "user", "content": QUESTION}
    low = up.of("low")[0]
    for shown in ("\n1+1?\n", "\nI think so. <output>3</output>\n", "\n3\n", "\n2\n"):
        assert shown in low.last
    assert "\ncarry the one\n" in up.of("high")[0].last


@pytest.mark.anyio
async def test_attempts_do_not_see_the_answer() -> None:
    up = learner()
    await ask(up, leap_mistake_temperature=0.4, leap_samples=2, seed=7, stop=["x"], n_mode="fanout")
    attempts = up.of("attempt")
    assert all("A: 2" not in c.text and QUESTION not in c.text for c in attempts)
    assert sorted((c.last.count("1+1?"), c.body["seed"]) for c in attempts) == [
        (0, 7),
        (0, 8),
        (1, 7),
        (1, 8),
    ]
    assert {c.body["temperature"] for c in attempts} == {0.4}
    assert [c.stage for c in up.calls if "stop" in c.body] == ["sample"]


@pytest.mark.anyio
async def test_without_mistakes_nothing_is_learned() -> None:
    up = learner(attempts=(says("2", "2", "2"), says("5", "5.0", "The answer is 5")))
    answer = await ask(up)
    assert up.stages() == ["attempt", "attempt", "extract", "sample"]
    assert (answer.info["calls"], answer.info["depth"]) == (4, 3)
    assert len(applied(up).messages) == 1


@pytest.mark.anyio
async def test_an_integer_as_right_answer() -> None:
    up = learner(extract='<output>[{"question": "2+3?", "answer": 5}]</output>', attempts=("", says("5.")))
    assert (await ask(up)).info["calls"] == 3


@pytest.mark.parametrize(
    ("text", "examples"),
    [
        ('Sure:\n```json\n[["1+1", "2"]]\n```', [("1+1", "2")]),
        ('<output>\n```\n[{"question": "1+1", "answer": 2}]\n```\n</output>', [("1+1", "2")]),
        ('<output>[]</output> or <output>[["a", "b"], ["c"], 3, {"question": "q"}]</output>', [("a", "b")]),
        ('[{"question": " q ", "answer": [1, 2]}, {"question": "", "answer": "x"}]', [("q", "[1,2]")]),
        ('[{"question": "q", "answer": null}]', []),
        ('{"question": "q", "answer": "a"}', []),
        ('<output>[{"question": "q", "ans', []),
        ("no examples", []),
        ("[" * 5000, []),
        ("", []),
    ],
)
def test_parsing_examples(text: str, examples: list[tuple[str, str]]) -> None:
    assert parse_examples(text) == [Example(q, a) for q, a in examples]


@pytest.mark.anyio
@pytest.mark.parametrize("extract", ['```json\n[["1+1?", "2"]]\n```', '[["1+1?", "2"]]'])
async def test_other_forms_of_examples(extract: str) -> None:
    up = learner(extract=extract)
    assert (await ask(up)).info["calls"] == 1 + 1 + 1 + 1 + 1


def test_which_attempts_are_mistakes() -> None:
    example = Example("q", "First this, then that.\nThe answer is 18.")
    texts = ["<output>18 dollars</output>", "<output>$18.00</output>", "The answer is 17", "x" * 50]
    texts += ["<output>17.0</output>", "<output>\\boxed{16}</output>", "", "<output></output>"]
    wrong = mistakes_in(example, [CoreReply.of(t) for t in texts], 5)
    assert [m.answer for m in wrong] == ["17", "16"]
    assert len(mistakes_in(example, [CoreReply.of(t) for t in texts], 1)) == 1
    assert mistakes_in(example, [CoreReply.of("The answer is 17", "length")], 5) == []


@pytest.mark.anyio
async def test_several_mistakes_per_example() -> None:
    up = learner(attempts=(says("3", "4", "3"), says("5", "6", "7")))
    answer = await ask(up, leap_mistakes_per_example=2)
    assert answer.info["calls"] == 3 + 2 + 4
    assert len(up.of("low")) == 4


@pytest.mark.anyio
async def test_most_examples_and_principles() -> None:
    up = learner(attempts=(says("3"), says("6")), high="<output>1. a\n2. b\n3. c</output>")
    await ask(up, leap_max_examples=1, leap_max_principles=2)
    assert len(up.of("attempt")) == 1
    assert "1. a\n2. b\n</principles-" in applied(up).system


@pytest.mark.anyio
async def test_induced_mistakes() -> None:
    up = learner(attempts=(says("3"), says("6")))
    answer = await ask(up, leap_mode="induced", leap_samples=9)
    assert answer.info["calls"] == 3 + 2 + 2
    assert all("make a mistake" in c.last and c.n == 1 for c in up.of("attempt"))


@pytest.mark.anyio
@pytest.mark.parametrize("high", [Reply("<output>1. ch", finish="length"), Reply(""), Fault(status=503)])
async def test_without_high_level_principles_the_low_level_ones_serve(high: Said) -> None:
    up = learner(high=high)
    answer = await ask(up)
    assert (answer.status, answer.text) == (200, "14")
    assert "1. carry the one\n</principles-" in applied(up).system


@pytest.mark.anyio
@pytest.mark.parametrize("low", [Reply(""), Reply("<output></output>"), Fault(status=500)])
async def test_without_lessons(low: Said) -> None:
    up = learner(low=low)
    answer = await ask(up)
    assert (answer.status, answer.text) == (200, "14")
    assert ("principles" in applied(up).system) == (low == Reply("<output></output>"))


@pytest.mark.anyio
async def test_a_lesson_without_its_tag_is_taken_whole() -> None:
    up = learner(low="<think>hm</think>carry on", high=Reply(""))
    await ask(up)
    assert "1. carry on\n</principles-" in applied(up).system


@pytest.mark.anyio
@pytest.mark.parametrize("extract", [Reply(FOUND[:-15], finish="length"), Reply(None), Fault(status=500)])
async def test_examples_that_cannot_be_had(extract: Said) -> None:
    up = learner(extract=extract)
    answer = await ask(up)
    assert (answer.status, answer.text, len(up.calls)) == (200, "14", 2)


@pytest.mark.anyio
async def test_failed_attempts_are_left_out() -> None:
    up = learner(attempts=(Fault(status=500), says("6", "5", "5")))
    answer = await ask(up)
    assert answer.info["calls"] == 6
    assert "\n6\n" in up.of("low")[0].last


@pytest.mark.anyio
@pytest.mark.parametrize("stage", ["extract", "low", "high", "apply"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    refused: Any = {stage: refusal(403, "no")}
    assert (await ask(learner(**refused))).status == 403


@pytest.mark.anyio
async def test_what_the_answer_may_be() -> None:
    answer = await ask(learner(apply=Reply("")))
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")
    choice = (await ask(learner(apply=Reply("1", finish="length")))).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("1", "length")
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    tool = Reply(None, finish="tool_calls", tool_calls=(call,))
    choice = (await ask(learner(apply=tool), return_full_response=True)).json["choices"][0]
    assert choice["message"]["tool_calls"] == [call]
    assert (await ask(learner(apply="<output>14</output>"))).text == "<output>14</output>"


@pytest.mark.anyio
async def test_full_response_shows_the_principles() -> None:
    answer = await ask(learner(), return_full_response=True)
    assert answer.text == "14\n\nPrinciples:\n1. check sums\n2. go slowly"
    assert (await ask(learner(extract="[]"), return_full_response=True)).text == "14"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("most", "stages"),
    [
        (1, ["sample"]),
        (2, ["extract", "sample"]),
        (3, ["attempt", "extract", "sample"]),
        (4, ["attempt", "attempt", "extract", "sample"]),
        (5, ["attempt", "attempt", "extract", "low", "sample"]),
    ],
)
async def test_the_last_call_of_a_budget_is_the_answer(most: int, stages: list[str]) -> None:
    up = learner()
    answer = await ask(up, optillm_budget={"max_calls": most})
    assert (answer.status, answer.text, up.stages()) == (200, "14", stages)
    assert answer.info["cut_short"] == "max_calls"
    assert answer.info["calls"] == most


@pytest.mark.anyio
async def test_a_budget_that_is_enough_cuts_nothing() -> None:
    up = learner()
    answer = await ask(up, optillm_budget={"max_calls": 6})
    assert "cut_short" not in answer.info
    assert answer.info["calls"] == 6


@pytest.mark.anyio
async def test_attempts_at_examples_are_never_the_answer() -> None:
    up = learner(attempts=(Reply("<output>3</output>", usage={"completion_tokens": 9_999}),) * 2)
    answer = await ask(up, optillm_budget={"max_tokens": 5_000})
    assert (answer.status, answer.error["code"]) == (400, "max_tokens")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("leap_samples", 16),
        ("leap_mistakes_per_example", 0),
        ("leap_max_examples", 33),
        ("leap_max_principles", 21),
        ("leap_mode", "staged"),
        ("leap_mistake_temperature", 3),
    ],
)
async def test_parameters_out_of_range(name: str, value: Any) -> None:
    up = learner()
    answer = await ask(up, **{name: value})
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, name, 0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("n_mode", "fields", "worst"),
    [
        ("native", {}, 3 + 8 * 2),
        ("fanout", {}, 3 + 8 * 4),
        ("fanout", {"leap_mistakes_per_example": 5}, 3 + 8 * 6),
        ("fanout", {"leap_mode": "induced", "leap_max_examples": 2}, 3 + 2 * 2),
    ],
)
async def test_worst_case(n_mode: str, fields: dict[str, Any], worst: int) -> None:
    async with learner() as up, serving(up, n_mode=n_mode, max_upstream_calls=worst - 1) as proxy:
        refused = await proxy.ask("leap-test-model", **fields)
        assert f"can take {worst} " in refused.error["message"]
        assert up.calls == []


@pytest.mark.anyio
async def test_the_worst_case_happens() -> None:
    up = learner(attempts=(says("3"), says("6")))
    answer = await ask(up, n_mode="fanout", leap_max_examples=2)
    assert answer.info["calls"] == 3 + 2 * 4


@pytest.mark.anyio
async def test_the_answer_streams_live() -> None:
    async with learner(apply="fourteen it is") as up, serving(up) as proxy:
        chunks = [json.loads(e) for e in (await proxy.events("leap-test-model", QUESTION))[:-1]]
        pieces = [c["delta"].get("content") for k in chunks for c in k["choices"]]
        assert "".join(p or "" for p in pieces) == "fourteen it is"
        assert len([p for p in pieces if p]) > 1
        assert applied(up).body["stream"] is True
        chunks = [
            json.loads(e)
            for e in (await proxy.events("leap-test-model", QUESTION, return_full_response=True))[:-1]
        ]
        text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
        assert text == "fourteen it is\n\nPrinciples:\n1. check sums\n2. go slowly"


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_samples() -> None:
    def script(call: Seen) -> Said:
        marker = "marker-a" if "marker-a" in call.text else "marker-b"
        said = {
            "extract": f'[["{marker} 1+1?", "2"]]',
            "attempt": f"{marker} <output>3</output>",
            "low": f"{marker} lesson",
            "high": f"1. {marker} principle",
        }
        return said.get(call.stage, f"{marker} answer")

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up, n_mode="fanout") as proxy:
        a, b = await asyncio.gather(
            proxy.ask("leap-test-model", "marker-a", leap_samples=1),
            proxy.ask("leap-test-model", "marker-b", leap_samples=4),
        )
        assert (a.text, b.text) == ("marker-a answer", "marker-b answer")
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (5, 8)
        assert (a.info["calls"], b.info["calls"]) == (5, 8)
