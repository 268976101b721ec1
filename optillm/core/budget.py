"""How much a run may spend, and the stop when it is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from optillm.core.scope import CancelScope
from optillm.core.usage import Usage
from optillm.protocol.errors import BudgetExceeded

GRACE = 0.25
"""Seconds that a technique gets after its time is over, to make an answer of what it has."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may spend; None is no limit.

    Args:
        max_calls: upstream calls, at least 1.
        max_tokens: prompt and completion tokens over all calls, at least 1.
        max_seconds: wall time from the start of the run.
        max_cost: US dollars; needs prices.
        deadline: the server's own wall-time limit in seconds.
        server_calls: the server's own limit of calls; ``max_calls`` is at most that.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None
    deadline: float | None = None
    server_calls: int | None = None


class Budget:
    """The spending of one run. Every upstream call passes through :meth:`call`."""

    def __init__(self, limits: Limits, started: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.limits = limits
        self._loop = loop
        self.calls = 0
        self.usage = Usage()
        self.spent: str | None = None
        """Which limit has been reached, or None; nothing need have been cut by it."""
        self.ended: str | None = None
        """Which limit has refused or cancelled a call, or None."""
        self._reserved = 0
        self._refused: str | None = None
        self._calls: set[CancelScope] = set()
        self._work: set[CancelScope] = set()
        ends = [
            (started + seconds, name)
            for seconds, name in ((limits.max_seconds, "max_seconds"), (limits.deadline, "deadline"))
            if seconds is not None
        ]
        self._end: tuple[float, str] | None = min(ends, default=None)
        self._timer: asyncio.TimerHandle | None = None
        self._grace_is_over = False

    def start(self) -> None:
        """Watch the clock, until :meth:`close`. One timer serves all calls of the run."""
        if self._end is not None:
            at, name = self._end
            loop = self._loop or asyncio.get_running_loop()
            self._timer = loop.call_at(at, self._time_is_over, name)

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

    def close(self) -> None:
        """The run is over."""
        if self._timer is not None:
            self._timer.cancel()

    def work(self) -> AbstractContextManager[CancelScope]:
        """Around a technique: work that goes on without any call is ended a moment after the time.

        Raises:
            BudgetExceeded: it was ended, or it is too late to begin.
        """
        if self._grace_is_over:
            raise BudgetExceeded(self.ended or "deadline")
        return _Ending(self, self._work)

    def call(self) -> AbstractContextManager[CancelScope]:
        """Around one upstream call: refuses it when the budget is spent, cancels it when it ends.

        Raises:
            BudgetExceeded: no call may start, or only reserved ones, or the budget ended while this one
                was in flight.
        """
        if self.spent is None and self.calls == self.limits.max_calls:
            self.spent = "max_calls"
        if self.spent is not None:
            self.ended = self.spent
            raise BudgetExceeded(self.ended)
        if self.limits.max_calls is not None and self.calls + self._reserved >= self.limits.max_calls:
            self._refused = "max_calls"
            raise BudgetExceeded(self._refused)
        self.calls += 1
        return _Ending(self, self._calls)

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
        self.spent = self.spent or limit
        for scope in self._calls:
            scope.cancel()

    def _time_is_over(self, name: str) -> None:
        self.stop(name)
        self._timer = asyncio.get_running_loop().call_later(GRACE, self._end_work)

    def _end_work(self) -> None:
        self._grace_is_over = True
        for scope in self._work:
            scope.cancel()


class _Ending(CancelScope):
    """A scope that the budget ends; the end shows as BudgetExceeded."""

    __slots__ = ("_among", "_budget")

    def __init__(self, budget: Budget, among: set[CancelScope]) -> None:
        super().__init__(budget._loop)
        self._budget, self._among = budget, among

    def __enter__(self) -> CancelScope:
        self._among.add(self)
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        self._among.discard(self)
        if super().__exit__(kind, error, traceback):
            self._budget.ended = self._budget.spent or "deadline"
            raise BudgetExceeded(self._budget.ended) from None
        return False
