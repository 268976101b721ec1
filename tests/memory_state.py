"""State in memory, as the store has it: what a change does is atomic, and may be tried more than once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from optillm.core.state import Note, Strategy
from optillm.protocol.errors import StoreError


@dataclass
class MemoryStates:
    """The state of all tenants.

    Args:
        broken: names of methods that fail, as when the store is locked; "" fails all of them.
    """

    broken: set[str] = field(default_factory=set)
    tenants: dict[str, MemoryState] = field(default_factory=dict)
    writes: Counter[str] = field(default_factory=Counter)
    """Changes, by method."""

    def of(self, tenant: str) -> MemoryState:
        return self.tenants.setdefault(tenant, MemoryState(self))


class MemoryState:
    """A tenant's state. Every access lets others go first, so that what is not atomic shows."""

    def __init__(self, states: MemoryStates) -> None:
        self.states = states
        self.known: dict[str, Strategy] = {}
        self.counters: Counter[str] = Counter()
        self.kept: dict[str, list[Note]] = {}
        self.summaries: dict[str, tuple[float, str]] = {}
        self.broken = False
        """Every use fails."""
        self.full = False
        """Every change fails."""

    async def strategies(self, type: str | None = None) -> tuple[Strategy, ...]:
        await self._reached("strategies")
        return self._of(type)

    async def add_strategy(self, strategy: Strategy) -> None:
        await self._reached("add_strategy", write=True)
        self._add(strategy)

    async def change_strategy(
        self, id: str, change: Callable[[Strategy], Strategy | None]
    ) -> Strategy | None:
        await self._reached("change_strategy", write=True)
        while (before := self.known.get(id)) is not None:
            after = change(before)
            await asyncio.sleep(0)
            if self.known.get(id) is before:
                if after is None:
                    del self.known[id]
                else:
                    self.known[id] = after
                return after
        return None

    async def change_strategies(
        self, type: str, change: Callable[[tuple[Strategy, ...]], Sequence[Strategy]]
    ) -> tuple[Strategy, ...]:
        await self._reached("change_strategies", write=True)
        while True:
            before = self._of(type)
            after = tuple(change(before))
            await asyncio.sleep(0)
            if self._of(type) == before:
                for strategy in before:
                    del self.known[strategy.id]
                for strategy in after:
                    self._add(strategy)
                return after

    async def replace_strategies(self, gone: Sequence[str], new: Sequence[Strategy]) -> None:
        await self._reached("replace_strategies", write=True)
        for strategy_id in gone:
            self.known.pop(strategy_id, None)
        for strategy in new:
            self._add(strategy)

    async def count(self, name: str, by: int = 1) -> int:
        await self._reached("count", write=True)
        self.counters[name] += by
        return self.counters[name]

    async def notes(self, conversation: str) -> tuple[Note, ...]:
        await self._reached("notes")
        return tuple(self.kept.get(conversation, ()))

    async def add_notes(
        self, conversation: str, notes: Sequence[Note], *, most: int, max_age: float, now: float
    ) -> None:
        await self._reached("add_notes", write=True)
        by_text = {n.text: n for n in self.kept.get(conversation, [])}
        number = max([n.id for mine in self.kept.values() for n in mine], default=0)
        for note in notes:
            number += 1
            there = by_text.get(note.text)
            by_text[note.text] = replace(there, used=note.used) if there else replace(note, id=number)
        fresh = [n for n in by_text.values() if n.used >= now - max_age]
        latest = sorted(fresh, key=lambda n: n.used)[-most:]
        self.kept[conversation] = sorted(latest, key=lambda n: n.id)

    async def use_notes(self, ids: Sequence[int], now: float) -> None:
        await self._reached("use_notes", write=True)
        for conversation, notes in self.kept.items():
            self.kept[conversation] = [replace(n, used=now) if n.id in ids else n for n in notes]

    async def delete_notes(self, conversation: str | None = None) -> int:
        await self._reached("delete_notes", write=True)
        gone = [c for c in self.kept if conversation in (None, c)]
        return sum(len(self.kept.pop(c)) for c in gone)

    async def summary(self, key: str) -> str | None:
        await self._reached("summary")
        found = self.summaries.get(key)
        return found[1] if found else None

    async def keep_summary(self, key: str, text: str, *, now: float, most: int = 10_000) -> None:
        await self._reached("keep_summary", write=True)
        self.summaries[key] = (now, text)
        for old in sorted(self.summaries, key=lambda k: self.summaries[k][0])[:-most]:
            del self.summaries[old]

    def _of(self, type: str | None) -> tuple[Strategy, ...]:
        mine = [s for s in self.known.values() if type in (None, s.type)]
        return tuple(sorted(mine, key=lambda s: (s.created, s.id)))

    def _add(self, strategy: Strategy) -> None:
        if strategy.id in self.known:
            raise ValueError(f"there is a strategy of that id already: {strategy.id}")
        self.known[strategy.id] = strategy

    async def _reached(self, name: str, *, write: bool = False) -> None:
        if self.broken or {name, ""} & self.states.broken:
            raise StoreError("the store is locked")
        if self.full and write:
            raise StoreError("the store is full")
        if write:
            self.states.writes[name] += 1
        await asyncio.sleep(0)
