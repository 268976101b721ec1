"""What a run did: its calls, scores and choices, in order, with times and causes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from optillm.core.reply import Reply
from optillm.core.usage import Usage

# Where the current task stands in its run: how many calls lie before it on its path. The value is
# per task (asyncio copies the context), so that no run sees another's.
DEPTH: ContextVar[int] = ContextVar("optillm_depth", default=0)


@dataclass(slots=True)
class CallRecord:
    """One upstream call of a run; ``score`` is what a reward model gave."""

    stage: str
    unit: str
    upstream: str
    request: Mapping[str, Any]
    started: float
    depth: int
    tag: str | None = None
    ended: float | None = None
    replies: tuple[Reply, ...] = ()
    raw: bytes | None = None
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    score: float | None = None

    def to_dict(self, since: float) -> dict[str, Any]:
        """The call as a JSON value; times in seconds since the start of the run."""
        replies = [
            {"message": r.message, "finish_reason": r.finish_reason, "logprobs": r.logprobs}
            for r in self.replies
        ]
        return {
            "kind": "call",
            "stage": self.stage,
            "unit": self.unit,
            "tag": self.tag,
            "upstream": self.upstream,
            "model": self.request.get("model"),
            "depth": self.depth,
            "started": round(self.started - since, 6),
            "ended": None if self.ended is None else round(self.ended - since, 6),
            "request": self.request,
            "replies": replies,
            "usage": self.usage.to_dict(),
            "error": self.error,
            **({} if self.score is None else {"score": self.score}),
        }


@dataclass(slots=True)
class NoteRecord:
    """Something a technique found out or decided: scores, votes, a tree, a choice."""

    name: str
    unit: str
    at: float
    data: Mapping[str, Any]

    def to_dict(self, since: float) -> dict[str, Any]:
        """The note as a JSON value."""
        at = round(self.at - since, 6)
        return {"kind": "note", "name": self.name, "unit": self.unit, "at": at, "data": self.data}


class Trace:
    """The records of one run, in the order in which they began."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.started = clock()
        self.ended: float | None = None
        self.records: list[CallRecord | NoteRecord] = []

    @property
    def calls(self) -> Sequence[CallRecord]:
        """The upstream calls."""
        return [r for r in self.records if isinstance(r, CallRecord)]

    @property
    def depth(self) -> int:
        """Upstream calls on the longest chain of calls that each waited for the one before."""
        return max([r.depth for r in self.records if isinstance(r, CallRecord)], default=0)

    @property
    def seconds(self) -> float:
        """Wall time so far, or of the whole run once it has ended."""
        return (self.clock() if self.ended is None else self.ended) - self.started

    def note(self, name: str, unit: str, data: Mapping[str, Any]) -> NoteRecord:
        """Record a finding or decision."""
        record = NoteRecord(name, unit, self.clock(), data)
        self.records.append(record)
        return record

    def to_list(self) -> list[dict[str, Any]]:
        """All records as JSON values."""
        return [r.to_dict(self.started) for r in self.records]
