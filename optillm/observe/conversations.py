"""The conversation log: one JSON object per request, one file per UTC day."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optillm.core.execute import Outcome
from optillm.core.frozen import thaw, to_json
from optillm.core.run import Run

log = logging.getLogger("optillm")

_SECRET = frozenset({"authorization", "api_key", "api-key", "bearer", "password"})


@dataclass(frozen=True)
class Entry:
    """What is logged of one request."""

    created: float
    approach: str
    model: str
    request: Mapping[str, Any]
    run: Run
    outcome: Outcome | None
    error: str | None
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of a line."""
        run = self.run
        since = run.trace.started
        return {
            "timestamp": _iso(self.created),
            "request_id": "req_" + run.id[-8:],
            "approach": self.approach,
            "model": self.model,
            "client_request": _redacted(self.request),
            "provider_calls": [
                {
                    "call_number": number,
                    "timestamp": _iso(self.created + call.started - since),
                    "request": _redacted(call.request),
                    "response": call.to_dict(since)["replies"],
                }
                for number, call in enumerate(run.trace.calls, 1)
            ],
            "final_response": [thaw(r.message) for r in self.outcome.replies] if self.outcome else None,
            "total_duration_ms": round(run.trace.seconds * 1000),
            "error": self.error,
            "tenant": run.tenant,
            "run_id": run.id,
            "usage": run.budget.usage.to_dict(),
        }


class ConversationLog:
    """Appends entries from a bounded queue; an overflow is counted, nobody waits.

    Args:
        folder: where the files are; made if missing.
        size: entries that may wait to be written.
    """

    def __init__(self, folder: str, size: int = 1000) -> None:
        self._folder = Path(folder).expanduser()
        self._queue: asyncio.Queue[Entry | None] = asyncio.Queue(size)
        self._writer: asyncio.Task[None] | None = None
        self.lost = 0

    def start(self) -> None:
        """Make the folder and begin to write."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = asyncio.create_task(self._write_all())

    def put(self, entry: Entry) -> None:
        """Log an entry, unless too many wait."""
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            self.lost += 1

    async def aclose(self) -> None:
        """Write what waits, and stop."""
        await self._queue.put(None)
        if self._writer is not None:
            await self._writer

    async def _write_all(self) -> None:
        while (entry := await self._queue.get()) is not None:
            try:
                await asyncio.to_thread(self._append, entry)
            except OSError as error:
                self.lost += 1
                log.warning("conversation log: %s", error)

    def _append(self, entry: Entry) -> None:
        day = datetime.fromtimestamp(entry.created, UTC).date().isoformat()
        # One write of a whole line to a file opened for appending: lines of other processes stay whole.
        with (self._folder / f"conversations_{day}.jsonl").open("ab", buffering=0) as file:
            file.write(to_json(entry.to_dict()) + b"\n")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _redacted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: "[redacted]" if str(k).lower() in _SECRET else _redacted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(v) for v in value]
    return value
