"""What techniques remember, in the store: :class:`optillm.core.state.States`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from optillm.core.state import Note, Strategy
from optillm.store.store import Store

if TYPE_CHECKING:
    from optillm.store.rows import Rows

T = TypeVar("T")

log = logging.getLogger("optillm")


class StoredStates:
    """The state of all tenants, of which one at a time can be had.

    Args:
        store: where it is kept.
        ends: if it does not last: what is logged, once, when something is first remembered; says when
            it ends, and how it can be kept.
    """

    def __init__(self, store: Store, ends: str = "") -> None:
        self.store = store
        self._ends = ends

    def of(self, tenant: str) -> StoredState:
        """See :class:`optillm.core.state.States`."""
        return StoredState(self, tenant)

    async def write(self, tenant: str, work: Callable[[Rows], Awaitable[T]]) -> T:
        """A change, of which is said, the first time, how long it lasts."""
        if self._ends:
            log.info(self._ends)
            self._ends = ""
        return await self.store.write(tenant, work)


class StoredState:
    """A tenant's state; see :class:`optillm.core.state.State`.

    Args:
        states: the state of all.
        tenant: whose.
    """

    def __init__(self, states: StoredStates, tenant: str) -> None:
        self._states, self._tenant = states, tenant

    async def strategies(self, type: str | None = None) -> tuple[Strategy, ...]:
        """All strategies, or those of a type, oldest first."""
        return await self._read(lambda rows: rows.strategies(type))

    async def add_strategy(self, strategy: Strategy) -> None:
        """Add one; ValueError if its id is taken."""
        await self._write(lambda rows: rows.add_strategies((strategy,)))

    async def change_strategy(
        self, id: str, change: Callable[[Strategy], Strategy | None]
    ) -> Strategy | None:
        """Change one, or delete it; None if there is none now."""
        return await self._write(lambda rows: rows.change_strategy(id, change))

    async def change_strategies(
        self, type: str, change: Callable[[tuple[Strategy, ...]], Sequence[Strategy]]
    ) -> tuple[Strategy, ...]:
        """Change all of a type in one transaction; what there is of it then."""
        return await self._write(lambda rows: rows.change_strategies(type, change))

    async def replace_strategies(self, gone: Sequence[str], new: Sequence[Strategy]) -> None:
        """Delete some and add others, all or nothing; ValueError if an id is taken."""

        async def work(rows: Rows) -> None:
            await rows.delete_strategies(gone)
            await rows.add_strategies(new)

        await self._write(work)

    async def delete_strategy(self, id: str) -> bool:
        """Delete one; whether there was one."""
        return await self._write(lambda rows: rows.delete_strategies((id,))) == 1

    async def count(self, name: str, by: int = 1) -> int:
        """Add to a durable counter; the new value."""
        return await self._write(lambda rows: rows.count(name, by))

    async def notes(self, conversation: str) -> tuple[Note, ...]:
        """The notes of a conversation, oldest first."""
        return await self._read(lambda rows: rows.notes(conversation))

    async def latest_notes(self, conversation: str | None, most: int) -> list[tuple[str, Note]]:
        """Conversations and their notes, last used first; of all conversations if None."""
        return await self._read(lambda rows: rows.latest_notes(conversation, most))

    async def add_notes(
        self, conversation: str, notes: Sequence[Note], *, most: int, max_age: float, now: float
    ) -> None:
        """Add notes, and drop those of which there are too many or that are too old."""
        await self._write(lambda rows: rows.add_notes(conversation, notes, most, max_age, now))

    async def use_notes(self, ids: Sequence[int], now: float) -> None:
        """Say that notes were used."""
        if ids:
            await self._write(lambda rows: rows.use_notes(ids, now))

    async def delete_notes(self, conversation: str | None = None) -> int:
        """Forget a conversation, or everything that was read; how many notes there were."""
        return await self._write(lambda rows: rows.delete_notes(conversation))

    async def summary(self, key: str) -> str | None:
        """A cached summary."""
        return await self._read(lambda rows: rows.summary(key))

    async def keep_summary(self, key: str, text: str, *, now: float, most: int = 10_000) -> None:
        """Cache a summary; the oldest over ``most`` go."""
        await self._write(lambda rows: rows.keep_summary(key, text, now, most))

    async def _read(self, work: Callable[[Rows], Awaitable[T]]) -> T:
        return await self._states.store.read(self._tenant, work)

    async def _write(self, work: Callable[[Rows], Awaitable[T]]) -> T:
        return await self._states.write(self._tenant, work)
