"""Strategies as a file: JSON with a version, to be looked at, moved and put back.

::

    {"format": "optillm-strategies", "version": 1,
     "strategies": [{"id": "…", "type": "word_problem", "text": "…", "success_count": 4, …}]}

The tenant is not in it: a file belongs to whoever puts it into a store. A file is read as a whole before
anything is done with it, so that one that cannot be read changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import msgspec
from msgspec import Meta

from optillm.core.frozen import to_json
from optillm.core.state import Strategy
from optillm.protocol.errors import InvalidRequest

FORMAT, VERSION = "optillm-strategies", 1

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Count = Annotated[int, Meta(ge=0, le=1 << 53)]
_Time = Annotated[float, Meta(ge=0, le=1e12)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A strategy; the fields are those of :class:`optillm.core.state.Strategy`."""

    id: _Name
    type: _Name
    text: Annotated[str, Meta(min_length=1)]
    examples: tuple[str, ...] = ()
    success_count: _Count = 0
    total_attempts: _Count = 0
    confidence: _Share = 0.5
    created: _Time = 0.0
    last_used: _Time | None = None
    last_updated: _Time = 0.0
    reasoning_examples: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def dump_strategies(strategies: Iterable[Strategy]) -> bytes:
    """The file of some strategies, as UTF-8 text; the same strategies make the same file."""
    found = {"format": FORMAT, "version": VERSION, "strategies": [asdict(s) for s in strategies]}
    return msgspec.json.format(to_json(found), indent=2) + b"\n"


def load_strategies(data: bytes | str) -> tuple[Strategy, ...]:
    """The strategies of a file, in its order.

    Raises:
        InvalidRequest: it is no such file, of a version that this program does not know, or a strategy in
            it is wrong; names the field.
    """
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _wrong("", f"the file is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _wrong("format", f'this is no file of strategies: "format" must be "{FORMAT}"')
    version = found.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise _wrong(
            "version",
            f"the file is of version {version!r:.40}, and this program reads version {VERSION} only; "
            "nothing was changed",
            "unknown_version",
        )
    try:
        entries = msgspec.convert(found.get("strategies"), list[_Entry])
    except msgspec.ValidationError as error:
        raise _wrong("strategies", f"a strategy in the file is wrong: {error}") from None
    _check(entries)
    return tuple(Strategy(**msgspec.structs.asdict(entry)) for entry in entries)


def _check(entries: list[_Entry]) -> None:
    """What concerns more than one field."""
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        if entry.id in seen:
            raise _wrong(f"strategies[{i}].id", f"two strategies have the id {entry.id!r}")
        seen.add(entry.id)
        if entry.success_count > entry.total_attempts:
            raise _wrong(f"strategies[{i}].success_count", "is more than 'total_attempts'")


def _wrong(field: str, what: str, code: str = "invalid_strategies") -> InvalidRequest:
    message = f"'{field}': {what}" if field.startswith("strategies[") else what
    return InvalidRequest(message, param=field or None, code=code)
