"""A scope ends its own block, and lets every other cancellation pass."""

from __future__ import annotations

import asyncio

import pytest

from optillm.core.budget import Budget, Limits
from optillm.core.scope import CancelScope
from optillm.protocol.errors import BudgetExceeded

pytestmark = pytest.mark.anyio


async def test_cancelling_a_scope_ends_its_block_and_nothing_after_it() -> None:
    scope = CancelScope()
    asyncio.get_running_loop().call_soon(scope.cancel)
    with scope:
        await asyncio.Event().wait()
    assert scope.cancelled
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_scope_does_not_keep_its_task_from_being_cancelled() -> None:
    inside = asyncio.Event()

    async def work() -> None:
        with CancelScope():
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_cancellations_at_once_end_the_task() -> None:
    inside = asyncio.Event()
    scope = CancelScope()

    async def work() -> None:
        with scope:
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    scope.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_scope_that_is_over_cancels_nothing() -> None:
    with CancelScope() as scope:
        pass
    scope.cancel()
    await asyncio.sleep(0)
    assert not scope.cancelled


async def test_a_budget_ends_every_call_in_flight_and_starts_no_other() -> None:
    budget = Budget(Limits(), started=0)
    inside = asyncio.Event()

    async def call() -> None:
        with budget.call():
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await inside.wait()
    budget.stop("shutdown")
    with pytest.raises(BudgetExceeded, match="shutdown"):
        await task
    with pytest.raises(BudgetExceeded, match="shutdown"):
        budget.call()
    assert budget.calls == 1


async def test_work_that_makes_no_call_is_ended_soon_after_its_time() -> None:
    budget = Budget(Limits(max_seconds=0), started=asyncio.get_running_loop().time())
    budget.start()
    try:
        with pytest.raises(BudgetExceeded, match="max_seconds"), budget.work():
            await asyncio.Event().wait()
        with pytest.raises(BudgetExceeded, match="max_seconds"):
            budget.work()
    finally:
        budget.close()
