"""What techniques remember from one request to the next: always of one tenant, never of another.

A technique gets the :class:`State` of its run's tenant and has no way to name another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Strategy:
    """How to solve one type of problem, learned from requests (``spl``).

    Args:
        id: unique within the tenant.
        type: the problem type.
        text: what goes into the system prompt.
        examples: queries that it was made from or found fit for.
        success_count, total_attempts: how often it helped, of how often it was used.
        confidence: 0 to 1.
        created, last_used, last_updated: seconds since 1970, UTC; ``last_used`` None if never.
        reasoning_examples: reasoning that went well with it.
        tags: free words.
    """

    id: str
    type: str
    text: str
    examples: tuple[str, ...] = ()
    success_count: int = 0
    total_attempts: int = 0
    confidence: float = 0.5
    created: float = 0.0
    last_used: float | None = None
    last_updated: float = 0.0
    reasoning_examples: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def success_rate(self) -> float:
        """Share of attempts that succeeded; 0 without attempts."""
        return self.success_count / self.total_attempts if self.total_attempts else 0.0


@dataclass(frozen=True, slots=True)
class Note:
    """Something remembered (``memory``).

    Args:
        text: what is remembered.
        source: where it came from, such as ``chunk 7, characters 51200-58112``.
        created, used: seconds since 1970, UTC.
        id: given by the store.
    """

    text: str
    source: str
    created: float
    used: float
    id: int = 0


class State(Protocol):
    """A tenant's state. Every change is one transaction; what has returned is committed.

    Every method raises ``StoreError`` when the store is locked, full, read-only or gone. Of text, NUL
    characters come back as U+FFFD.
    """

    async def strategies(self, type: str | None = None) -> tuple[Strategy, ...]:
        """All strategies, or those of a type, oldest first, then by id."""
        ...

    async def add_strategy(self, strategy: Strategy) -> None:
        """Add one.

        Raises:
            ValueError: its id is taken.
        """
        ...

    async def change_strategy(
        self, id: str, change: Callable[[Strategy], Strategy | None]
    ) -> Strategy | None:
        """Read, change and write one in one transaction; ``change`` returning None deletes it.

        Nobody else changes it meanwhile. ``change`` must be quick, and may be called again when the
        transaction has to be begun again; what it raises is raised, and nothing is changed.

        Returns:
            The strategy as it is now; None if there is none.

        Raises:
            ValueError: ``change`` gave it another id.
        """
        ...

    async def change_strategies(
        self, type: str, change: Callable[[tuple[Strategy, ...]], Sequence[Strategy]]
    ) -> tuple[Strategy, ...]:
        """Read, change and write all strategies of a type in one transaction: what ``change`` returns is
        what there is of the type afterwards.

        ``change`` is given them oldest first, and may be called again like :meth:`change_strategy`'s.
        """
        ...

    async def replace_strategies(self, gone: Sequence[str], new: Sequence[Strategy]) -> None:
        """Delete some and add others, in one transaction: a merge, an import.

        Raises:
            ValueError: the id of a new one is taken, by one that does not go.
        """
        ...

    async def count(self, name: str, by: int = 1) -> int:
        """Add to a durable counter; the new value."""
        ...

    async def notes(self, conversation: str) -> tuple[Note, ...]:
        """The notes of a conversation, oldest first; "" holds those of the tenant as a whole."""
        ...

    async def add_notes(
        self, conversation: str, notes: Sequence[Note], *, most: int, max_age: float, now: float
    ) -> None:
        """Add notes (one with a text that is there is only refreshed), then drop the conversation's
        notes unused for ``max_age`` seconds and the least recently used over ``most``.

        Notes of the tenant's other conversations are dropped after the time that was said when they were
        added: a conversation that nobody goes on with is forgotten as well.
        """
        ...

    async def use_notes(self, ids: Sequence[int], now: float) -> None:
        """Say that notes were used."""
        ...

    async def delete_notes(self, conversation: str | None = None) -> int:
        """Forget a conversation, or everything that was read: all notes and all summaries.

        Returns:
            How many notes there were.
        """
        ...

    async def summary(self, key: str) -> str | None:
        """A cached summary by the hash of what it summarises."""
        ...

    async def keep_summary(self, key: str, text: str, *, now: float, most: int = 10_000) -> None:
        """Cache a summary; the oldest over ``most`` go."""
        ...


class States(Protocol):
    """The state of all tenants, of which one at a time can be had."""

    def of(self, tenant: str) -> State:
        """One tenant's."""
        ...
