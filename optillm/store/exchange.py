"""Strategies as a JSON document, to carry them from one store to another, or to edit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from optillm.core.state import Strategy
from optillm.protocol.errors import InvalidRequest
from optillm.protocol.explain import explain_json, explain_value

FORMAT = "optillm-strategies"
VERSION = 1
"""Of the format; a reader takes no other."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Time = Annotated[float, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Entry(Struct, forbid_unknown_fields=True):
    """One strategy; see :class:`optillm.core.state.Strategy`."""

    id: Name
    type: Name
    text: Annotated[str, Meta(min_length=1)]
    examples: tuple[str, ...] = ()
    success_count: Count = 0
    total_attempts: Count = 0
    confidence: Annotated[float, Meta(ge=0, le=1)] = 0.5
    created: Time = 0.0
    last_used: Time | None = None
    last_updated: Time = 0.0
    reasoning_examples: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class Strategies(Struct, forbid_unknown_fields=True):
    """A tenant's strategies, or some of them."""

    format: Literal["optillm-strategies"]
    version: Literal[1]
    strategies: Annotated[list[Entry], Meta(max_length=10_000)]


def exported(strategies: Sequence[Strategy]) -> dict[str, Any]:
    """The document of strategies."""
    return {"format": FORMAT, "version": VERSION, "strategies": [asdict(s) for s in strategies]}


def imported(document: bytes) -> tuple[Strategy, ...]:
    """The strategies of a document.

    Raises:
        InvalidRequest: it is no such document, or of another version, or something in it is out of range.
    """
    try:
        raw = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise explain_json(error, document) from None
    if not isinstance(raw, dict):
        raise InvalidRequest("the document must be a JSON object", code="invalid_json")
    if raw.get("format") == FORMAT and raw.get("version") != VERSION:
        raise InvalidRequest(
            f"version {str(raw.get('version'))[:20]} of strategies is not known here; it must be {VERSION}",
            param="version",
            code="unknown_version",
        )
    try:
        entries = msgspec.convert(raw, Strategies).strategies
    except msgspec.ValidationError as error:
        raise explain_value(error, raw, Strategies) from None
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        if entry.id in seen:
            raise InvalidRequest(f"the id '{entry.id}' is there twice", param=f"strategies[{i}].id")
        if entry.success_count > entry.total_attempts:
            raise InvalidRequest(
                f"success_count is {entry.success_count}, of only {entry.total_attempts} attempts",
                param=f"strategies[{i}].success_count",
            )
        seen.add(entry.id)
    return tuple([Strategy(**msgspec.structs.asdict(entry)) for entry in entries])
