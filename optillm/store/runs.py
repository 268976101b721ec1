"""Where runs are kept for looking at: in memory, or in the store that several processes share."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from optillm.core.frozen import to_json
from optillm.protocol.errors import OptiError
from optillm.store.store import Store

log = logging.getLogger("optillm")

MOST = 1000
"""Runs kept, of all tenants together."""

AT_ONCE = 100
"""Runs written in one go."""


class Draft(Protocol):
    """A run whose JSON is made when somebody wants it; most are never looked at."""

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        ...

    def json(self) -> bytes:
        """The run's JSON object."""
        ...


Kept = Mapping[str, Any] | Draft


class RunStore(Protocol):
    """The last runs of each tenant; bounded."""

    def put(self, tenant: str, run_id: str, run: Kept) -> None:
        """Keep a run: its JSON object, or what makes it."""
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


class MemoryRuns:
    """Runs of this process, as JSON text, or as drafts of it.

    As text they are small, and none of Python's business: a thousand runs kept as objects would be
    walked through by every full collection, while the event loop stands still.

    Args:
        most: runs kept.
        most_bytes: of their text.
    """

    def __init__(self, most: int = MOST, most_bytes: int = 64 << 20) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._runs: OrderedDict[tuple[str, str], bytes | Draft] = OrderedDict()
        self._bytes = 0

    def put(self, tenant: str, run_id: str, run: Kept) -> None:
        """See :class:`RunStore`; the oldest make room."""
        made = to_json(run) if isinstance(run, Mapping) else run
        self._bytes += _size(made) - _size(self._runs.pop((tenant, run_id), b""))
        self._runs[tenant, run_id] = made
        while len(self._runs) > self._most or (self._bytes > self._most_bytes and len(self._runs) > 1):
            self._bytes -= _size(self._runs.popitem(last=False)[1])

    async def get(self, tenant: str, run_id: str) -> dict[str, Any] | None:
        """See :class:`RunStore`."""
        found = self._runs.get((tenant, run_id))
        return msgspec.json.decode(_text(found)) if found else None

    async def last(self, tenant: str, most: int = 100) -> list[dict[str, Any]]:
        """See :class:`RunStore`."""
        mine = [run for (owner, _), run in reversed(self._runs.items()) if owner == tenant]
        return [_summary(msgspec.json.decode(_text(run))) for run in mine[:most]]

    async def aclose(self) -> None:
        """Nothing to close."""


class StoredRuns:
    """Runs in the store. Requests do not wait for it: a task of its own writes, many at once if it must.

    Args:
        store: where they are kept; closed by whoever opened it.
        most: runs kept.
        most_bytes: bytes of their JSON kept.
        slack: how many runs may be over these limits before room is made.
        waiting: runs that may wait to be written; of more, the oldest are given up.
    """

    def __init__(
        self,
        store: Store,
        most: int = MOST,
        most_bytes: int = 256 << 20,
        slack: int = 100,
        waiting: int = MOST,
    ) -> None:
        self._store = store
        self._most, self._most_bytes, self._slack, self._longest = most, most_bytes, slack, waiting
        self._waiting: deque[tuple[str, str, Kept]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._progress = asyncio.Condition()
        self._put = self._done = 0
        # Of what another process left in the store, only the first write can tell.
        self._over = slack

    def put(self, tenant: str, run_id: str, run: Kept) -> None:
        """See :class:`RunStore`."""
        self._waiting.append((tenant, run_id, run))
        self._put += 1
        if len(self._waiting) > self._longest:
            self._done += 1
            log.error("run %s is not kept: the store does not keep up", self._waiting.popleft()[1])
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write_all())

    async def get(self, tenant: str, run_id: str) -> dict[str, Any] | None:
        """See :class:`RunStore`."""
        await self._written()
        found = await self._store.read(tenant, lambda rows: rows.run(run_id))
        return None if found is None else msgspec.json.decode(found)

    async def last(self, tenant: str, most: int = 100) -> list[dict[str, Any]]:
        """See :class:`RunStore`."""
        await self._written()
        found = await self._store.read(tenant, lambda rows: rows.last_runs(most))
        # Whole records are read for it: aside, so that nobody waits.
        return await asyncio.to_thread(lambda: [_summary(msgspec.json.decode(run)) for run in found])

    async def aclose(self) -> None:
        """See :class:`RunStore`."""
        await self._written()

    async def _written(self) -> None:
        """Wait until what was put before now is written, or given up."""
        before = self._put
        async with self._progress:
            await self._progress.wait_for(lambda: self._done >= before)

    async def _write_all(self) -> None:
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            by_tenant: dict[str, dict[str, Kept]] = {}
            for tenant, run_id, run in some:
                by_tenant.setdefault(tenant, {})[run_id] = run
            for tenant, runs in by_tenant.items():
                await self._write(tenant, runs)
            self._done += len(some)
            async with self._progress:
                self._progress.notify_all()

    async def _write(self, tenant: str, runs: Mapping[str, Kept]) -> None:
        texts = await asyncio.to_thread(_texts, runs)
        try:
            await self._store.write(tenant, lambda rows: rows.put_runs(texts))
            self._over += len(texts)
            if self._over >= self._slack:
                await (await self._store.database()).bound_runs(self._most, self._most_bytes)
                self._over = 0
        except OptiError as error:
            log.error("%d runs could not be stored: %s", len(texts), error)


def _text(run: bytes | Kept) -> bytes:
    if isinstance(run, bytes):
        return run
    return to_json(run) if isinstance(run, Mapping) else run.json()


def _size(run: bytes | Draft) -> int:
    return len(run) if isinstance(run, bytes) else run.size


def _texts(runs: Mapping[str, Kept]) -> dict[str, bytes]:
    """The JSON of each run; of one that has none, the log tells."""
    texts: dict[str, bytes] = {}
    for run_id, run in runs.items():
        try:
            texts[run_id] = _text(run)
        except (TypeError, ValueError, RecursionError) as error:
            log.error("run %s could not be stored: %s: %s", run_id, type(error).__name__, error)
    return texts


def _summary(run: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run.items() if k not in ("records", "choices")}
