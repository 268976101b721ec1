"""The open database: its connections, its transactions, and what goes wrong with it.

The only module, with :mod:`~optillm.store.rows`, :mod:`~optillm.store.tables` and
:mod:`~optillm.store.migrations`, that imports SQLAlchemy; it is imported when a store is first used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from sqlalchemy import URL, AsyncAdaptedQueuePool, Connection, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from optillm.protocol.errors import MissingExtra, StoreError
from optillm.store.migrations import is_current, upgrade
from optillm.store.places import BUSY_SECONDS, named, sqlite_path
from optillm.store.rows import Rows, bound_runs
from optillm.store.tables import Tables

T = TypeVar("T")

log = logging.getLogger("optillm")

CONNECTIONS = 4
"""Connections of one process, at most."""

TRIES = 5
"""How often a change is begun that collides with others, each of which waits for the other."""

SQLITE_REASONS = (
    ("SQLITE_BUSY", f"another process has locked it, and did not let go for {BUSY_SECONDS:g} s"),
    ("SQLITE_LOCKED", f"another process has locked it, and did not let go for {BUSY_SECONDS:g} s"),
    ("SQLITE_READONLY", "it is read-only"),
    ("SQLITE_FULL", "it is full: the disk has no space left, or its size is limited"),
    ("SQLITE_TOOBIG", "what was to be stored is too large for it"),
    ("SQLITE_NOTADB", "its file is not a database"),
    ("SQLITE_CORRUPT", "its file is damaged"),
    ("SQLITE_CANTOPEN", "its file cannot be opened"),
    ("SQLITE_IOERR", "its file cannot be read or written"),
)
POSTGRES_REASONS = (
    ("25006", "it is read-only"),
    ("53300", "it has no connection left"),
    ("53", "it is full: it has no space or memory left"),
    ("55P03", f"somebody has locked it, and did not let go for {BUSY_SECONDS:g} s"),
    ("40", "too many change the same at once"),
    ("42501", "it does not allow this to its user"),
    ("57P", "it is shutting down"),
)
COLLISIONS = ("40001", "40P01")
"""PostgreSQL: transactions that can be begun again."""


class Database:
    """An open store.

    Args:
        url: where it is; empty for memory.
    """

    def __init__(self, url: str) -> None:
        self._name = named(url)
        self._tables = Tables()
        self._engine = _engine(url)
        # One change at a time in a process: waiting for each other here is quicker, and fairer, than
        # asking SQLite again and again for its only lock.
        sqlite = self._engine.dialect.name == "sqlite"
        self._turn: AbstractAsyncContextManager[object] = asyncio.Lock() if sqlite else nullcontext()

    @classmethod
    async def open(cls, url: str) -> Database:
        """Open it, and bring its tables to this program's version.

        Raises:
            StoreError: it cannot be used.
            MissingExtra: its driver is not installed.
        """
        try:
            database = cls(url)
        except ImportError:
            raise MissingExtra("postgres", "a PostgreSQL store") from None
        try:
            await whole(database._upgrade())
        except BaseException:
            await database.aclose()
            raise
        return database

    async def read(self, tenant: str, work: Callable[[Rows], Awaitable[T]]) -> T:
        """Do queries of a tenant that change nothing.

        Raises:
            StoreError: the store does not answer.
        """
        return await whole(self._read(lambda connection: work(Rows(connection, self._tables, tenant))))

    async def write(self, tenant: str, work: Callable[[Rows], Awaitable[T]]) -> T:
        """Do queries of a tenant in one transaction: all of them, or none if anything is raised.

        ``work`` may be done again, if others came between.

        Raises:
            StoreError: the store does not answer; nothing of it was done, unless the connection broke
                just when all of it was.
        """
        return await whole(self._write(lambda connection: work(Rows(connection, self._tables, tenant))))

    async def bound_runs(self, most: int, most_bytes: int) -> None:
        """See :func:`optillm.store.rows.bound_runs`."""
        await whole(self._write(lambda connection: bound_runs(connection, self._tables, most, most_bytes)))

    async def aclose(self) -> None:
        """Close all connections."""
        await whole(self._engine.dispose())

    async def _upgrade(self) -> None:
        # Looked at first, so that a store can be read while another process changes it.
        if not await self._read(lambda connection: connection.run_sync(is_current)):
            await self._write(lambda connection: connection.run_sync(upgrade))

    async def _read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        with self._told():
            async with self._engine.connect() as connection:
                await connection.execution_options(begin="BEGIN")
                return await work(connection)

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for left in reversed(range(TRIES)):
            with self._told():
                try:
                    async with self._turn, self._engine.begin() as connection:
                        return await work(connection)
                except DBAPIError as error:
                    if not left or getattr(error.orig, "sqlstate", None) not in COLLISIONS:
                        raise
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a database says into what happened; the log has its own words."""
        try:
            yield
        except (DBAPIError, PoolTimeout, OSError) as error:
            cause = getattr(error, "orig", None) or error
            log.error("%s: %s: %s", self._name, type(cause).__name__, " ".join(str(cause).split()))
            raise StoreError(f"the store cannot be used: {_reason(error)}; what it holds is kept") from error


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end, also when the task is cancelled meanwhile; the cancellation goes on then.

    A transaction takes milliseconds; to break off in it would cost the connection, and a store in memory
    is gone with its connection.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Asked for, so that asyncio does not complain that nobody did.
        task.exception()
        raise cancelled
    return task.result()


def _engine(url: str) -> AsyncEngine:
    """The engine of a store's URL; it connects when it is used."""
    path = sqlite_path(url)
    if url and path is None:
        server = make_url(url).set(drivername="postgresql+psycopg")
        # A pooler between us and the server may give each transaction another connection: nothing is
        # prepared, and limits are set in each.
        engine = create_async_engine(
            server,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=4 * BUSY_SECONDS,
            pool_pre_ping=True,
            connect_args={"connect_timeout": int(BUSY_SECONDS), "prepare_threshold": None},
        )
        event.listen(engine.sync_engine, "begin", _limit)
        return engine
    # Memory is that of one connection, which must never be given back to the system.
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path) if path else None),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=CONNECTIONS if path else 1,
        max_overflow=0,
        pool_timeout=4 * BUSY_SECONDS,
        connect_args={"timeout": BUSY_SECONDS},
    )
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _prepare(connection: Any, record: Any) -> None:
    """A new connection to SQLite: readers and a writer at once; what has been committed is on the disk."""
    # Transactions are begun by _begin, and not behind our back.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    """A change takes SQLite's lock at once, and waits for it: one that began as a reader could not."""
    begin = connection.get_execution_options().get("begin", "BEGIN IMMEDIATE")
    connection.exec_driver_sql(begin)


def _limit(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(BUSY_SECONDS * 1000)}")


def _reason(error: Exception) -> str:
    """What happened, in words that any client may read: without names of files and machines."""
    if isinstance(error, PoolTimeout):
        return "it is too slow for what is asked of it"
    cause = getattr(error, "orig", None)
    name: str | None = getattr(cause, "sqlite_errorname", None)
    state: str | None = getattr(cause, "sqlstate", None)
    for code, reasons in ((name, SQLITE_REASONS), (state, POSTGRES_REASONS)):
        for start, reason in reasons:
            if code is not None and code.startswith(start):
                return reason
    if name is None and state is None:
        # PostgreSQL gives no code to a connection that it refuses; the log has its words.
        return "it cannot be reached, or refuses the connection"
    return f"it reported {name or state}"
