"""Sharing an upstream's capacity: properties of the scheduler, and what it means over HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.upstreams.scheduler import FairScheduler
from tests.fakes import Said, ScriptedUpstream, Seen
from tests.serving import serving
from tests.upstreams.servers import call, upstream

RUNS = "abcd"
# What happens, in order: a call of a run comes, one that holds a place ends, or one is cancelled.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from(RUNS)),
        st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 50)),
    ),
    max_size=60,
)


class World:
    """Calls under way at a scheduler, and a plain account of what it owes to whom."""

    def __init__(self, limit: int) -> None:
        self.scheduler = FairScheduler(limit)
        self.tasks: list[asyncio.Task[None]] = []
        self.runs: dict[asyncio.Task[None], str] = {}
        self.ends: dict[asyncio.Task[None], asyncio.Event] = {}
        self.holding: list[asyncio.Task[None]] = []

    async def step(self, what: str, which: str | int) -> None:
        if what == "come":
            run, end = str(which), asyncio.Event()

            async def hold() -> None:
                task = asyncio.current_task()
                assert task is not None
                async with self.scheduler.turn(run):
                    self.check_grant(task)
                    self.holding.append(task)
                    try:
                        await end.wait()
                    finally:
                        self.holding.remove(task)

            task = asyncio.create_task(hold())
            self.tasks.append(task)
            self.runs[task], self.ends[task] = run, end
        elif what == "end" and self.holding:
            self.ends[self.holding[int(which) % len(self.holding)]].set()
        elif what == "cancel" and self.tasks:
            self.tasks[int(which) % len(self.tasks)].cancel()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.result()
        self.tasks = [t for t in self.tasks if not t.done()]
        assert self.scheduler.in_flight == len(self.holding) <= self.scheduler.limit
        # A place is empty only when nobody waits.
        assert len(self.holding) == min(self.scheduler.limit, len(self.tasks))

    def check_grant(self, task: asyncio.Task[None]) -> None:
        """Nobody who waits belongs to a run that holds fewer places."""
        held = Counter(self.runs[t] for t in self.holding)
        left = [t for t in self.tasks if not t.done() and not t.cancelling() and t not in self.holding]
        assert all(held[self.runs[task]] <= held[self.runs[t]] for t in left)
        # Within a run, first come, first served.
        assert next(t for t in left if self.runs[t] == self.runs[task]) is task


@given(limit=st.integers(1, 4), steps=STEPS)
def test_never_over_the_limit_never_idle_and_the_smallest_run_first(
    limit: int, steps: list[tuple[str, str | int]]
) -> None:
    async def play() -> None:
        world = World(limit)
        for what, which in steps:
            await world.step(what, which)
        # No place and no call is lost: all that is left gets its turn.
        while world.tasks:
            await world.step("end", 0)
        assert world.scheduler.in_flight == 0
        # And the whole of its capacity is there again.
        for _ in range(limit):
            await world.step("come", "z")
        assert len(world.holding) == limit
        for _ in range(limit):
            await world.step("end", 0)

    asyncio.run(play())


@given(
    limit=st.integers(1, 3),
    greedy=st.integers(1, 30),
    before=st.integers(0, 2),
)
def test_a_single_call_waits_for_two_places_at_most(limit: int, greedy: int, before: int) -> None:
    """Whatever one run has queued, another's first call is next, or next but one."""

    async def play() -> None:
        world = World(limit)
        for _ in range(limit + greedy):
            await world.step("come", "a")
        for _ in range(before):
            await world.step("end", 0)
        await world.step("come", "b")
        for _ in range(2):
            if "b" not in [world.runs[t] for t in world.holding]:
                await world.step("end", 0)
        assert "b" in [world.runs[t] for t in world.holding]
        while world.tasks:
            await world.step("end", 0)

    asyncio.run(play())


def test_equals_take_turns() -> None:
    async def play() -> list[str]:
        scheduler, order = FairScheduler(1), list[str]()

        async def one(run: str) -> None:
            async with scheduler.turn(run):
                order.append(run)
                await asyncio.sleep(0)

        await asyncio.gather(*(one(run) for run in "aaaabbcc"))
        return order

    assert asyncio.run(play()) == list("aabcabca")


def test_a_place_granted_to_one_who_leaves_goes_on() -> None:
    async def play() -> None:
        scheduler = FairScheduler(1)
        await scheduler.acquire("a")
        second = asyncio.create_task(scheduler.acquire("b"))
        third = asyncio.create_task(scheduler.acquire("c"))
        await asyncio.sleep(0)
        scheduler.release("a")
        # Granted, but cancelled before it could know.
        second.cancel()
        await asyncio.wait((second, third))
        assert second.cancelled()
        assert third.done()
        assert scheduler.in_flight == 1
        scheduler.release("c")
        assert scheduler.in_flight == 0

    asyncio.run(play())


@pytest.mark.anyio
async def test_200_calls_of_one_request_do_not_starve_the_call_of_another() -> None:
    places = asyncio.Semaphore(4)

    async def script(seen: Seen) -> Said:
        await places.acquire()
        return f"The answer is {seen.last}"

    settings: dict[str, Any] = {"n_mode": "fanout", "max_concurrency": 200, "upstream_concurrency": 4}
    async with ScriptedUpstream(script) as up, serving(up, **settings) as proxy:
        greedy = asyncio.ensure_future(proxy.ask("self_consistency(samples=50)-m", "greedy", n=4))
        # All 200 are at the upstream or in the queue; four have been answered, four hang.
        await up.until(lambda: len(up.calls) == 8)
        single = asyncio.ensure_future(proxy.ask("m", "single"))
        await proxy.get("/health")
        # It needs one place to come free, whatever else is in the queue, and at most one more is
        # taken by a call whose turn came before it was there.
        while not any(c.last == "single" for c in up.calls):
            before = len(up.calls)
            places.release()
            await up.until(lambda before=before: len(up.calls) > before)  # type: ignore[misc]
        assert len(up.calls) <= 8 + 3
        for _ in range(300):
            places.release()
        assert (await single).text == "The answer is single"
        assert (await greedy).info["calls"] == 200
        assert up.peak == 4


@pytest.mark.anyio
async def test_a_slow_reader_keeps_its_place() -> None:
    """The upstream still sends to it, so that its call is one of those in flight."""
    async with ScriptedUpstream("a long answer") as up, upstream(up.base_url, concurrency=1) as client:
        slow = client.stream(call(run="slow"))
        await anext(slow)
        waiting = asyncio.ensure_future(client.complete(call(run="other")))
        await up.until(lambda: up.calls[0].outcome == "answered")
        assert not waiting.done()
        await slow.aclose()
        assert b"a long answer" in await waiting
