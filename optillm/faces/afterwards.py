"""What runs leave until their answer has been delivered: learning, which no client waits for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optillm.core.budget import Limits
from optillm.core.reply import Reply
from optillm.core.run import Later, Run
from optillm.protocol.errors import OptiError

Keep = Callable[[str, str, Mapping[str, Any]], None]
"""Keeps a run: tenant, id, its JSON object."""

MOST = 256
"""What may wait, per tenant."""
LAST = 1.0
"""Seconds in which work has to come to its end when it is told to."""

log = logging.getLogger("optillm")


@dataclass(frozen=True)
class _Job:
    """Work that waits: of which run, what its client was given, and the server's limits."""

    later: Later
    parent: Run
    delivered: tuple[Reply, ...]
    limits: Limits


class Afterwards:
    """A queue for each tenant, worked off one at a time: what two runs of a tenant learn does not collide,
    and no tenant waits for another.

    Args:
        keep: where the runs are kept in which the work is done; nowhere if None.
        most: what may wait, per tenant, at least 1; more than that is dropped.
    """

    def __init__(self, keep: Keep | None = None, most: int = MOST) -> None:
        self.dropped = 0
        """How many were dropped: the queue was full, or the server shut down."""
        self.failed = 0
        """How many ended with an error."""
        self._keep, self._most = keep, most
        self._waiting: dict[str, deque[_Job]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._running: set[Run] = set()
        self._ended = False

    def put(self, run: Run, delivered: tuple[Reply, ...], limits: Limits) -> None:
        """Do what a run has left, when its turn comes; its answer has been delivered.

        Args:
            run: it has ended.
            delivered: the client's choices, one or more.
            limits: the server's, for each run that does such work.
        """
        for later in run.later:
            if self._ended:
                self._drop(run, later, "the server is shutting down")
            elif len(self._waiting.get(run.tenant, ())) >= self._most:
                self._drop(run, later, "too many wait")
            else:
                self._waiting.setdefault(run.tenant, deque()).append(_Job(later, run, delivered, limits))
        if run.tenant in self._waiting and run.tenant not in self._workers:
            self._workers[run.tenant] = asyncio.create_task(self._work(run.tenant))

    async def drain(self, grace: float | None = None) -> None:
        """Wait until everything is done.

        Args:
            grace: seconds after which what is left is ended or dropped; None waits as long as it takes.
        """
        timer = None
        if grace is not None:
            timer = asyncio.get_running_loop().call_later(grace, self.end)
        try:
            while self._workers:
                await asyncio.wait(self._workers.values())
        finally:
            if timer is not None:
                timer.cancel()

    def end(self) -> None:
        """End what is under way, drop what waits, take nothing more. What was written stays written."""
        self._ended = True
        for queue in self._waiting.values():
            self._clear(queue)
        for run in self._running:
            run.budget.stop("shutdown")
        for worker in self._workers.values():
            asyncio.get_running_loop().call_later(LAST, worker.cancel)

    async def aclose(self) -> None:
        """:meth:`end`, and wait for nothing but that."""
        self.end()
        for worker in self._workers.values():
            worker.cancel()
        await self.drain()

    def _drop(self, run: Run, later: Later, why: str) -> None:
        self.dropped += 1
        run.trace.note("afterwards.dropped", later.unit, {"id": later.id, "why": why})
        log.warning("%s dropped: %s (%s so far)", later.id, why, self.dropped)

    def _clear(self, queue: deque[_Job]) -> None:
        while queue:
            job = queue.popleft()
            self._drop(job.parent, job.later, "the server is shutting down")

    async def _work(self, tenant: str) -> None:
        queue = self._waiting[tenant]
        try:
            while queue:
                job = queue.popleft()
                try:
                    await self._do(job)
                except Exception:
                    # The outermost edge of work that nobody waits for; what comes next is another run's.
                    log.exception("%s failed", job.later.id)
        finally:
            # Anything is left only if this was cancelled.
            self._clear(queue)
            del self._waiting[tenant], self._workers[tenant]

    async def _do(self, job: _Job) -> None:
        limits = job.limits
        calls = job.later.max_calls
        if limits.max_calls is not None:
            calls = min(calls, limits.max_calls)
        run = job.parent.child(job.later.id, Limits(max_calls=calls, deadline=limits.deadline))
        created = run.now()
        problem: str | None = None
        self._running.add(run)
        try:
            with run.under_way(), run.budget.work():
                await job.later.work(run, job.delivered)
        except OptiError as error:
            problem = error.message
            log.warning("%s failed: %s", run.id, problem)
        except BaseException as error:
            problem = str(error) or type(error).__name__
            raise
        finally:
            self._running.discard(run)
            self.failed += problem is not None
            if self._keep is not None:
                self._keep(run.tenant, run.id, _record(job, run, problem, created))


def _record(job: _Job, run: Run, problem: str | None, created: float) -> dict[str, Any]:
    """What ``GET /v1/runs/{id}`` shows of it."""
    return {
        "run_id": run.id,
        "parent": job.parent.id,
        "approach": job.later.unit,
        "model": run.model,
        **run.spent(),
        "id": run.id,
        "object": "run",
        "created": created,
        "seed": run.seed_used,
        "error": problem,
        "usage": run.budget.usage.to_dict(),
        "choices": [],
        "records": run.trace.to_list(),
    }
