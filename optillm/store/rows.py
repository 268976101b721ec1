"""Every query of what is kept. All of them are of one tenant: there is no other way to make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from optillm.core.state import Note, Strategy
from optillm.store.tables import Tables, digest

AT_ONCE = 1000
"""Values in one statement; databases have a limit."""


class Rows:
    """A tenant's rows, in one transaction.

    Args:
        connection: the transaction.
        tables: the tables.
        tenant: whose rows; those of others can be neither read nor changed.
    """

    def __init__(self, connection: AsyncConnection, tables: Tables, tenant: str) -> None:
        self._connection, self._tables, self._tenant = connection, tables, tenant
        inserts: Mapping[str, Callable[[Table], sqlite.Insert | postgresql.Insert]] = {
            "sqlite": sqlite.insert,
            "postgresql": postgresql.insert,
        }
        # Both know ON CONFLICT; standard SQL does not.
        self._insert = inserts[connection.dialect.name]

    # -- strategies ----------------------------------------------------------------------------

    async def strategies(self, type: str | None = None) -> tuple[Strategy, ...]:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.strategies
        query = select(table).where(table.c.tenant == self._tenant)
        if type is not None:
            query = query.where(table.c.type == type)
        found = [_strategy(row) for row in await self._connection.execute(query)]
        # Sorted here, because databases do not agree on the order of texts.
        return tuple(sorted(found, key=lambda s: (s.created, s.id)))

    async def add_strategies(self, strategies: Sequence[Strategy]) -> None:
        """Add them.

        Raises:
            ValueError: there is one with such an id.
        """
        if not strategies:
            return
        values = [{"tenant": self._tenant, **asdict(s)} for s in strategies]
        try:
            await self._connection.execute(self._insert(self._tables.strategies), values)
        except IntegrityError as error:
            ids = ", ".join(s.id for s in strategies)
            raise ValueError(f"there is a strategy of that id already: {ids}") from error

    async def change_strategy(
        self, id: str, change: Callable[[Strategy], Strategy | None]
    ) -> Strategy | None:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.strategies
        this = self._mine(table, table.c.id == id)
        # The row is ours until the end of the transaction (all of SQLite is, from its beginning): whoever
        # else wants to change it waits, so that nobody's change is lost and none has to be made twice.
        row = (await self._connection.execute(select(table).where(*this).with_for_update())).first()
        if row is None:
            return None
        changed = change(_strategy(row))
        if changed is not None and changed.id != row.id:
            raise ValueError(f"a change may not give a strategy another id: {changed.id}")
        if changed is None:
            await self._connection.execute(delete(table).where(*this))
        else:
            await self._connection.execute(update(table).where(*this).values(**asdict(changed)))
        return changed

    async def change_strategies(
        self, type: str, change: Callable[[tuple[Strategy, ...]], Sequence[Strategy]]
    ) -> tuple[Strategy, ...]:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.strategies
        query = select(table).where(*self._mine(table, table.c.type == type)).order_by(table.c.id)
        found = [_strategy(row) for row in await self._connection.execute(query.with_for_update())]
        before = {s.id: s for s in sorted(found, key=lambda s: (s.created, s.id))}
        after = tuple(change(tuple(before.values())))
        kept = {s.id for s in after}
        await self.delete_strategies([old for old in before if old not in kept])
        for strategy in after:
            if strategy.id in before and strategy != before[strategy.id]:
                this = self._mine(table, table.c.id == strategy.id)
                await self._connection.execute(update(table).where(*this).values(**asdict(strategy)))
        await self.add_strategies([s for s in after if s.id not in before])
        return after

    async def delete_strategies(self, ids: Sequence[str]) -> int:
        """Delete those there are of these ids; how many there were."""
        table = self._tables.strategies
        gone = 0
        # In one order, so that two who delete the same ones do not wait for each other.
        for some in _parts(sorted(set(ids))):
            query = delete(table).where(*self._mine(table, table.c.id.in_(some)))
            gone += (await self._connection.execute(query)).rowcount
        return gone

    # -- counters ------------------------------------------------------------------------------

    async def count(self, name: str, by: int) -> int:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.counters
        added = self._insert(table).values(tenant=self._tenant, name=name, value=by)
        query = added.on_conflict_do_update(
            index_elements=["tenant", "name"], set_={"value": table.c.value + added.excluded.value}
        ).returning(table.c.value)
        return int((await self._connection.execute(query)).scalar_one())

    # -- notes ---------------------------------------------------------------------------------

    async def notes(self, conversation: str) -> tuple[Note, ...]:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.notes
        query = select(table).where(*self._mine(table, table.c.conversation == conversation))
        return tuple([_note(row) for row in await self._connection.execute(query.order_by(table.c.id))])

    async def latest_notes(self, conversation: str | None, most: int) -> list[tuple[str, Note]]:
        """Conversations and notes, last used first; of all conversations if None."""
        table = self._tables.notes
        only = () if conversation is None else (table.c.conversation == conversation,)
        query = select(table).where(*self._mine(table, *only))
        query = query.order_by(table.c.used.desc(), table.c.id.desc()).limit(most)
        return [(row.conversation, _note(row)) for row in await self._connection.execute(query)]

    async def add_notes(
        self, conversation: str, notes: Sequence[Note], most: int, max_age: float, now: float
    ) -> None:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.notes
        if notes:
            added = self._insert(table)
            query = added.on_conflict_do_update(
                index_elements=["tenant", "conversation", "digest"],
                set_={"used": added.excluded.used, "max_age": added.excluded.max_age},
            )
            about = {"tenant": self._tenant, "conversation": conversation, "max_age": max_age}
            values = [
                {
                    **about, "digest": digest(n.text), "text": n.text, "source": n.source,
                    "created": n.created, "used": n.used,
                }
                for n in notes
            ]  # fmt: skip
            await self._connection.execute(query, values)
        # Notes of conversations that nobody goes on with are dropped as well, each after its own time.
        here = table.c.conversation == conversation
        old = or_(table.c.used + table.c.max_age < now, here & (table.c.used < now - max_age))
        await self._connection.execute(delete(table).where(*self._mine(table, old)))
        kept = select(table.c.id).where(*self._mine(table, here))
        kept = kept.order_by(table.c.used.desc(), table.c.id.desc()).limit(most)
        over = self._mine(table, here, table.c.id.not_in(kept))
        await self._connection.execute(delete(table).where(*over))

    async def use_notes(self, ids: Sequence[int], now: float) -> None:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.notes
        for some in _parts(sorted(set(ids))):
            query = update(table).where(*self._mine(table, table.c.id.in_(some))).values(used=now)
            await self._connection.execute(query)

    async def delete_notes(self, conversation: str | None) -> int:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.notes
        only = () if conversation is None else (table.c.conversation == conversation,)
        if conversation is None:
            summaries = self._tables.summaries
            await self._connection.execute(delete(summaries).where(*self._mine(summaries)))
        return (await self._connection.execute(delete(table).where(*self._mine(table, *only)))).rowcount

    # -- summaries -----------------------------------------------------------------------------

    async def summary(self, key: str) -> str | None:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.summaries
        query = select(table.c.text).where(*self._mine(table, table.c.key == key))
        found: str | None = (await self._connection.execute(query)).scalar()
        return found

    async def keep_summary(self, key: str, text: str, now: float, most: int) -> None:
        """See :class:`optillm.core.state.State`."""
        table = self._tables.summaries
        added = self._insert(table).values(tenant=self._tenant, key=key, text=text, created=now)
        query = added.on_conflict_do_update(
            index_elements=["tenant", "key"], set_={"text": text, "created": now}
        )
        await self._connection.execute(query)
        kept = select(table.c.key).where(*self._mine(table))
        kept = kept.order_by(table.c.created.desc(), table.c.key).limit(most)
        await self._connection.execute(delete(table).where(*self._mine(table, table.c.key.not_in(kept))))

    # -- runs ----------------------------------------------------------------------------------

    async def put_runs(self, runs: Mapping[str, bytes]) -> None:
        """Keep runs, JSON by id; one that is there becomes the latest."""
        table = self._tables.runs
        for some in _parts(list(runs)):
            query = delete(table).where(*self._mine(table, table.c.id.in_(some)))
            await self._connection.execute(query)
            values = [{"tenant": self._tenant, "id": name, "run": runs[name]} for name in some]
            await self._connection.execute(self._insert(table), values)

    async def run(self, run_id: str) -> bytes | None:
        """A run's JSON."""
        table = self._tables.runs
        query = select(table.c.run).where(*self._mine(table, table.c.id == run_id))
        found: bytes | None = (await self._connection.execute(query)).scalar()
        return found

    async def last_runs(self, most: int) -> list[bytes]:
        """The latest runs, newest first."""
        table = self._tables.runs
        query = select(table.c.run).where(*self._mine(table)).order_by(table.c.number.desc()).limit(most)
        return list((await self._connection.execute(query)).scalars())

    def _mine(self, table: Table, *more: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        return (table.c.tenant == self._tenant, *more)


async def bound_runs(connection: AsyncConnection, tables: Tables, most: int, most_bytes: int) -> None:
    """Drop the oldest runs over these limits, which are those of the whole store: of all tenants.

    The latest one stays, however large it is. Nothing of any run is read.
    """
    table = tables.runs
    newest = select(func.max(table.c.number)).scalar_subquery()
    beyond = select(table.c.number).order_by(table.c.number.desc()).offset(most).limit(1)
    await connection.execute(delete(table).where(table.c.number <= beyond.scalar_subquery()))
    together = func.sum(func.length(table.c.run)).over(order_by=table.c.number.desc()).label("together")
    sizes = select(table.c.number, together).subquery()
    too_much = select(func.max(sizes.c.number)).where(sizes.c.together > most_bytes)
    too_much = too_much.where(sizes.c.number < newest)
    await connection.execute(delete(table).where(table.c.number <= too_much.scalar_subquery()))


def _strategy(row: Row[Any]) -> Strategy:
    values = dict(row._mapping)
    del values["tenant"]
    return Strategy(**values)


def _note(row: Row[Any]) -> Note:
    return Note(row.text, row.source, row.created, row.used, row.id)


def _parts(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[i : i + AT_ONCE] for i in range(0, len(values), AT_ONCE)]
