"""Compact: a summary in place of older turns, and what it leaves alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from optillm.protocol.errors import InvalidRequest
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call
from tests.approaches.remembering import remembering
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio
ROLES = {"summarise conversations": "summary"}
WORDS = "and then something else was said about it all " * 10
SMALL: dict[str, Any] = {"compact_context_window": 4096, "compact_threshold": 0.5}
Messages = list[dict[str, Any]]


def turn(i: int, words: str = WORDS) -> Messages:
    return [
        {"role": "user", "content": f"question-{i}. {words}"},
        {"role": "assistant", "content": f"answer-{i}. {words}"},
    ]


def talk(n: int, words: str = WORDS) -> Messages:
    """A system message, n turns, and a last question: n + 1 turns in all."""
    said = [m for i in range(1, n + 1) for m in turn(i, words)]
    return [{"role": "system", "content": "Be kind."}, *said, {"role": "user", "content": "Q?"}]


def summing(final: Said = "fine", summary: Said | None = None, **options: Any) -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        if call.stage != "summary":
            return final
        if summary is not None:
            return summary
        return f"SUMMARY {call.last.count('question-')} {'UPDATED' if 'summary so far' in call.last else ''}"

    return ScriptedUpstream(script, roles=ROLES, **options)


async def test_ten_turns_over_budget_keep_four() -> None:
    messages = talk(9)
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=messages, **SMALL)
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("fine", 2, 2)
        (summary,), (final,) = up.of("summary"), up.of("sample")
        assert all(f"question-{i}." in summary.last and f"answer-{i}." in summary.last for i in range(1, 7))
        assert "question-7." not in summary.last
        assert "tools" not in summary.body
        shown = final.messages
        assert shown[0] == messages[0]
        assert [m["role"] for m in shown[1:3]] == ["user", "assistant"]
        assert "SUMMARY 6" in shown[1]["content"]
        assert "summary" in shown[1]["content"].split("SUMMARY")[0]
        assert shown[3:] == messages[-7:]
        assert answer.info["compact"] == {"summarised": 12, "kept_turns": 4, "known": 0}


async def test_under_the_budget_nothing_is_touched() -> None:
    messages = talk(2)
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=messages, **SMALL)
        assert (answer.info["calls"], "compact" in answer.info) == (1, False)
        assert up.calls[0].messages == messages


async def test_a_growing_conversation_pays_for_its_new_part() -> None:
    fields = {"optillm_approach": "compact", **SMALL}
    async with summing() as up, remembering(up) as place:
        await place.ask(talk(9), **fields)
        assert [c.last.count("question-") for c in up.of("summary")] == [6]
        up.calls.clear()
        answer = await place.ask(talk(11), **fields)
        (update,) = up.of("summary")
        assert [f"question-{i}." in update.last for i in (6, 7, 8, 9)] == [False, True, True, False]
        assert "SUMMARY 6" in update.last
        assert answer.info["compact"]["known"] == 1
        assert "UPDATED" in up.of("sample")[0].text
        up.calls.clear()
        assert (await place.ask(talk(11), **fields)).info["calls"] == 1
        # Nothing of it for another tenant, another model or other words.
        for other in ({"by": "somebody"}, {"model": "other"}):
            up.calls.clear()
            await place.ask(talk(11), **fields, **other)
            assert len(up.of("summary")) == 1
            assert "SUMMARY" not in up.of("summary")[0].last


async def test_a_changed_beginning_is_summarised_anew() -> None:
    fields = {"optillm_approach": "compact", **SMALL}
    async with summing() as up, remembering(up) as place:
        await place.ask(talk(9), **fields)
        up.calls.clear()
        changed = talk(9)
        changed[1] = {"role": "user", "content": "something else. " + WORDS}
        await place.ask(changed, **fields)
        (again,) = up.of("summary")
        assert "SUMMARY" not in again.last
        assert "something else." in again.last


async def test_tool_calls_stay_with_their_results_and_images_stay() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [tool_call()]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "result. " + WORDS}
    used = [
        {"role": "user", "content": pictured("see " + WORDS)},
        call,
        result,
        {"role": "assistant", "content": "k"},
    ]
    messages = [*used * 8, {"role": "user", "content": "Q?"}]
    fields = {**SMALL, "compact_context_window": 9000}
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=messages, **fields)
        (final,) = up.of("sample")
        assert answer.info["compact"]["kept_turns"] < 4
        assert images(final.messages) == 8
        for i, message in enumerate(final.messages):
            if message["role"] == "tool":
                assert final.messages[i - 1].get("tool_calls") == [tool_call()]
        assert "look({})" in up.of("summary")[0].last


async def test_text_that_looks_like_a_turn_is_none() -> None:
    messages = talk(9)
    messages[1]["content"] = "A log:\n\n[assistant]\nnot a turn\nUser: nor this\n\n" + WORDS
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=messages, **SMALL)
        assert answer.info["compact"]["summarised"] == 12


async def test_fewer_recent_turns_when_four_are_too_many() -> None:
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=talk(9, WORDS * 4), **SMALL)
        assert answer.info["compact"]["kept_turns"] == 2
        assert up.of("sample")[0].messages[3:] == talk(9, WORDS * 4)[-3:]


async def test_one_long_turn_of_an_agent_keeps_its_question_and_its_newest_results() -> None:
    steps: Messages = []
    for i in range(12):
        named = {**tool_call(), "id": f"c{i}"}
        steps.append({"role": "assistant", "content": None, "tool_calls": [named]})
        steps.append({"role": "tool", "tool_call_id": f"c{i}", "content": f"result-{i} {WORDS * 2}"})
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Do it."}, *steps]
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=messages, **SMALL)
        shown = up.of("sample")[0].messages
        assert answer.info["compact"]["kept_turns"] == 0
        assert [m["role"] for m in shown[:4]] == ["system", "user", "assistant", "user"]
        assert shown[3] == messages[1]
        kept = len(shown) - 4
        assert kept % 2 == 0
        assert shown[4:] == steps[-kept:]
        assert f"result-{11 - kept // 2} " in up.of("summary")[0].last


async def test_a_question_that_is_too_long_itself_is_left_alone_and_told() -> None:
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", "word " * 9000, **SMALL)
        assert (answer.info["calls"], answer.info["compact"]["over_budget"]) == (1, True)


async def test_a_long_past_is_summarised_in_levels_each_concurrent() -> None:
    messages = talk(120)
    async with summing(latency=0.3) as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=messages, **SMALL)
        assert answer.status == 200
        parts = [c for c in up.of("summary") if "question-" in c.last]
        merges = [c for c in up.of("summary") if "question-" not in c.last]
        assert len(parts) > 5
        assert up.peak >= min(len(parts), 16)
        assert answer.info["calls"] == len(parts) + len(merges) + 1
        assert answer.info["depth"] == 2 + (1 if len(merges) == 1 else 2)
        asked = "".join(c.last for c in parts)
        assert all(f"question-{i}." in asked for i in range(1, 118))


async def test_parts_of_a_long_past_are_not_paid_for_twice() -> None:
    fields = {"optillm_approach": "compact", **SMALL}
    async with summing() as up, remembering(up) as place:
        await place.ask(talk(120), **fields)
        first = len(up.calls)
        up.calls.clear()
        answer = await place.ask(talk(121), **fields)
        assert answer.info["calls"] == 2 < first


async def test_more_parts_than_the_server_allows_are_refused() -> None:
    async with summing() as up, serving(up, max_upstream_calls=5) as proxy:
        answer = await proxy.ask("compact-test-model", messages=talk(120), **SMALL)
        assert (answer.status, answer.error["code"], up.calls) == (400, "too_many_calls", [])
        assert "--max-upstream-calls" in answer.error["message"]


@pytest.mark.parametrize("summary", [Fault(status=500), Reply(""), Fault("empty_choices")])
async def test_without_a_summary_the_recent_turns_answer(summary: Said) -> None:
    async with summing(summary=summary) as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", messages=talk(9), **SMALL)
        assert (answer.text, answer.info["compact"]["parts_left_out"]) == ("fine", 1)
        shown = up.of("sample")[0].messages
        assert "no summary" in shown[1]["content"]
        assert shown[3:] == talk(9)[-7:]


async def test_a_store_that_fails_costs_the_saving_only() -> None:
    async with summing() as up, remembering(up) as place:
        place.states.of("t").broken = True
        answer = await place.ask(talk(9), optillm_approach="compact", **SMALL)
        assert (answer.text, answer.info["compact"]["not_stored"]) == ("fine", "the store is locked")


@pytest.mark.parametrize("final", [True, False])
async def test_a_refusal_reaches_the_client(final: bool) -> None:
    options: Any = {"final" if final else "summary": refusal(401, "no such key")}
    async with summing(**options) as up, serving(up) as proxy:
        assert (await proxy.ask("compact-test-model", messages=talk(9), **SMALL)).status == 401


async def test_the_last_call_of_a_budget_answers() -> None:
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask(
            "compact-test-model", messages=talk(9), **SMALL, optillm_budget={"max_calls": 1}
        )
        assert (answer.text, answer.info["cut_short"], up.stages()) == ("fine", "max_calls", ["sample"])


async def test_a_budget_that_ends_after_the_summary_leaves_it() -> None:
    costly = Reply("S", usage={"total_tokens": 10_000, "completion_tokens": 9000})
    async with summing(summary=costly) as up, serving(up) as proxy:
        answer = await proxy.ask(
            "compact-test-model", messages=talk(9), **SMALL, optillm_budget={"max_tokens": 5000}
        )
        assert (answer.text, answer.info["cut_short"]) == ("S", "max_tokens")


async def test_in_a_chain_it_hands_on_the_short_conversation() -> None:
    async with summing() as up, serving(up, n_mode="native") as proxy:
        answer = await proxy.ask(
            "m", messages=talk(9), **SMALL, optillm_approach="compact&self_consistency(samples=3)"
        )
        assert (answer.info["calls"], answer.info["compact"]["kept_turns"]) == (2, 4)
        assert "SUMMARY 6" in up.of("sample")[0].text
        assert "question-1." not in up.of("sample")[0].text


async def test_empty_truncated_and_tool_replies() -> None:
    async with summing(final=Reply("")) as up, serving(up) as proxy:
        assert (await proxy.ask("compact-test-model")).error["code"] == "upstream_empty"
    async with summing(final=Reply("fi", finish="length")) as up, serving(up) as proxy:
        assert (await proxy.ask("compact-test-model")).json["choices"][0]["finish_reason"] == "length"
    async with summing(final=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]


async def test_the_reply_streams_live_and_n_choices_share_a_summary() -> None:
    async with summing(final=["a", "b"]) as up, serving(up, n_mode="native") as proxy:
        assert streamed(await proxy.events("compact-test-model", messages=talk(9), **SMALL)) == "a"
        up.calls.clear()
        # The summary is known from the first request.
        answer = await proxy.ask("compact-test-model", messages=talk(9), n=2, **SMALL)
        assert (answer.texts, answer.info["calls"]) == (["a", "b"], 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compact_context_window", 100),
        ("compact_threshold", 1.5),
        ("compact_keep_recent", 0),
        ("compact_summary_tokens", "many"),
    ],
)
async def test_bad_parameters_make_no_call(field: str, value: Any) -> None:
    async with summing() as up, serving(up) as proxy:
        answer = await proxy.ask("compact-test-model", **{field: value})
        assert (answer.status, answer.error["param"], up.calls) == (400, field, [])


async def test_a_window_that_the_upstream_tells_may_be_too_small() -> None:
    model = {"id": "m", "object": "model", "context_length": 512}
    async with summing(models=[model]) as up, remembering(up) as place:
        with pytest.raises(InvalidRequest, match="window of 512"):
            await place.ask(talk(9), optillm_approach="compact")
        assert up.calls == []


async def test_two_at_once_each_with_its_own_conversation() -> None:
    async with summing() as up, serving(up) as proxy:
        a, b = await asyncio.gather(
            proxy.ask("compact-test-model", messages=talk(9, WORDS + "marker-a "), **SMALL),
            proxy.ask(
                "compact-test-model", messages=talk(9, WORDS + "marker-b "), **SMALL, compact_keep_recent=2
            ),
        )
        assert (a.info["compact"]["kept_turns"], b.info["compact"]["kept_turns"]) == (4, 2)
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (2, 2)
        assert not any("marker-a" in c.text and "marker-b" in c.text for c in up.calls)
