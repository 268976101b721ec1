"""Where runs are kept for looking at: in memory, or in a file that several workers share."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import msgspec

from optillm.core.frozen import to_json
from optillm.settings import SettingsError

log = logging.getLogger("optillm")

MOST = 1000
"""Runs kept, of all tenants together."""


class RunStore(Protocol):
    """The last runs of each tenant; bounded."""

    def put(self, tenant: str, run_id: str, run: Mapping[str, Any]) -> None:
        """Keep a run: its JSON object."""
        ...

    async def get(self, tenant: str, run_id: str) -> dict[str, Any] | None:
        """A tenant's run, or None."""
        ...

    async def last(self, tenant: str, most: int = 100) -> list[dict[str, Any]]:
        """A tenant's latest runs, newest first, without their records."""
        ...

    async def aclose(self) -> None:
        """Write what waits, and close."""
        ...


def open_store(url: str) -> RunStore:
    """The store of a URL: empty for memory, or ``sqlite:///PATH``.

    Raises:
        SettingsError: another kind of URL, or the file cannot be opened.
    """
    if not url:
        return MemoryRuns()
    if not url.startswith("sqlite:///"):
        raise SettingsError(f"--store must be empty or sqlite:///PATH, not {url!r}")
    path = Path(url.removeprefix("sqlite:///")).expanduser()
    try:
        return SQLiteRuns(path)
    except (sqlite3.Error, OSError) as error:
        raise SettingsError(f"--store: cannot open {path}: {error}") from None


class MemoryRuns:
    """Runs of this process, as JSON text.

    As text they are small, and none of Python's business: a thousand runs kept as objects would be
    walked through by every full collection, while the event loop stands still.

    Args:
        most: runs kept.
        most_bytes: of their text.
    """

    def __init__(self, most: int = MOST, most_bytes: int = 64 << 20) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._runs: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0

    def put(self, tenant: str, run_id: str, run: Mapping[str, Any]) -> None:
        """See :class:`RunStore`; the oldest make room."""
        text = to_json(run)
        self._bytes += len(text) - len(self._runs.pop((tenant, run_id), b""))
        self._runs[tenant, run_id] = text
        while len(self._runs) > self._most or (self._bytes > self._most_bytes and len(self._runs) > 1):
            self._bytes -= len(self._runs.popitem(last=False)[1])

    async def get(self, tenant: str, run_id: str) -> dict[str, Any] | None:
        """See :class:`RunStore`."""
        found = self._runs.get((tenant, run_id))
        return msgspec.json.decode(found) if found else None

    async def last(self, tenant: str, most: int = 100) -> list[dict[str, Any]]:
        """See :class:`RunStore`."""
        mine = [text for (owner, _), text in reversed(self._runs.items()) if owner == tenant]
        return [_summary(msgspec.json.decode(text)) for text in mine[:most]]

    async def aclose(self) -> None:
        """Nothing to close."""


class SQLiteRuns:
    """Runs in a SQLite file, also of several processes at once. One thread reads and writes; requests
    do not wait for it.

    Args:
        path: the file; made if missing.
        most: runs kept.
        most_bytes: bytes of their JSON kept.
        slack: how many runs may be over these limits before room is made.
    """

    def __init__(self, path: Path, most: int = MOST, most_bytes: int = 256 << 20, slack: int = 100) -> None:
        self._most, self._most_bytes, self._slack = most, most_bytes, slack
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runs")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, timeout=30, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS runs (number INTEGER PRIMARY KEY, tenant TEXT NOT NULL,"
            " id TEXT NOT NULL, run BLOB NOT NULL, UNIQUE (tenant, id))"
        )

    def put(self, tenant: str, run_id: str, run: Mapping[str, Any]) -> None:
        """See :class:`RunStore`."""
        self._thread.submit(self._insert, tenant, run_id, run).add_done_callback(_report)

    async def get(self, tenant: str, run_id: str) -> dict[str, Any] | None:
        """See :class:`RunStore`."""
        rows = await self._read("SELECT run FROM runs WHERE tenant = ? AND id = ?", (tenant, run_id))
        return rows[0] if rows else None

    async def last(self, tenant: str, most: int = 100) -> list[dict[str, Any]]:
        """See :class:`RunStore`."""
        query = "SELECT run FROM runs WHERE tenant = ? ORDER BY number DESC LIMIT ?"
        return [_summary(run) for run in await self._read(query, (tenant, most))]

    async def aclose(self) -> None:
        """See :class:`RunStore`."""
        await asyncio.to_thread(self._thread.shutdown)
        self._db.close()

    def _insert(self, tenant: str, run_id: str, run: Mapping[str, Any]) -> None:
        query = "INSERT OR REPLACE INTO runs (tenant, id, run) VALUES (?, ?, ?)"
        number = self._db.execute(query, (tenant, run_id, to_json(run))).lastrowid or 0
        if number % self._slack == 0:
            self._db.execute("DELETE FROM runs WHERE number <= ?", (number - self._most,))
            self._db.execute(
                "DELETE FROM runs WHERE number <= (SELECT MAX(number) FROM (SELECT number, SUM(LENGTH(run))"
                " OVER (ORDER BY number DESC) AS total FROM runs) WHERE total > ? AND number < ?)",
                (self._most_bytes, number),
            )

    async def _read(self, query: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        def read() -> list[bytes]:
            return [row[0] for row in self._db.execute(query, tuple(values))]

        rows = await asyncio.get_running_loop().run_in_executor(self._thread, read)
        return [msgspec.json.decode(row) for row in rows]


def _report(write: Future[None]) -> None:
    if error := write.exception():
        log.error("a run could not be stored: %s: %s", type(error).__name__, error)


def _summary(run: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run.items() if k not in ("records", "choices")}
