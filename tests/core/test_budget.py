"""Budgets: calls that are held back, and what is said of a run that had to do without some."""

from __future__ import annotations

import pytest

from optillm.core.budget import Budget, Limits
from optillm.protocol.errors import BudgetExceeded

pytestmark = pytest.mark.anyio


async def called(budget: Budget) -> bool:
    try:
        with budget.call():
            return True
    except BudgetExceeded:
        return False


async def test_reserved_calls_are_left_for_what_follows() -> None:
    budget = Budget(Limits(max_calls=3), 0)
    with budget.reserving(1):
        assert [await called(budget) for _ in range(4)] == [True, True, False, False]
        assert (budget.ended, budget.cut_short) == (None, "max_calls")
    assert [await called(budget) for _ in range(2)] == [True, False]
    assert budget.calls == 3


async def test_reservations_add_up() -> None:
    budget = Budget(Limits(max_calls=5), 0)
    with budget.reserving(2), budget.reserving(2):
        assert [await called(budget) for _ in range(2)] == [True, False]
    assert [await called(budget) for _ in range(5)] == [True, True, True, True, False]


async def test_a_reservation_ends_with_its_block_even_if_that_fails() -> None:
    budget = Budget(Limits(max_calls=1), 0)
    with pytest.raises(RuntimeError), budget.reserving(1):
        raise RuntimeError
    assert await called(budget)


async def test_without_a_limit_nothing_is_held_back() -> None:
    budget = Budget(Limits(), 0)
    with budget.reserving(10):
        assert all([await called(budget) for _ in range(5)])
    assert budget.cut_short is None
