"""Attempts of which only some are wanted: started together or one by one, the surplus cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from optillm.core.trace import DEPTH

T = TypeVar("T")


async def first_good(
    attempt: Callable[[int], Awaitable[T | None]],
    most: int,
    wanted: int,
    *,
    eager: bool,
    reproducible: bool,
) -> dict[int, T]:
    """Make attempts until so many are good; of those that have ended, the first ones by index are kept.

    Eager, all begin at once, and as soon as enough are good the rest is cancelled. Otherwise as many begin
    as are wanted, and each that fails is followed by the next, so that there never is a rest.

    Args:
        attempt: makes the attempt of an index; None is a failure.
        most: attempts at most, at least 1.
        wanted: how many to keep, at least 1.
        reproducible: let eager attempts all come to their end, so that neither what is kept nor what is
            spent depends on which of them was quick.

    Returns:
        What came of the attempts kept, by index, in index order; fewer than wanted, perhaps none, when all
        have ended.

    Raises:
        OptiError: the first that an attempt raises; it cancels the others.
    """
    begun_at = DEPTH.get()
    depths: dict[int, int] = {}
    running: dict[asyncio.Task[T | None], int] = {}
    ended: dict[int, T | None] = {}

    to_the_end = eager and reproducible

    def good() -> dict[int, T]:
        return {i: result for i, result in ended.items() if result is not None}

    async def one(index: int) -> T | None:
        try:
            return await attempt(index)
        finally:
            depths[index] = DEPTH.get()

    try:
        async with asyncio.TaskGroup() as group:

            async def begin(index: int, depth: int) -> None:
                DEPTH.set(depth)
                running[group.create_task(one(index))] = index
                # Several of these functions at a time take turns, so that what each of them needs
                # queues for the run's calls in flight before what may be surplus.
                await asyncio.sleep(0)

            begun = most if eager else min(wanted, most)
            for index in range(begun):
                await begin(index, begun_at)
            while running and (to_the_end or len(good()) < wanted):
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=running.__getitem__):
                    index = running.pop(task)
                    ended[index] = task.result()
                    if ended[index] is None and begun < most:
                        await begin(begun, depths[index])
                        begun += 1
            for task in running:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    DEPTH.set(max(depths[i] for i in ended))
    return dict(sorted(good().items())[:wanted])
