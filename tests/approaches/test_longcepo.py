"""LongCePO: plan, map, collapse and reduce over a document in chunks."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from optillm.approaches.context.longcepo import longcepo, planned, waves
from optillm.core.task import Task
from optillm.core.tokens import messages_tokens
from tests.approaches.common import calls_a_tool, images, params, pictured, streamed, tool, tool_call
from tests.approaches.remembering import remembering
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio
ROLES = {
    "put questions in clear words": "query",
    "plan how to answer a question about a document": "plan",
    "summarise a part of a document": "summary",
    "collect what a part of a document says": "map",
    "condense findings": "collapse",
    "answer a question from findings": "reduce",
}
FILLER = "It rained in the valley, and nobody had anything to say about that. "
SMALL: dict[str, Any] = {
    "longcepo_chunk_size": 300,
    "longcepo_max_context_window": 2048,
    "longcepo_max_output_tokens": 128,
    "longcepo_max_output_tokens_summary": 64,
}
NO_PLAN = "<SUB-QUESTIONS>\n</SUB-QUESTIONS>"


def chapters(n: int, needle: int = 0) -> str:
    """A document of n chapters, each a chunk of its own at 300 tokens; one holds the needle."""
    told = (f"Chapter {i}. " + FILLER * 13 + ("NEEDLE 4711." if i == needle else "") for i in range(1, n + 1))
    return "\n\n".join(told)


def asking(document: str, question: str = "What is the needle?") -> str:
    return f"{document}<CONTEXT_END>{question}"


def reading(
    final: Said = "4711",
    plan: Said = NO_PLAN,
    *,
    found: str = "NEEDLE",
    says: str = "It is 4711.",
    **said: Any,
) -> ScriptedUpstream:
    options = {k: said.pop(k) for k in ("latency", "n_mode") if k in said}

    def script(call: Seen) -> Said:
        if call.stage in said:
            answer: Said = said[call.stage]
            return answer
        if call.stage == "map":
            part = re.search(r"<part-\w+>(.*?)</part", call.last, re.S)
            assert part
            return says if found in part[1] else "[NO INFORMATION]"
        told = {"query": "Which needle?", "plan": plan, "collapse": "condensed", "reduce": "Answer: so it is"}
        if call.stage == "summary":
            return "sum-" + call.last.split("Chapter ")[1].split(".")[0]
        return told.get(call.stage, final)

    return ScriptedUpstream(script, roles=ROLES, **options)


async def test_a_needle_in_one_of_40_chunks() -> None:
    async with reading(latency=0.01) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(40, 23)), **SMALL)
        assert answer.text == "4711"
        assert (len(up.of("summary")), len(up.of("map")), len(up.of("collapse"))) == (40, 40, 0)
        # 2 + (0 + 1)(2 * 40 + 0) + 0 + 1
        assert (answer.info["calls"], answer.info["depth"]) == (83, 5)
        assert up.peak == 16
        told = answer.info["longcepo"]
        assert (told["chunks"], told["findings"], told["unread"], told["subquestions"]) == (40, 1, 0, 0)
        (final,) = up.of("sample")
        assert final.last.startswith("What is the needle?")
        assert "It is 4711." in final.last
        assert "message 1 (user), characters" in final.last
        assert "Chapter" not in final.text
        assert all("\nWhich needle?\n" in c.last for c in (*up.of("summary"), *up.of("map")))
        assert {c.body["max_tokens"] for c in up.of("summary")} == {64}
        assert {c.body["max_tokens"] for c in up.of("map")} == {128}


async def test_a_chunk_is_read_with_the_summaries_around_it() -> None:
    async with reading() as up, serving(up) as proxy:
        await proxy.ask(
            "longcepo-test-model", asking(chapters(9)), **SMALL, longcepo_num_neighbor_summaries=2
        )
        around = {}
        for call in up.of("map"):
            chapter = int(call.last.split("Chapter ")[1].split(".")[0])
            around[chapter] = [int(n) for n in re.findall(r"sum-(\d+)", call.last)]
        assert around[1] == [2, 3]
        assert around[5] == [3, 4, 6, 7]
        # The last chunk's summary is among its neighbours' too.
        assert around[8] == [6, 7, 9]
        assert around[9] == [7, 8]


async def test_three_sub_questions_cost_what_the_formula_says() -> None:
    plan = "<SUB-QUESTIONS>\n1. Who?\n2. Where?\n- When?\n</SUB-QUESTIONS>"
    async with reading(plan=plan) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(6, 2)), **SMALL)
        chunks, questions = 6, 3
        assert answer.info["calls"] == 2 + (questions + 1) * (2 * chunks + 0) + questions + 1
        assert answer.info["depth"] == 2 + (questions + 1) * 3
        asked = [re.findall(r"<question-\w+>\n(.*?)\n</question", c.last)[0] for c in up.of("reduce")]
        assert asked == ["Who?", "Where?", "When?"]
        first, second, third = (c.last for c in up.of("reduce"))
        assert "so it is" not in first
        assert "Who?\nso it is" in second
        assert "Where?\nso it is" in third
        assert "When?\nso it is" in up.of("sample")[0].last
        assert "Answer: so" not in up.of("sample")[0].last


async def test_independent_sub_questions_are_worked_on_together() -> None:
    plan = "<SUB-QUESTIONS>\nWho?\n[independent] Where?\nWhy then?\n</SUB-QUESTIONS>"
    async with reading(plan=plan) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(4, 2)), **SMALL)
        # Two waves of sub-questions and the question.
        assert answer.info["depth"] == 2 + 3 * 3
        assert answer.info["calls"] == 2 + 4 * 8 + 3 + 1
        third = next(c.last for c in up.of("reduce") if "\nWhy then?\n" in c.last)
        assert third.index("Who?\nso it is") < third.index("Where?\nso it is")


async def test_findings_that_are_too_long_together_are_condensed_in_levels() -> None:
    says = "A long finding with many words about the weather in the valley. " * 9
    async with reading(found="Chapter", says=says) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(30)), **SMALL)
        # Findings of about 180 tokens with their sources, room for 808: groups of 4, or of 5 short ones.
        assert len(up.of("collapse")) == 7
        assert (answer.info["calls"], answer.info["depth"]) == (2 + 60 + 7 + 1, 6)
        (final,) = up.of("sample")
        assert final.last.count("condensed") == 7
        groups = [len(re.findall(r"characters \d+-\d+\]", c.last)) for c in up.of("collapse")]
        assert sum(groups) == 30


async def test_condensing_goes_on_until_it_fits() -> None:
    says = "A long finding with many words about the weather in the valley. " * 9
    async with reading(found="Chapter", says=says, collapse=says) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(40)), **SMALL)
        assert answer.info["depth"] == 2 + 2 + 2 + 1
        assert len(up.of("collapse")) > 7
        window = SMALL["longcepo_max_context_window"]
        for call in up.calls:
            assert messages_tokens(Task.of(call.messages).messages) + call.body["max_tokens"] <= window


async def test_when_nothing_is_found_it_says_so() -> None:
    plan = "<SUB-QUESTIONS>\nWho?\n</SUB-QUESTIONS>"
    async with reading(final="It does not say.", plan=plan) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(4)), **SMALL)
        assert answer.text == "It does not say."
        assert up.of("reduce") == []
        assert answer.info["calls"] == 2 + 2 * 8 + 1
        assert "Nothing was found in it" in up.of("sample")[0].last
        assert "The document does not say." in up.of("sample")[0].last


async def test_a_plan_without_its_mark_is_asked_for_again_and_then_read_as_it_is() -> None:
    async with reading(plan="First: Who did it?\nI am done.") as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(2, 1)), **SMALL)
        assert len(up.of("plan")) == 3
        assert answer.info["longcepo"]["subquestions"] == 1
        assert answer.text == "4711"


async def test_the_question_itself_is_no_sub_question() -> None:
    plan = "<SUB-QUESTIONS>\nWHICH NEEDLE?\nWho has it?\n</SUB-QUESTIONS>"
    async with reading(plan=plan) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(2, 1)), **SMALL)
        assert answer.info["longcepo"]["subquestions"] == 1
        assert len(up.of("reduce")) == 1


def test_plans_are_read() -> None:
    assert planned("no mark") is None
    assert planned("<SUB-QUESTIONS></SUB-QUESTIONS>") == []
    text = "x <sub-questions>\n 1. A?\n(2) [Independent] B?\n* C\n---\n1. A?\n"
    found = planned(text)
    assert found == [("A?", False), ("B?", True), ("C", False)]
    assert waves(found) == [["A?", "B?"], ["C"]]
    assert waves([("A?", True), ("B?", True)]) == [["A?", "B?"]]
    # As a small model writes it: with an announcement, and with marks of the prompt.
    marked = "<question-efcdabb41ca5>Is List<int> meant?</question-efcdabb41ca5>"
    assert planned(f"<SUB-QUESTIONS>\nThe questions are:\n{marked}") == [("Is List<int> meant?", False)]
    assert planned("<SUB-QUESTIONS>谁？\n在哪里？</SUB-QUESTIONS>") == [("谁？", False), ("在哪里？", False)]


async def test_a_request_without_a_document_is_answered() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": pictured("Q?")}]
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", messages=messages)
        assert (answer.info["calls"], answer.info["longcepo"]["chunks"]) == (1, 0)
        assert up.calls[0].messages == messages


@pytest.mark.parametrize("text", ["<CONTEXT_END>Q?", " \n<CONTEXT_END>Q?", ""])
async def test_an_empty_document_is_none(text: str) -> None:
    async with reading() as up, serving(up) as proxy:
        assert (await proxy.ask("longcepo-test-model", text)).info["calls"] == 1
        assert up.calls[0].last == text.partition("<CONTEXT_END>")[2]


@pytest.mark.parametrize("text", ["字" * 3000, "ы" * 5000, "x" * 9000, "ภาษา" * 900])
async def test_documents_without_separators_in_any_script(text: str) -> None:
    async with reading(summary="s") as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(text), **SMALL)
        assert answer.status == 200
        assert answer.info["longcepo"]["chunks"] > 5
        read = [re.findall(r"<part-\w+>\n(.*?)\n</part", c.last, re.S)[0].rstrip("\n") for c in up.of("map")]
        # In whatever order they have arrived.
        assert all(piece in text for piece in read)
        assert sum(map(len, read)) == len(text)


async def test_a_long_text_part_is_the_document_without_a_delimiter() -> None:
    parts = [{"type": "text", "text": chapters(8, 3)}, *pictured("What is the needle?")]
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", parts, **SMALL)
        assert answer.info["longcepo"]["chunks"] == 8
        (final,) = up.of("sample")
        assert images(final.messages) == 1
        assert "Chapter" not in final.text


async def test_summaries_are_kept_per_chunk_question_and_tenant() -> None:
    fields = {"optillm_approach": "longcepo", **SMALL}
    async with reading() as up, remembering(up) as place:
        await place.ask(asking(chapters(6, 2)), **fields)
        up.calls.clear()
        # One chapter more: one summary more.
        answer = await place.ask(asking(chapters(7, 2)), **fields)
        assert (len(up.of("summary")), answer.info["longcepo"]["known_summaries"]) == (1, 6)
        up.calls.clear()
        await place.ask(asking(chapters(6, 2)), **fields, by="somebody")
        assert len(up.of("summary")) == 6
        place.states.of("t").broken = True
        answer = await place.ask(asking(chapters(6, 2)), **fields)
        assert (answer.text, answer.info["longcepo"]["not_stored"]) == ("4711", "the store is locked")


# -- limits and faults ------------------------------------------------------------------------


async def test_a_document_that_takes_more_calls_than_the_server_allows_is_refused() -> None:
    async with reading() as up, serving(up, max_upstream_calls=50) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(40, 2)), **SMALL)
        assert (answer.status, answer.error["code"], up.calls) == (400, "too_many_calls", [])
        assert "--max-upstream-calls" in answer.error["message"]
        assert "longcepo_chunk_size" in answer.error["message"]


async def test_as_many_sub_questions_as_the_server_allows() -> None:
    plan = "<SUB-QUESTIONS>\nA?\nB?\nC?\nD?\n</SUB-QUESTIONS>"
    async with reading(plan=plan) as up, serving(up, max_upstream_calls=66) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(6, 2)), **SMALL)
        told = answer.info["longcepo"]
        assert (told["subquestions"], told["subquestions_left_out"]) == (3, 1)
        assert (answer.text, answer.info.get("cut_short")) == ("4711", None)
        assert answer.info["calls"] <= 66


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 9, 12])
async def test_a_small_budget_still_ends_in_an_answer(calls: int) -> None:
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask(
            "longcepo-test-model", asking(chapters(6, 2)), **SMALL, optillm_budget={"max_calls": calls}
        )
        assert (answer.text, answer.info["cut_short"], len(up.calls)) == ("4711", "max_calls", calls)


async def test_a_budget_that_ends_before_the_reply_leaves_the_findings() -> None:
    plan = "<SUB-QUESTIONS>\nWho?\n</SUB-QUESTIONS>"
    costly = Reply("Answer: the butler", usage={"total_tokens": 10**6, "completion_tokens": 10**6})
    async with reading(plan=plan, reduce=costly) as up, serving(up) as proxy:
        answer = await proxy.ask(
            "longcepo-test-model", asking(chapters(3, 2)), **SMALL, optillm_budget={"max_tokens": 500_000}
        )
        assert (answer.text, answer.info["cut_short"]) == ("Who?\nthe butler", "max_tokens")
        assert answer.json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stage", ["query", "plan", "summary", "map", "reduce"])
@pytest.mark.parametrize("lost", [Fault(status=500), Reply("")])
async def test_a_helper_that_fails_loses_no_answer(stage: str, lost: Said) -> None:
    given: dict[str, Any] = {"plan": "<SUB-QUESTIONS>\nWho?\n</SUB-QUESTIONS>", stage: lost}
    async with reading(**given) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(4, 2)), **SMALL)
        assert answer.text == "4711"
        assert answer.info["longcepo"]["unread"] == (4 if stage == "map" else 0)
        if stage == "map":
            assert "4 of its parts could not be read" in up.of("sample")[0].last


async def test_findings_that_cannot_be_condensed_are_cut() -> None:
    says = "A long finding with many words about the weather in the valley. " * 9
    async with reading(found="Chapter", says=says, collapse=Fault(status=500)) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", asking(chapters(30)), **SMALL)
        assert answer.text == "4711"
        assert len(re.findall(r"A long finding", up.of("sample")[0].last)) >= 6
        assert " …" in up.of("sample")[0].last


@pytest.mark.parametrize("stage", ["query", "plan", "summary", "map", "final"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    given: dict[str, Any] = {stage: refusal(401, "no such key")}
    async with reading(**given) as up, serving(up) as proxy:
        assert (await proxy.ask("longcepo-test-model", asking(chapters(3)), **SMALL)).status == 401


async def test_empty_truncated_and_tool_replies() -> None:
    question = asking(chapters(3, 1))
    async with reading(final=Reply("")) as up, serving(up) as proxy:
        assert (await proxy.ask("longcepo-test-model", question, **SMALL)).error["code"] == "upstream_empty"
    async with reading(final=Reply("47", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("longcepo-test-model", question, **SMALL)).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("47", "length")
    async with reading(final=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", question, **SMALL, tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert sum("tools" in c.body for c in up.calls) == 1


async def test_the_reply_streams_live_and_n_choices_share_the_findings() -> None:
    async with reading(final=["a", "b"], n_mode="native") as up, serving(up, n_mode="native") as proxy:
        question = asking(chapters(3, 1))
        assert streamed(await proxy.events("longcepo-test-model", question, **SMALL)) == "a"
        up.calls.clear()
        answer = await proxy.ask("longcepo-test-model", question, n=2, **SMALL)
        # The three summaries of chunks are known from the first request.
        assert (answer.texts, answer.info["calls"]) == (["a", "b"], 2 + 3 + 1)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"longcepo_chunk_size": 7000}, "longcepo_chunk_size", "contradictory_parameters"),
        ({"longcepo_max_output_tokens": 3000}, "longcepo_max_context_window", "contradictory_parameters"),
        ({"longcepo_temperature_map": 3}, "longcepo_temperature_map", "invalid_parameter"),
        ({"longcepo_delimiter": 5}, "longcepo_delimiter", "invalid_parameter"),
        ({"longcepo_max_subquestions": -1}, "longcepo_max_subquestions", "invalid_parameter"),
    ],
)
async def test_bad_parameters_make_no_call(fields: dict[str, Any], param: str, code: str) -> None:
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask("longcepo-test-model", **fields)
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
        assert up.calls == []


def test_the_old_parameters_have_their_names_and_defaults() -> None:
    old = {
        "temperature_plan": 0.7,
        "temperature_map": 0.7,
        "temperature_collapse": 0.7,
        "temperature_reduce": 0.7,
        "chunk_size": 4096,
        "max_output_tokens": 1024,
        "max_context_window": 8192,
        "max_output_tokens_summary": 300,
        "num_neighbor_summaries": 5,
    }
    p = params(longcepo)
    assert {name: getattr(p, name) for name in old} == old
    assert list(p.contradictions()) == []


async def test_two_at_once_each_with_its_own_document() -> None:
    async with reading() as up, serving(up) as proxy:
        a, b = await asyncio.gather(
            proxy.ask("longcepo-test-model", asking(chapters(3).replace("It", "marker-a")), **SMALL),
            proxy.ask("longcepo-test-model", asking(chapters(5).replace("It", "marker-b")), **SMALL),
        )
        assert (a.info["longcepo"]["chunks"], b.info["longcepo"]["chunks"]) == (3, 5)
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (6, 10)
        assert not any("marker-a" in c.text and "marker-b" in c.text for c in up.calls)
