"""Attempts of which only some are wanted."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.racing import first_good
from optillm.core.trace import DEPTH

pytestmark = pytest.mark.anyio

OUTCOMES = st.lists(st.sampled_from(["good", None]), min_size=1, max_size=8)


@given(OUTCOMES, st.integers(1, 4), st.booleans(), st.booleans())
def test_what_is_kept(outcomes: list[str | None], wanted: int, eager: bool, reproducible: bool) -> None:
    begun: list[int] = []

    async def attempt(index: int) -> str | None:
        begun.append(index)
        return outcomes[index] and f"{index}"

    async def race() -> dict[int, str]:
        return await first_good(attempt, len(outcomes), wanted, eager=eager, reproducible=reproducible)

    result = asyncio.run(race())
    expected = [i for i, o in enumerate(outcomes) if o][:wanted]
    assert list(result.items()) == [(i, str(i)) for i in expected]
    if eager and reproducible:
        assert sorted(begun) == list(range(len(outcomes)))
    if not eager:
        enough = expected[-1] + 1 if len(expected) == wanted else len(outcomes)
        assert sorted(begun) == list(range(max(enough, min(wanted, len(outcomes)))))


async def test_the_surplus_is_cancelled_and_awaited() -> None:
    ended: list[int] = []

    async def attempt(index: int) -> int:
        try:
            if index != 1:
                await asyncio.Event().wait()
            return index
        finally:
            ended.append(index)

    assert await first_good(attempt, 3, 1, eager=True, reproducible=False) == {1: 1}
    assert sorted(ended) == [0, 1, 2]


async def test_reproducibly_all_end_and_the_first_by_index_are_kept() -> None:
    last = asyncio.Event()

    async def attempt(index: int) -> int:
        if index == 0:
            await last.wait()
        if index == 2:
            last.set()
        return index

    assert await first_good(attempt, 3, 2, eager=True, reproducible=True) == {0: 0, 1: 1}


async def test_an_error_ends_the_others_and_is_raised() -> None:
    cancelled: list[int] = []

    async def attempt(index: int) -> int:
        if index == 2:
            raise LookupError("no")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        return index

    with pytest.raises(LookupError):
        await first_good(attempt, 3, 1, eager=True, reproducible=True)
    assert sorted(cancelled) == [0, 1]


async def test_cancelling_the_whole_cancels_the_attempts() -> None:
    under_way, cancelled = asyncio.Event(), []

    async def attempt(index: int) -> int:
        under_way.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        return index

    race = asyncio.create_task(first_good(attempt, 1, 1, eager=True, reproducible=True))
    await under_way.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert cancelled == [0]


async def test_depth_is_that_of_what_was_waited_for() -> None:
    async def attempt(index: int) -> int | None:
        DEPTH.set(DEPTH.get() + (index + 1) * 10)
        return index if index else None

    DEPTH.set(5)
    assert await first_good(attempt, 3, 1, eager=True, reproducible=True) == {1: 1}
    assert DEPTH.get() == 35
    # Lazily, each attempt begins where the one that failed had got to.
    DEPTH.set(5)
    assert await first_good(attempt, 3, 1, eager=False, reproducible=True) == {1: 1}
    assert DEPTH.get() == 5 + 10 + 20
