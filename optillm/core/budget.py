"""How much a run may spend, and the stop when it is spent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from optillm.core.usage import Usage
from optillm.protocol.errors import BudgetExceeded


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may spend; None is no limit.

    Args:
        max_calls: upstream calls, at least 1.
        max_tokens: prompt and completion tokens over all calls, at least 1.
        max_seconds: wall time from the start of the run.
        max_cost: US dollars; needs prices.
        deadline: the server's own wall-time limit in seconds.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None
    deadline: float | None = None


class Budget:
    """The spending of one run. Every upstream call passes through :meth:`call`."""

    def __init__(self, limits: Limits, started: float) -> None:
        self.limits = limits
        self.calls = 0
        self.usage = Usage()
        self.ended: str | None = None
        """Which limit has ended the run, or None."""
        self._in_flight: set[asyncio.Timeout] = set()
        self._reserved = 0
        self._refused: str | None = None
        ends = [
            (started + seconds, name)
            for seconds, name in ((limits.max_seconds, "max_seconds"), (limits.deadline, "deadline"))
            if seconds is not None
        ]
        self._end: float | None
        self._end, self.end_name = min(ends, default=(None, "deadline"))

    @property
    def end(self) -> float | None:
        """The loop time at which the run ends, or None."""
        return self._end

    @property
    def cut_short(self) -> str | None:
        """Which limit kept the run from a call that it wanted, or ended it; None: it had all it needed."""
        return self.ended or self._refused

    @contextmanager
    def reserving(self, calls: int) -> Iterator[None]:
        """Hold back the run's last calls for what comes after the block.

        Inside it, a call that would need one of them is refused, and the run goes on: so a technique
        that prepares first and answers last leaves out preparations, not the answer.

        Args:
            calls: how many, at least 0. Nested and concurrent reservations add up.
        """
        self._reserved += calls
        try:
            yield
        finally:
            self._reserved -= calls

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Around one upstream call: refuses it when the budget is spent, cancels it when it ends.

        Raises:
            BudgetExceeded: no call may start, or only reserved ones, or the budget ended while this one
                was in flight.
        """
        if self.ended is None and self.calls == self.limits.max_calls:
            self.ended = "max_calls"
        if self.ended is not None:
            raise BudgetExceeded(self.ended)
        if self.limits.max_calls is not None and self.calls + self._reserved >= self.limits.max_calls:
            self._refused = "max_calls"
            raise BudgetExceeded(self._refused)
        self.calls += 1
        try:
            async with asyncio.timeout_at(self._end) as timeout:
                self._in_flight.add(timeout)
                try:
                    yield
                finally:
                    self._in_flight.discard(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            self.ended = self.ended or self.end_name
            raise BudgetExceeded(self.ended) from None

    def spend(self, usage: Usage) -> None:
        """Add what a reply cost; ends the run when a limit is reached."""
        self.usage += usage
        limits = self.limits
        if limits.max_tokens is not None and self.usage.total >= limits.max_tokens:
            self.stop("max_tokens")
        if limits.max_cost is not None and (self.usage.cost or 0) >= limits.max_cost:
            self.stop("max_cost")

    def stop(self, limit: str) -> None:
        """End the run now: calls in flight are cancelled, no other starts."""
        self.ended = self.ended or limit
        now = asyncio.get_running_loop().time()
        for timeout in self._in_flight:
            if not timeout.expired():
                timeout.reschedule(now)
