"""Reading lists that models write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.lists import questions
from optillm.core.reply import Reply


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("Here are 3 questions:\n1. a\n\n2. b\n3) c", ["a", "b", "c"]),
        ("- a\n* b\n• c", ["a", "b", "c"]),
        ("Q1: **What is a?**\nQ2: what is b?", ["What is a?", "what is b?"]),
        ("What is a?\nWhat is b?", ["What is a?", "What is b?"]),
        ("They come first.\nWhat is a?\nThat is all.", ["What is a?"]),
        ("Questions:\nWhat is a?", ["What is a?"]),
        ("1. a\n2. a\n3. b", ["a", "b"]),
        ("<think>1. no</think>1. yes", ["yes"]),
        ("NONE", []),
        ("None.", []),
        ("1. None of them is", ["None of them is"]),
        ("", []),
        ("1. a\n2. b\n3. c\n4. d", ["a", "b", "c"]),
        ("2 eggs and 3 more", ["2 eggs and 3 more"]),
    ],
)
def test_items(text: str, items: list[str]) -> None:
    assert questions(Reply.of(text), 3) == items


def test_the_last_item_of_a_truncated_list_is_left_out() -> None:
    assert questions(Reply.of("1. a\n2. b\n3. what is th", "length"), 5) == ["a", "b"]


@given(st.text(max_size=200), st.integers(1, 5), st.booleans())
def test_any_text_gives_a_short_list_of_texts(text: str, most: int, cut: bool) -> None:
    items = questions(Reply.of(text, "length" if cut else "stop"), most)
    assert len(items) <= most
    assert len(set(items)) == len(items)
    assert all(item.strip() and "\n" not in item for item in items)
