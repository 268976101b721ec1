"""Chunks of any text: they are the text, within their size, and cut where a reader would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from optillm.approaches.context.document import Document, Span, divided, groups
from optillm.approaches.context.request import (
    MOVED,
    Divided,
    divide,
    find_query,
    turns,
    units,
)
from optillm.approaches.context.retrieval import best, bm25, cosine, words
from optillm.core.task import Task
from optillm.core.tokens import count, weigh
from tests.approaches.common import pictured, tool_call

texts = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.text("abc .\n", max_size=200),
        st.sampled_from(["\n\n", "。", "你好世界", "e\u0301" * 30, "👩\u200d👩\u200d👧", "x" * 90, " " * 50]),
    ),
    max_size=40,
).map("".join)


@given(texts, st.integers(16, 80), st.integers(0, 7))
@example("x" * 74, 16, 7)
def test_chunks_are_the_text_and_within_their_size(text: str, size: int, overlap: int) -> None:
    spans = list(divided(text, size, overlap))
    assert "".join(text[s.core : s.end] for s in spans) == text
    for before, span in zip([None, *spans], spans, strict=False):
        assert span.start <= span.core < span.end
        assert span.core == (before.end if before else 0)
        assert weigh(text[span.start : span.core]) <= overlap
        assert weigh(text[span.start : span.end]) <= size or span.end == span.core + 1


@given(texts, st.integers(16, 80))
def test_chunks_of_a_document_all_say_something(text: str, size: int) -> None:
    document = Document.of([("a", text), ("b", ""), ("c", text)])
    chunks = document.chunks(size)
    assert bool(chunks) == bool(document) == bool(text and not text.isspace())
    for span in chunks:
        assert document.read(span).strip()
    said = "".join(document.text[s.core : s.end] for s in chunks)
    assert "".join(said.split()) == "".join((text * 2).split())


@pytest.mark.parametrize(
    ("unit", "ending"),
    [
        ("One paragraph of some words here.\n\n", "\n\n"),
        ("one line of words\n", "\n"),
        ("A sentence. ", ". "),
        ("词语和句子。", "。"),
        ("word ", " "),
    ],
)
def test_chunks_end_at_the_best_border(unit: str, ending: str) -> None:
    text = unit * 300
    spans = list(divided(text, 100))
    assert len(spans) > 3
    assert all(text[: s.end].endswith(ending) for s in spans)


@pytest.mark.parametrize("text", ["x" * 5000, "字" * 5000, "7" * 5000, "." * 5000, "е" * 5000, " " * 90_000])
def test_texts_without_borders_are_cut_all_the_same(text: str) -> None:
    spans = list(divided(text, 200, 20))
    assert len(spans) > 3
    assert sum(s.end - s.core for s in spans) == len(text)
    # At least a quarter of what would fit: no more calls than needed by an order of magnitude.
    assert len(spans) < 4 * (count(text) / 180 + 1)


def test_a_visible_character_is_not_cut() -> None:
    for mark in ("e\u0301\u0302", "👩\u200d👩\u200d👧\ufe0f"):
        text = mark * 500
        for span in divided(text, 50):
            assert text[span.end : span.end + 1] not in ("\u0301", "\u0302", "\u200d", "\ufe0f")
            assert not text[: span.end].endswith("\u200d")


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    text = "".join(f"word{i} " for i in range(500))
    spans = list(divided(text, 100, 20))
    assert all(0 < s.core - s.start < 80 for s in spans[1:])
    assert all(text[s.start - 1] == " " for s in spans[1:])


def test_sources_are_told_in_characters_of_their_part() -> None:
    document = Document.of([("message 1", "a" * 10), ("empty", " \n"), ("message 3", "b" * 20)])
    assert [p.name for p in document.parts] == ["message 1", "message 3"]
    assert document.where(Span(2, 10, 2)) == "message 1, characters 2-10"
    assert document.where(Span(12, 32, 12)) == "message 3, characters 0-20"
    assert document.where(Span(5, 15, 5)) == "message 1, from character 5, to message 3, character 3"


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_groups_are_consecutive_and_fewer(sizes: list[int], most: int) -> None:
    parts = groups(sizes, most)
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert all(len(part) >= 2 for part in parts[:-1])
    assert all(len(p) == 2 or sum(sizes[i] for i in p) <= most or len(p) == 1 for p in parts)


# -- which part of a request is what ---------------------------------------------------------

LONG = "Nothing much happens in this sentence. " * 100


def split(*messages: dict[str, Any], verbatim: int = 10_000, delimiter: str = "") -> Divided:
    return divide(Task.of(messages), verbatim=verbatim, long=300, delimiter=delimiter)


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_a_short_request_is_all_question() -> None:
    found = split({"role": "system", "content": "S"}, user("Q?"))
    assert not found.context
    assert (found.query, [m.text for m in found.task.messages]) == ("Q?", ["S", "Q?"])


def test_a_delimiter_parts_document_and_question() -> None:
    found = split(user("a short document<END>What of it?"), delimiter="<END>")
    assert found.context.text.strip() == "a short document"
    assert (found.query, found.task.text) == ("What of it?", "What of it?")
    assert not split(user("<END>What of it?"), delimiter="<END>").context


def test_the_last_delimiter_counts() -> None:
    found = split(user("a<END>b<END>Q"), delimiter="<END>")
    assert (found.context.text.split(), found.query) == (["a", "b"], "Q")


def test_long_parts_are_context_and_the_short_one_is_the_question() -> None:
    parts = [{"type": "text", "text": LONG}, *pictured("What is in it?")]
    found = split(user(parts))
    assert found.context.text.strip() == LONG.strip()
    assert found.query == "What is in it?"
    assert [p["type"] for p in found.task.messages[0].parts] == ["text", "text", "image_url"]
    assert found.task.messages[0].parts[0]["text"] == MOVED
    assert found.context.parts[0].name == "message 1 (user), part 1"


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (f"{LONG}\n\nWho did it?", "Who did it?"),
        (f"Summarise this in two words:\n\n{LONG}", "Summarise this in two words:"),
        (f"Read this:\n\n{LONG}\n\nWho did it?", "Read this:\n\nWho did it?"),
        (f"Title\n\n{LONG}\n\nWho did it?", "Who did it?"),
        (f"{LONG}Who did it?", None),
        ("字" * 9000, "字" * 512),
        ("x" * 9000, "x" * 512),
    ],
)
def test_the_question_in_one_long_text(text: str, query: str | None) -> None:
    found = find_query(text)
    assert found.endswith("Who did it?") if query is None else found == query
    assert 0 < count(found) < 1000


def test_long_texts_elsewhere_leave_a_mark() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [tool_call()]}
    result = {"role": "tool", "tool_call_id": "c1", "content": LONG}
    found = split(user("Q?"), call, result)
    assert [m.role for m in found.task.messages] == ["user", "assistant", "tool"]
    assert found.task.messages[2].raw["tool_call_id"] == "c1"
    assert found.task.messages[2].text == MOVED
    assert found.context.parts[0].name == "message 3 (tool)"


def test_the_oldest_messages_go_with_their_tool_results_and_images() -> None:
    medium = "Some words of middling length. " * 20
    call = {"role": "assistant", "content": None, "tool_calls": [tool_call()]}
    result = {"role": "tool", "tool_call_id": "c1", "content": medium}
    found = split(
        {"role": "system", "content": "S"},
        user(pictured("first " + medium)),
        call,
        result,
        {"role": "assistant", "content": "second " + medium},
        user("Q?"),
        verbatim=200,
    )
    assert [m.role for m in found.task.messages] == ["system", "assistant", "user"]
    assert len(found.images) == 1
    names = [p.name for p in found.context.parts]
    assert names == ["message 2 (user)", "message 3 (assistant)", "message 4 (tool)"]
    assert "look({})" in found.context.text


def test_the_question_and_the_last_message_always_stay() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [tool_call()]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "r"}
    found = split(user("old"), user("Q?"), call, result, verbatim=1)
    assert [m.role for m in found.task.messages] == ["user", "assistant", "tool"]


def test_units_and_turns() -> None:
    roles = ["assistant", "user", "assistant", "tool", "tool", "assistant", "user"]
    messages = Task.of({"role": r, "content": "x"} for r in roles).messages
    assert [len(u) for u in units(messages)] == [1, 1, 3, 1, 1]
    assert [len(t) for t in turns(messages)] == [1, 5, 1]


# -- retrieval ------------------------------------------------------------------------------


def test_words_of_spaced_and_unspaced_scripts() -> None:
    assert words("The Cat's 2 naïve cats_") == ["the", "cat", "s", "2", "naïve", "cats"]
    assert words("東京都 に") == ["東京", "京都", "に"]
    assert words("Москва и Київ") == ["москва", "и", "київ"]
    assert words("") == words("… !") == []


def test_bm25_finds_the_text_with_the_rare_word() -> None:
    found = bm25("zebra", ["the the the", "a zebra is there", "is it a dog", ""])
    assert max(range(4), key=found.__getitem__) == 1
    assert found[3] == 0
    assert bm25("東京", ["大阪の天気", "東京の天気"])[1] > 0 == bm25("東京", ["大阪の天気", "東京の天気"])[0]
    assert bm25("x", []) == []


def test_bm25_as_defined() -> None:
    # Two texts of two words; the word is in one of them: idf = ln(1 + 1.5/1.5), tf part = 2.2/2.2.
    assert bm25("a", ["a b", "c d"]) == pytest.approx([0.6931471805599453, 0.0])


def test_the_best_are_in_their_own_order() -> None:
    assert best([0.1, 0.9, 0.5, 0.9], 2) == [1, 3]
    assert best([1.0, 1.0, 1.0], 2) == [0, 1]
    assert cosine([1, 0], [2, 0]) == 1.0
    assert cosine([0, 0], [1, 0]) == 0.0
