"""Memory: long contexts read in parts, notes beside the question, notes kept for later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from optillm.core.task import Task
from optillm.core.tokens import count, messages_tokens
from optillm.protocol.errors import InvalidRequest, NotConfigured, StoreError, UpstreamError
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call
from tests.approaches.remembering import remembering
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio
ROLES = {"take notes in the margin": "margin"}
FILLER = "It rained in the valley, and nobody had anything to say about that. "
SMALL: dict[str, Any] = {"memory_context_window": 4096, "max_tokens": 256}
CHUNKED: dict[str, Any] = {
    "memory_context_window": 2048,
    "max_tokens": 1000,
    "memory_chunk_tokens": 500,
    "memory_overlap": 0,
}


def chapters(n: int, *, needle: int = 0, fact: str = "The password is swordfish.") -> str:
    """A document of n chapters, each a chunk of its own at 500 tokens; one holds a fact."""
    told = [f"Chapter {i}. " + FILLER * 22 + (fact if i == needle else "") for i in range(1, n + 1)]
    return "\n\n".join(told)


def reading(final: Said = "swordfish", margin: Said | None = None, **options: Any) -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        if call.stage != "margin":
            return final
        if margin is not None:
            return margin
        return "The password is swordfish." if "swordfish" in call.last else "Nothing relevant."

    return ScriptedUpstream(script, roles=ROLES, **options)


QUESTION = "\n\nWhat is the password?"


async def test_a_fact_in_chunk_7_of_12_is_in_the_notes() -> None:
    async with reading(latency=0.02) as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", chapters(12, needle=7) + QUESTION, **CHUNKED)
        assert answer.text == "swordfish"
        assert (answer.info["calls"], answer.info["depth"], len(up.of("margin"))) == (13, 2, 12)
        assert up.peak == 12
        told = answer.info["memory"]
        assert (told["chunks"], told["notes"], told["unread"]) == (12, 1, 0)
        (final,) = up.of("sample")
        assert "The password is swordfish." in final.last
        assert final.last.startswith("What is the password?")
        assert "message 1 (user), characters" in final.last
        assert "Chapter" not in final.last
        (found,) = [c for c in up.of("margin") if "swordfish" in c.last]
        assert "Chapter 7." in found.last
        assert "Chapter 8." not in found.last
        assert all("\nWhat is the password?\n" in c.last for c in up.of("margin"))
        assert all(c.body["max_tokens"] == 256 and "stop" not in c.body for c in up.of("margin"))


async def test_every_prompt_fits_the_window() -> None:
    async with reading() as up, serving(up) as proxy:
        await proxy.ask("memory-test-model", chapters(80, needle=3) + QUESTION, **SMALL)
        for call in up.calls:
            assert messages_tokens(Task.of(call.messages).messages) + call.body["max_tokens"] <= 4096


async def test_a_request_that_fits_is_answered_as_it_is() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": pictured("Q?")}]
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", messages=messages, **SMALL)
        assert (answer.info["calls"], answer.info["memory"]["chunks"]) == (1, 0)
        assert up.calls[0].messages == messages


async def test_nothing_relevant_is_said_and_recent_turns_answer() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": chapters(12)},
        {"role": "assistant", "content": "Read."},
        {"role": "user", "content": "My dog is Rex."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "How is my dog called?"},
    ]
    async with reading(final="Rex") as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", messages=messages, **SMALL)
        assert (answer.text, answer.info["memory"]["notes"]) == ("Rex", 0)
        (final,) = up.of("sample")
        assert "nothing relevant to it was found" in final.last
        assert final.messages[0] == messages[0]
        assert final.messages[2:5] == messages[2:5]
        assert "Chapter" not in final.text


async def test_old_turns_are_read_and_their_images_stay() -> None:
    turn = [
        {"role": "user", "content": pictured("Look at this. " + FILLER * 40)},
        {"role": "assistant", "content": "Ok"},
    ]
    messages = [*turn, *turn, *turn, {"role": "user", "content": "And the password?"}]
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", messages=messages, **CHUNKED)
        (final,) = up.of("sample")
        assert answer.info["memory"]["chunks"] > 0
        assert images(final.messages) == 3
        assert len(final.messages) < len(messages)


async def test_only_the_best_notes_stand_beside_the_question() -> None:
    def script(call: Seen) -> Said:
        if call.stage != "margin":
            return "done"
        chapter = call.last.split("Chapter ")[1].split(".")[0]
        return f"In chapter {chapter} the {'password was changed' if chapter in '25' else 'weather was bad'}."

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up) as proxy:
        question = chapters(9) + QUESTION
        answer = await proxy.ask("memory-test-model", question, **CHUNKED, memory_notes=2)
        (final,) = up.of("sample")
        assert (answer.info["memory"]["notes"], answer.info["memory"]["retrieval"]) == (2, "bm25")
        assert final.last.index("In chapter 2 ") < final.last.index("In chapter 5 ")
        assert "weather" not in final.last


class Vectors:
    """An embedding model that knows one dimension: how much a text is about rain."""

    name = "vectors"

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[Sequence[str]] = []
        self.error = error

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked.append(texts)
        if self.error:
            raise self.error
        return [
            [1.0, 0.0] if "rain" in t or ("password" in t.lower() and "?" in t) else [0.0, 1.0] for t in texts
        ]


def chatty(call: Seen) -> Said:
    if call.stage != "margin":
        return "done"
    chapter = call.last.split("Chapter ")[1].split(".")[0]
    return f"Chapter {chapter}: {'rain' if chapter == '4' else 'the password, the password'}."


@pytest.mark.parametrize("broken", [False, True])
async def test_an_embedding_model_ranks_the_notes_and_is_done_without(broken: bool) -> None:
    vectors = Vectors(UpstreamError("down") if broken else None)
    async with ScriptedUpstream(chatty, roles=ROLES) as up, remembering(up, embedder=vectors) as place:
        answer = await place.ask(chapters(6) + QUESTION, optillm_approach="memory", **CHUNKED, memory_notes=1)
        (final,) = up.of("sample")
        assert ("Chapter 4: rain" in final.last) is not broken
        assert answer.info["memory"]["retrieval"] == ("bm25" if broken else "embeddings")
        assert (answer.info["calls"], answer.info["depth"]) == (8, 3)
        assert [texts[0] for texts in vectors.asked] == ["What is the password?"]


# -- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [Fault(status=500), Reply(""), Fault("empty_choices")])
async def test_parts_that_cannot_be_read_are_told(margin: Said) -> None:
    async with reading(margin=margin) as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", chapters(3) + QUESTION, **CHUNKED, memory_notes=1)
        assert (answer.text, answer.info["memory"]["unread"]) == ("swordfish", 3)
        assert "3 parts of the texts could not be read" in up.of("sample")[0].last


@pytest.mark.parametrize("stage", ["margin", "final"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    async with reading(**{stage: refusal(401, "no such key")}) as up, serving(up) as proxy:
        assert (await proxy.ask("memory-test-model", chapters(3) + QUESTION, **CHUNKED)).status == 401


async def test_empty_and_truncated_replies() -> None:
    async with reading(final=Reply("")) as up, serving(up) as proxy:
        assert (await proxy.ask("memory-test-model", **SMALL)).error["code"] == "upstream_empty"
    async with reading(final=Reply("sword", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("memory-test-model", **SMALL)).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("sword", "length")


async def test_tools_are_for_the_reply_and_a_call_survives() -> None:
    async with reading(final=calls_a_tool()) as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", chapters(3) + QUESTION, **CHUNKED, tools=[tool()])
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert {"tools" in c.body for c in up.of("margin")} == {False}
        assert "tools" in up.of("sample")[0].body


@pytest.mark.parametrize("calls", [1, 2, 5])
async def test_a_small_budget_reads_what_it_can_and_answers(calls: int) -> None:
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask(
            "memory-test-model",
            chapters(8, needle=2) + QUESTION,
            **CHUNKED,
            optillm_budget={"max_calls": calls},
        )
        assert (answer.text, answer.info["cut_short"], len(up.calls)) == ("swordfish", "max_calls", calls)
        assert answer.info["memory"]["unread"] == 8 - (calls - 1)


async def test_a_budget_that_ends_before_the_reply_leaves_the_notes() -> None:
    costly = Reply("The password is swordfish.", usage={"total_tokens": 10_000, "completion_tokens": 9000})
    async with reading(margin=costly) as up, serving(up) as proxy:
        answer = await proxy.ask(
            "memory-test-model", chapters(3) + QUESTION, **CHUNKED, optillm_budget={"max_tokens": 8000}
        )
        assert "The password is swordfish." in answer.text
        assert (answer.info["cut_short"], answer.json["choices"][0]["finish_reason"]) == (
            "max_tokens",
            "length",
        )


async def test_too_many_parts_for_the_server_are_refused_unless_larger_chunks_do() -> None:
    async with reading() as up, serving(up, max_upstream_calls=10) as proxy:
        answer = await proxy.ask("memory-test-model", chapters(30) + QUESTION, **CHUNKED)
        assert (answer.status, answer.error["code"], up.calls) == (400, "too_many_calls", [])
        assert "31 upstream calls" in answer.error["message"]
        assert "--max-upstream-calls" in answer.error["message"]
        # Chosen by itself, a chunk is as large as it has to be.
        answer = await proxy.ask("memory-test-model", chapters(30) + QUESTION, **SMALL)
        assert answer.status == 200
        assert answer.info["calls"] <= 10


async def test_n_choices_share_the_notes() -> None:
    async with reading(final=["a", "b"]) as up, serving(up, n_mode="native") as proxy:
        answer = await proxy.ask("memory-test-model", chapters(3) + QUESTION, **CHUNKED, n=2)
        assert (answer.texts, len(up.of("margin")), answer.info["calls"]) == (["a", "b"], 3, 4)


async def test_in_a_chain_it_hands_on_the_notes() -> None:
    async with reading() as up, serving(up, n_mode="native") as proxy:
        answer = await proxy.ask(
            "m",
            chapters(3, needle=2) + QUESTION,
            **CHUNKED,
            optillm_approach="memory&self_consistency(samples=3)",
        )
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("swordfish", 4, 2)
        assert answer.info["memory"]["notes"] == 1
        assert "The password is swordfish." in up.of("sample")[0].last


async def test_the_reply_streams_live() -> None:
    async with reading() as up, serving(up) as proxy:
        events = await proxy.events("memory-test-model", chapters(3) + QUESTION, **CHUNKED)
        assert streamed(events) == "swordfish"
        assert [bool(c.body.get("stream")) for c in up.calls] == [False, False, False, True]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"memory_notes": 0}, "memory_notes"),
        ({"memory_chunk_tokens": 10}, "memory_chunk_tokens"),
        ({"memory_chunk_tokens": 4000}, "memory_chunk_tokens"),
        ({"memory_chunk_tokens": 100, "memory_overlap": 50}, "memory_chunk_tokens"),
        ({"memory_scope": "everyone"}, "memory_scope"),
        ({"memory_scope": "conversation"}, "memory_scope"),
        ({"memory_conversation": "c"}, "memory_conversation"),
        ({"memory_context_window": 2048, "memory_note_tokens": 2000}, "memory_context_window"),
    ],
)
async def test_bad_parameters_make_no_call(fields: dict[str, Any], param: str) -> None:
    async with reading() as up, remembering(up) as place:
        with pytest.raises(InvalidRequest) as error:
            await place.ask("Q?", optillm_approach="memory", **{**SMALL, **fields})
        assert (error.value.param, up.calls) == (param, [])


async def test_the_window_is_the_upstream_s_own() -> None:
    model = {"id": "test-model", "object": "model", "max_model_len": 4096}
    async with reading(models=[model]) as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", chapters(12) + QUESTION, max_tokens=256)
        assert answer.info["memory"]["chunks"] > 1
        # Nobody tells: a large one.
        answer = await proxy.ask("memory-other", chapters(12) + QUESTION, max_tokens=256)
        assert answer.info["memory"]["chunks"] == 0


@pytest.mark.parametrize("text", ["", " \n ", "字" * 30_000, "ы" * 30_000, "x" * 60_000])
async def test_any_text_works(text: str) -> None:
    async with reading() as up, serving(up) as proxy:
        answer = await proxy.ask("memory-test-model", text, **SMALL)
        assert answer.status == 200
        assert (answer.info["memory"]["chunks"] > 1) == (len(text) > 100)
        assert all(count(c.text) <= 4096 for c in up.calls)


# -- what is remembered ----------------------------------------------------------------------

KEPT: dict[str, Any] = {"optillm_approach": "memory", "memory_scope": "conversation", **CHUNKED}


async def test_a_conversation_remembers_and_no_other_does() -> None:
    async with reading() as up, remembering(up) as place:
        await place.ask(chapters(3, needle=2) + QUESTION, **KEPT, memory_conversation="c1", by="anna")
        assert [n.text for n in place.states.of("anna").kept["c1"]] == [
            "The password is swordfish.",
            "What is the password?",
        ]
        seen: dict[tuple[str, str], str] = {}
        for who, where in (("anna", "c1"), ("anna", "c2"), ("bert", "c1")):
            up.calls.clear()
            await place.ask("Tell me that password again", **KEPT, memory_conversation=where, by=who)
            seen[who, where] = up.calls[-1].last
        assert "The password is swordfish." in seen["anna", "c1"]
        assert "swordfish" not in seen["anna", "c2"] + seen["bert", "c1"]


async def test_a_tenant_s_memory_is_for_all_its_conversations() -> None:
    fields = {**KEPT, "memory_scope": "tenant"}
    async with reading() as up, remembering(up) as place:
        await place.ask(chapters(3, needle=2) + QUESTION, **fields, by="anna")
        answer = await place.ask("Which password was it?", **fields, by="anna")
        assert "The password is swordfish." in up.calls[-1].last
        assert answer.info["memory"]["remembered"] >= 1
        await place.ask("Which password was it?", **fields, by="bert")
        assert "swordfish" not in up.calls[-1].last


async def test_what_shares_no_word_is_not_recalled() -> None:
    async with reading() as up, remembering(up) as place:
        await place.ask("The cat sleeps.", **KEPT, memory_conversation="c")
        await place.ask("Quantum physics?", **KEPT, memory_conversation="c")
        assert up.calls[-1].last == "Quantum physics?"


async def test_notes_end_after_their_time_and_the_oldest_go() -> None:
    fields = {**KEPT, "memory_conversation": "c", "memory_ttl_days": 1}
    async with reading() as up, remembering(up) as place:
        await place.ask("The cat is black.", **fields)
        place.time += 86_300
        await place.ask("Is the cat black?", **fields)
        assert "The cat is black." in up.calls[-1].last
        # Use has kept it; a day later it is gone.
        place.time += 86_300
        await place.ask("And the cat?", **fields)
        assert "The cat is black." in up.calls[-1].last
        place.time += 86_500
        await place.ask("The cat again?", **fields)
        assert "black" not in up.calls[-1].last
        for i in range(5):
            place.time += 1
            await place.ask(f"Dog{i}.", **fields, memory_max_entries=3)
        assert [n.text for n in place.states.of("t").kept["c"]] == ["Dog2.", "Dog3.", "Dog4."]


async def test_a_full_store_costs_the_memory_not_the_answer_and_a_broken_one_is_an_error() -> None:
    async with reading() as up, remembering(up) as place:
        place.states.of("t").full = True
        answer = await place.ask("Q?", **KEPT, memory_conversation="c")
        assert (answer.text, answer.info["memory"]["not_stored"]) == ("swordfish", "the store is full")
        place.states.of("t").broken = True
        up.calls.clear()
        with pytest.raises(StoreError):
            await place.ask("Q?", **KEPT, memory_conversation="c")
        assert up.calls == []


async def test_memory_without_a_store_is_refused() -> None:
    async with reading() as up, remembering(up) as place:
        object.__setattr__(place.service, "tools", type(place.service.tools)())
        with pytest.raises(NotConfigured, match=r"pip install 'optillm\[store\]'"):
            await place.ask("Q?", **KEPT, memory_conversation="c")
        assert up.calls == []


async def test_two_at_once_each_with_its_own_document_and_sizes() -> None:
    async with reading() as up, serving(up) as proxy:
        a, b = await asyncio.gather(
            proxy.ask("memory-test-model", chapters(4).replace("It", "marker-a") + QUESTION, **CHUNKED),
            proxy.ask("memory-test-model", chapters(9).replace("It", "marker-b") + QUESTION, **CHUNKED),
        )
        assert (a.info["calls"], b.info["calls"]) == (5, 10)
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (4, 9)
