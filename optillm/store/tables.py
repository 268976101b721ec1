"""The tables as they are now. How they came to be is told in :mod:`optillm.store.migrations`."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, Dialect, Double, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.types import TypeDecorator

LONGEST_KEY = 200
"""Characters of a key that are kept as they are; PostgreSQL's indexes take no long ones."""


class Words(TypeDecorator[str]):
    """Text of any kind, as models write it.

    PostgreSQL takes no NUL, and neither database takes half a surrogate pair: they become U+FFFD and "?".
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is sent to the database."""
        return None if value is None else clean(value)


class Key(TypeDecorator[str]):
    """Text that something is found by; a long one is kept as its hash."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is sent to the database."""
        return None if value is None else key_of(value)


class Texts(TypeDecorator[tuple[str, ...]]):
    """Several texts, as a JSON array."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str:
        """What is sent to the database."""
        return msgspec.json.encode([clean(text) for text in value or ()]).decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[str, ...]:
        """What the database holds."""
        return msgspec.json.decode(value, type=tuple[str, ...])


def clean(text: str) -> str:
    """Text that any database takes."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def key_of(text: str) -> str:
    """The form of a key in the database."""
    return clean(text) if len(text) <= LONGEST_KEY else f"sha256:{digest(text)}"


def digest(text: str) -> str:
    """The SHA-256 of a text in hex."""
    return hashlib.sha256(clean(text).encode()).hexdigest()


class Tables:
    """All tables. Each has the tenant in its key, and :class:`~optillm.store.rows.Rows` in every query."""

    def __init__(self) -> None:
        made = MetaData()
        number = BigInteger().with_variant(Integer, "sqlite")
        self.runs = Table(
            "runs",
            made,
            Column("number", number, primary_key=True),
            Column("tenant", Key, nullable=False),
            Column("id", Key, nullable=False),
            Column("run", LargeBinary, nullable=False),
        )
        self.strategies = Table(
            "strategies",
            made,
            Column("tenant", Key, primary_key=True),
            Column("id", Key, primary_key=True),
            Column("type", Words, nullable=False),
            Column("text", Words, nullable=False),
            Column("examples", Texts, nullable=False),
            Column("success_count", BigInteger, nullable=False),
            Column("total_attempts", BigInteger, nullable=False),
            Column("confidence", Double, nullable=False),
            Column("created", Double, nullable=False),
            Column("last_used", Double),
            Column("last_updated", Double, nullable=False),
            Column("reasoning_examples", Texts, nullable=False),
            Column("tags", Texts, nullable=False),
        )
        self.notes = Table(
            "notes",
            made,
            Column("id", number, primary_key=True),
            Column("tenant", Key, nullable=False),
            Column("conversation", Key, nullable=False),
            Column("digest", Text, nullable=False),
            Column("text", Words, nullable=False),
            Column("source", Words, nullable=False),
            Column("created", Double, nullable=False),
            Column("used", Double, nullable=False),
            Column("max_age", Double, nullable=False),
        )
        self.summaries = Table(
            "summaries",
            made,
            Column("tenant", Key, primary_key=True),
            Column("key", Key, primary_key=True),
            Column("text", Words, nullable=False),
            Column("created", Double, nullable=False),
        )
        self.counters = Table(
            "counters",
            made,
            Column("tenant", Key, primary_key=True),
            Column("name", Key, primary_key=True),
            Column("value", BigInteger, nullable=False),
        )
        self.all = tuple(made.sorted_tables)
