"""Strategies as a file: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.state import Strategy
from optillm.core.strategies_file import dump_strategies, load_strategies
from optillm.protocol.errors import InvalidRequest

TIME = st.floats(0, 1e12)
TEXTS = st.lists(st.text(), max_size=3).map(tuple)


@st.composite
def a_strategy(draw: st.DrawFn, number: int) -> Strategy:
    attempts = draw(st.integers(0, 100))
    return Strategy(
        id=f"id{number}",
        type=draw(st.text(min_size=1, max_size=20)),
        text=draw(st.text(min_size=1)),
        examples=draw(TEXTS),
        success_count=draw(st.integers(0, attempts)),
        total_attempts=attempts,
        confidence=draw(st.floats(0, 1)),
        created=draw(TIME),
        last_used=draw(st.none() | TIME),
        last_updated=draw(TIME),
        reasoning_examples=draw(TEXTS),
        tags=draw(TEXTS),
    )


@given(st.integers(0, 4).flatmap(lambda n: st.tuples(*(a_strategy(i) for i in range(n)))))
def test_what_is_written_is_read_back(known: tuple[Strategy, ...]) -> None:
    data = dump_strategies(known)
    assert load_strategies(data) == known
    assert load_strategies(data.decode()) == known
    assert dump_strategies(load_strategies(data)) == data


def test_the_file_says_what_it_is_and_is_for_people_to_read() -> None:
    data = dump_strategies([Strategy("a", "word_problem", "größer")]).decode()
    assert json.loads(data)["version"] == 1
    assert data.startswith('{\n  "format": "optillm-strategies",\n  "version": 1,\n')
    assert "größer" in data
    assert "tenant" not in data


def test_what_need_not_be_given_has_its_default() -> None:
    found = load_strategies(file({"id": "a", "type": "t", "text": "x"}))
    assert found == (Strategy("a", "t", "x"),)


def file(*entries: Any, **head: Any) -> bytes:
    whole = {"format": "optillm-strategies", "version": 1, "strategies": list(entries), **head}
    return json.dumps(whole).encode()


GOOD = {"id": "a", "type": "t", "text": "x"}


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.5, {"a": 1}])
def test_another_version_is_refused(version: Any) -> None:
    with pytest.raises(InvalidRequest, match="version 1 only; nothing was changed") as error:
        load_strategies(file(GOOD, version=version))
    assert (error.value.status, error.value.code, error.value.param) == (400, "unknown_version", "version")


@pytest.mark.parametrize(
    ("data", "says", "param"),
    [
        (b"", "not JSON", None),
        (b"\xff", "not JSON", None),
        (b"[" * 100_000, "not JSON", None),
        (b"[]", "no file of strategies", "format"),
        (b'{"version": 1, "strategies": []}', "no file of strategies", "format"),
        (file(format="other"), "no file of strategies", "format"),
        (file(strategies=None), "array", "strategies"),
        (file(strategies={}), "array", "strategies"),
        (file({"id": "a"}), "type", "strategies"),
        (file({**GOOD, "id": ""}), r"\[0\]\.id", "strategies"),
        (file(GOOD, {**GOOD, "text": 5}), r"\[1\]\.text", "strategies"),
        (file({**GOOD, "confidence": 1.5}), r"\[0\]\.confidence", "strategies"),
        (file({**GOOD, "total_attempts": -1}), r"\[0\]\.total_attempts", "strategies"),
        (file({**GOOD, "tags": "x"}), r"\[0\]\.tags", "strategies"),
        (file({**GOOD, "tenant": "b"}), "tenant", "strategies"),
        (file(GOOD, GOOD), "two strategies have the id 'a'", "strategies[1].id"),
        (file({**GOOD, "success_count": 3, "total_attempts": 2}), "more than", "strategies[0].success_count"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, says: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest, match=says) as error:
        load_strategies(data)
    assert error.value.param == param


def test_numbers_beyond_all_bounds_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        load_strategies(file({**GOOD, "total_attempts": 10**400}))
    with pytest.raises(InvalidRequest):
        load_strategies(b'{"format":"optillm-strategies","version":1,"strategies":'
                        b'[{"id":"a","type":"t","text":"x","created":1e999}]}')  # fmt: skip
