"""The conversation log: one JSON object per request, one file per UTC day."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import SEEK_END
from pathlib import Path
from typing import Any

from optillm.core.execute import Outcome
from optillm.core.frozen import thaw, to_json
from optillm.core.reply import Reply
from optillm.core.run import Run
from optillm.core.trace import CallRecord

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
                    "response": _response(call),
                }
                for number, call in enumerate(run.trace.calls, 1)
            ],
            "final_response": self._final(),
            "total_duration_ms": round(run.trace.seconds * 1000),
            "error": self.error,
            "tenant": run.tenant,
            "run_id": run.id,
            "usage": run.budget.usage.to_dict(),
        }

    def _final(self) -> dict[str, Any] | None:
        if self.outcome is None:
            return None
        return {
            "id": self.run.id,
            "object": "chat.completion",
            "created": int(self.created),
            "model": self.model,
            "choices": _choices(self.outcome.replies),
            "usage": self.run.budget.usage.to_dict(),
            "optillm": thaw(self.about),
        }


def _response(call: CallRecord) -> dict[str, Any]:
    """What came back of a call, as the upstream's completion or as an error."""
    if call.error is not None:
        return {"error": {"message": call.error}}
    return {
        "object": "chat.completion",
        "model": call.request.get("model"),
        "choices": _choices(call.replies),
        "usage": call.usage.to_dict(),
    }


def _choices(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    return [
        {"index": i, "message": thaw(r.message), "finish_reason": r.finish_reason}
        for i, r in enumerate(replies)
    ]


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
        if self._writer is not None:
            await self._queue.put(None)
            await self._writer
        if self.lost:
            log.warning("conversation log: %s entries were not written", self.lost)

    async def _write_all(self) -> None:
        while (entry := await self._queue.get()) is not None:
            try:
                await asyncio.to_thread(self._append, entry)
            # An edge: one entry that cannot be written must not end the writing of others.
            except Exception as error:
                self.lost += 1
                log.warning("conversation log: %s: %s", type(error).__name__, error)

    def _append(self, entry: Entry) -> None:
        day = datetime.fromtimestamp(entry.created, UTC).date().isoformat()
        line = to_json(entry.to_dict()) + b"\n"
        with (self._folder / f"conversations_{day}.jsonl").open("a+b", buffering=0) as file:
            # One writer at a time, of all processes: a line that is half written is seen by none.
            # The lock goes with the file, also when its holder dies.
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                # A writer that died left part of a line; this one does not become part of it.
                line = b"\n" + line
            written = file.write(line)
            if written != len(line):  # the disk is full
                raise OSError(f"{written} of {len(line)} bytes written")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _redacted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: "[redacted]" if str(k).lower() in _SECRET else _redacted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(v) for v in value]
    return value
