"""Sharing an upstream's capacity fairly: by run, not by call."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairScheduler:
    """At most ``limit`` calls at once; the waiting runs take turns.

    A freed place goes to the run with the fewest calls in flight, among those the one that has
    waited longest for its turn. So 200 calls of one run cannot starve the single call of another.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._held: dict[str, int] = {}
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, run_id: str) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        await self.acquire(run_id)
        try:
            yield
        finally:
            self.release(run_id)

    async def acquire(self, run_id: str) -> None:
        """Wait for a place; whoever has one gives it back by :meth:`release`."""
        if self.in_flight < self.limit:
            self._take(run_id)
        else:
            await self._wait(run_id)

    def release(self, run_id: str) -> None:
        """Give a place back."""
        self.in_flight -= 1
        self._held[run_id] -= 1
        if not self._held[run_id]:
            del self._held[run_id]
        self._grant()

    async def _wait(self, run_id: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run_id, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(run_id)
            else:
                self._forget(run_id, place)
            raise

    def _take(self, run_id: str) -> None:
        self.in_flight += 1
        self._held[run_id] = self._held.get(run_id, 0) + 1

    def _grant(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            # min() keeps the first of equals, and the order is that of the last turns.
            run_id = min(self._waiting, key=lambda r: self._held.get(r, 0))
            queue = self._waiting[run_id]
            place = queue.popleft()
            if queue:
                self._waiting.move_to_end(run_id)
            else:
                del self._waiting[run_id]
            if not place.done():
                self._take(run_id)
                place.set_result(None)

    def _forget(self, run_id: str, place: asyncio.Future[None]) -> None:
        queue = self._waiting.get(run_id)
        if queue and place in queue:
            queue.remove(place)
            if not queue:
                del self._waiting[run_id]
