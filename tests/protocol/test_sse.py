"""Server-sent events: any line end, any split."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.protocol.sse import SSEDecoder, comment, event

ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
LINE = st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"_").replace(b"\r", b"_"))


def decoded(pieces: list[bytes]) -> list[bytes]:
    decoder = SSEDecoder()
    return [payload for piece in pieces for payload in decoder.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in pairwise(at)]


@given(st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5), st.data())
def test_any_line_ends_and_any_split_give_the_same_events(
    events: list[list[bytes]], data: st.DataObject
) -> None:
    wire = b""
    for lines in events:
        for line in lines:
            wire += b"data: " + line + data.draw(ENDS)
        wire += data.draw(ENDS)
    # Two carriage returns and line feeds may have made one line end of what were two.
    expected = decoded([bytes([b]) for b in wire])
    assert decoded(cut(wire, data.draw(st.lists(st.integers(0, 500), max_size=8)))) == expected
    assert decoded([wire]) == expected


@given(st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5), ENDS, st.lists(st.integers(0, 500)))
def test_payloads_come_back(events: list[list[bytes]], end: bytes, places: list[int]) -> None:
    wire = b"".join(b"".join(b"data: " + line + end for line in lines) + end for lines in events)
    assert decoded(cut(wire, places)) == [b"\n".join(lines) for lines in events]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_is_there_as_soon_as_its_last_byte(end: bytes) -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: 1" + end) == []
    assert decoder.feed(end[:1]) == [b"1"]


@pytest.mark.parametrize(
    ("wire", "payloads"),
    [
        (b": keep-alive\n\ndata: 1\n\n", [b"1"]),
        (b"event: x\nid: 7\nretry: 3\ndata:1\n\n", [b"1"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:\n\n", [b""]),
        (b"\n\n\ndata: 1\n\n", [b"1"]),
        (b"data: unfinished\n", []),
        (b"database: 1\n\n", []),
    ],
)
def test_fields(wire: bytes, payloads: list[bytes]) -> None:
    assert decoded([wire]) == payloads


@given(st.binary(max_size=40).map(lambda b: b.replace(b"\r", b"")))
def test_what_is_written_is_read(payload: bytes) -> None:
    assert decoded([event(payload)]) == [payload]


def test_pretty_printed_json_survives_as_one_event() -> None:
    value = {"choices": [{"index": 0}]}
    (read,) = decoded([event(json.dumps(value, indent=2).encode())])
    assert json.loads(read) == value


@given(st.text())
def test_no_comment_can_become_an_event(text: str) -> None:
    written = comment(text)
    assert written.startswith(b": ")
    assert decoded([written]) == []
    assert written.count(b"\n") == 2
    assert b"\r" not in written
