"""What techniques remember, in memory: for tests of techniques; the real store has tests of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from optillm.core.state import Note, Strategy
from optillm.protocol.errors import StoreError


class MemoryState:
    """Notes and summaries of one tenant. ``broken`` makes every use fail, ``full`` every change."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Note]] = {}
        self.summaries: dict[str, str] = {}
        self.broken = False
        self.full = False
        self._id = 0

    def _use(self, *, writing: bool = False) -> None:
        if self.broken or (self.full and writing):
            raise StoreError("the store is locked" if self.broken else "the store is full")

    async def notes(self, conversation: str) -> tuple[Note, ...]:
        self._use()
        return tuple(self.kept.get(conversation, ()))

    async def add_notes(
        self, conversation: str, notes: Sequence[Note], *, most: int, max_age: float, now: float
    ) -> None:
        self._use(writing=True)
        mine = self.kept.setdefault(conversation, [])
        for note in notes:
            known = next((n for n in mine if n.text == note.text), None)
            if known is not None:
                mine[mine.index(known)] = replace(known, used=now)
            else:
                self._id += 1
                mine.append(replace(note, id=self._id))
        fresh = [n for n in mine if n.used >= now - max_age]
        newest = sorted(fresh, key=lambda n: -n.used)[:most]
        self.kept[conversation] = [n for n in fresh if n in newest]

    async def use_notes(self, ids: Sequence[int], now: float) -> None:
        self._use(writing=True)
        for mine in self.kept.values():
            mine[:] = [replace(n, used=now) if n.id in ids else n for n in mine]

    async def delete_notes(self, conversation: str | None = None) -> int:
        gone = [conversation] if conversation is not None else list(self.kept)
        return sum(len(self.kept.pop(c, [])) for c in gone)

    async def summary(self, key: str) -> str | None:
        self._use()
        return self.summaries.get(key)

    async def keep_summary(self, key: str, text: str, *, now: float, most: int = 10_000) -> None:
        self._use(writing=True)
        self.summaries[key] = text

    async def strategies(self, type: str | None = None) -> tuple[Strategy, ...]:
        raise NotImplementedError

    async def add_strategy(self, strategy: Strategy) -> None:
        raise NotImplementedError

    async def change_strategy(
        self, id: str, change: Callable[[Strategy], Strategy | None]
    ) -> Strategy | None:
        raise NotImplementedError

    async def replace_strategies(self, gone: Sequence[str], new: Sequence[Strategy]) -> None:
        raise NotImplementedError

    async def count(self, name: str, by: int = 1) -> int:
        raise NotImplementedError


class MemoryStates:
    """The states of all tenants, each made when it is first asked for."""

    def __init__(self) -> None:
        self.tenants: dict[str, MemoryState] = {}

    def of(self, tenant: str) -> MemoryState:
        return self.tenants.setdefault(tenant, MemoryState())
