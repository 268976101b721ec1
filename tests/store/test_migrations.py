"""A store of an older version becomes one of this version, once, with everything in it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, make_url, text

from optillm.protocol.errors import StoreError
from optillm.store.migrations import MIGRATIONS, is_current, upgrade
from optillm.store.places import SCHEMA
from optillm.store.runs import StoredRuns
from optillm.store.states import StoredStates
from optillm.store.store import Store
from optillm.store.tables import Tables

pytestmark = pytest.mark.anyio


def sync_url(url: str) -> str:
    made = make_url(url)
    driver = "postgresql+psycopg" if url.startswith("postgresql") else "sqlite"
    return made.set(drivername=driver).render_as_string(hide_password=False)


def test_each_version_has_its_migration() -> None:
    assert len(MIGRATIONS) == SCHEMA


def test_the_migrations_make_the_tables_that_the_program_expects(store_url: str) -> None:
    engine = create_engine(sync_url(store_url))
    with engine.begin() as connection:
        upgrade(connection)
        assert is_current(connection)
        found = inspect(connection)
        for table in Tables().all:
            columns = {c["name"]: c["nullable"] for c in found.get_columns(table.name)}
            assert columns.keys() == set(table.columns.keys()), table.name
            for column in table.columns:
                # What SQLite says of the number of a row is of no matter.
                assert column.primary_key or columns[column.name] == column.nullable, column
            # The tenant is in what makes a row the only one of its kind.
            keys = [found.get_pk_constraint(table.name)["constrained_columns"]]
            keys += [u["column_names"] for u in found.get_unique_constraints(table.name)]
            assert any("tenant" in key for key in keys), table.name
            primary = [c.name for c in table.primary_key.columns]
            assert found.get_pk_constraint(table.name)["constrained_columns"] == primary
    engine.dispose()


async def test_a_file_of_runs_from_before_there_was_a_version(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with closing(sqlite3.connect(path)) as old:
        old.execute(
            "CREATE TABLE IF NOT EXISTS runs (number INTEGER PRIMARY KEY, tenant TEXT NOT NULL,"
            " id TEXT NOT NULL, run BLOB NOT NULL, UNIQUE (tenant, id))"
        )
        for i in range(3):
            run = json.dumps({"id": f"{i}"}).encode()
            old.execute("INSERT INTO runs (tenant, id, run) VALUES ('a', ?, ?)", (f"{i}", run))
        old.commit()
    await use(f"sqlite:///{path}")


async def test_from_version_1(store_url: str) -> None:
    engine = create_engine(sync_url(store_url))
    with engine.begin() as connection:
        upgrade(connection, to=1)
        assert set(inspect(connection).get_table_names()) == {"runs", "optillm_schema"}
        for i in range(3):
            run = json.dumps({"id": f"{i}"}).encode()
            insert = text("INSERT INTO runs (tenant, id, run) VALUES ('a', :id, :run)")
            connection.execute(insert, {"id": f"{i}", "run": run})
    engine.dispose()
    await use(store_url)


async def use(url: str) -> None:
    """The three runs of the old store are there, and everything new can be used; also a second time."""
    for _ in range(2):
        async with aclosing(Store(url)) as store, aclosing(StoredRuns(store)) as runs:
            assert [r["id"] for r in await runs.last("a")] == ["2", "1", "0"]
            await StoredStates(store).of("a").count("n")
    engine = create_engine(sync_url(url))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version FROM optillm_schema")).fetchall() == [(SCHEMA,)]
    engine.dispose()


async def test_a_migration_that_breaks_off_changes_nothing(store_url: str) -> None:
    """Something is in the way of the last table: the first ones are not there afterwards."""
    engine = create_engine(sync_url(store_url))
    with engine.begin() as connection:
        upgrade(connection, to=1)
        connection.execute(text("CREATE TABLE counters (other TEXT)"))
    async with aclosing(Store(store_url)) as store:
        for _ in range(2):
            with pytest.raises(StoreError):
                await StoredStates(store).of("a").count("n")
        with engine.begin() as connection:
            names = set(inspect(connection).get_table_names())
            assert names == {"runs", "optillm_schema", "counters"}
            connection.execute(text("DROP TABLE counters"))
        assert await StoredStates(store).of("a").count("n") == 1
    engine.dispose()


OPEN = """
import asyncio, sys
from optillm.store.states import StoredStates
from optillm.store.store import Store

async def main(url):
    store = Store(url)
    sys.stdin.readline()
    print(await StoredStates(store).of("a").count("n"))
    await store.aclose()

asyncio.run(main(sys.argv[1]))
"""


def test_processes_upgrade_at_once(store_url: str) -> None:
    engine = create_engine(sync_url(store_url))
    with engine.begin() as connection:
        upgrade(connection, to=1)
    engine.dispose()
    command = [sys.executable, "-c", OPEN, store_url]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate() for process in processes]
    assert [(err, p.returncode) for (_, err), p in zip(ends, processes, strict=True)] == [("", 0)] * 4
    assert sorted(int(out) for out, _ in ends) == [1, 2, 3, 4]
