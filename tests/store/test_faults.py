"""A store that is locked, full, read-only, gone or something else: said so, and nothing lost."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import event

from optillm.core.state import Note, Strategy
from optillm.protocol.errors import StoreError
from optillm.settings import SettingsError
from optillm.store import database
from optillm.store.places import SCHEMA, check
from optillm.store.runs import StoredRuns
from optillm.store.states import StoredState, StoredStates
from optillm.store.store import Store
from tests.fakes import ScriptedUpstream
from tests.postgres import Postgres, running
from tests.serving import serving

pytestmark = pytest.mark.anyio

ONE = Strategy("one", "t", "x")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[StoredState]:
    async with aclosing(Store(url)) as store:
        yield StoredStates(store).of("a")


async def refused(state: StoredState, reason: str) -> None:
    """Every kind of change is refused for this reason, as a 503 that names no file."""
    for change in (
        state.add_strategy(Strategy("two", "t", "x" * 10_000)),
        state.change_strategy("one", lambda s: None),
        state.replace_strategies(["one"], [Strategy("two", "t", "x" * 10_000)]),
        state.count("n"),
        state.add_notes("c", [Note("x" * 10_000, "s", 1, 1)], most=9, max_age=9, now=1),
        state.keep_summary("k", "x" * 10_000, now=1),
    ):
        with pytest.raises(StoreError, match=reason) as refusal:
            await change
        assert refusal.value.status == 503
        assert not {"/tmp", "store.db"} & set(refusal.value.message.split())


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a lock."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another connection is in the middle of a change."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_a_locked_file_can_be_read_and_then_written(sqlite: str, impatient: None) -> None:
    async with opened(sqlite) as state:
        await state.add_strategy(ONE)
        with locked(sqlite):
            await refused(state, "another process has locked it")
            assert await state.strategies() == (ONE,)
            # Also by a process that comes only now.
            async with opened(sqlite) as late:
                assert await late.strategies() == (ONE,)
        assert await state.count("n") == 1


async def test_a_lock_that_is_let_go_in_time_is_waited_for(sqlite: str) -> None:
    async with opened(sqlite) as state:
        await state.add_strategy(ONE)
        path = sqlite.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("UPDATE strategies SET success_count = 7")
            timer = threading.Timer(0.2, other.commit)
            timer.start()
            assert await state.count("n") == 1
            timer.join()
        assert (await state.strategies())[0].success_count == 7


async def test_a_full_file(sqlite: str) -> None:
    async with aclosing(Store(sqlite)) as store:
        state = StoredStates(store).of("a")
        await state.add_strategy(ONE)
        await state.keep_summary("old", "kept", now=1)
        engine = (await store.database())._engine
        event.listen(engine.sync_engine, "begin", lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1"))
        for change in (
            state.add_strategy(Strategy("two", "t", "x" * 100_000)),
            state.replace_strategies(["one"], [Strategy("two", "t", "x" * 100_000)]),
            state.keep_summary("old", "x" * 100_000, now=2),
        ):
            with pytest.raises(StoreError, match="full"):
                await change
        assert await state.strategies() == (ONE,)
    async with opened(sqlite) as state:
        assert (await state.strategies(), await state.summary("old")) == ((ONE,), "kept")
        await state.add_strategy(Strategy("two", "t", "x" * 100_000))


async def test_a_read_only_file(sqlite: str) -> None:
    async with aclosing(Store(sqlite)) as store:
        state = StoredStates(store).of("a")
        await state.add_strategy(ONE)
        engine = (await store.database())._engine
        event.listen(engine.sync_engine, "begin", lambda c: c.exec_driver_sql("PRAGMA query_only = 1"))
        await refused(state, "read-only")
        assert await state.strategies() == (ONE,)


async def test_a_file_that_becomes_something_else(sqlite: str, caplog: pytest.LogCaptureFixture) -> None:
    async with aclosing(Store(sqlite)) as store:
        Path(sqlite.removeprefix("sqlite:///")).write_bytes(b"not a database" * 1000)
        with pytest.raises(StoreError, match="not a database"):
            await StoredStates(store).of("a").count("n")
    # The operator is told which file it is.
    assert sqlite.removeprefix("sqlite:///") in caplog.text


async def test_a_damaged_file(sqlite: str) -> None:
    async with opened(sqlite) as state:
        await state.replace_strategies([], [Strategy(f"{i}", "t", "x" * 1000) for i in range(100)])
    path = Path(sqlite.removeprefix("sqlite:///"))
    whole = path.read_bytes()
    # The tables begin with some small pages, and end with the strategies.
    path.write_bytes(whole[:-65536] + b"\xff" * 65536)
    async with opened(sqlite) as state:
        with pytest.raises(StoreError, match="damaged"):
            await state.strategies()


async def test_a_store_that_failed_to_open_is_opened_later(sqlite: str, impatient: None) -> None:
    async with opened(sqlite) as state:
        # There are no tables yet, and nobody can make them.
        with locked(sqlite), pytest.raises(StoreError, match="locked"):
            await state.strategies()
        assert await state.count("n") == 1


async def test_runs_that_cannot_be_stored_are_said_and_those_after_them_are_stored(
    sqlite: str, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with aclosing(Store(sqlite)) as store, aclosing(StoredRuns(store)) as runs:
        assert await runs.last("a") == []
        with locked(sqlite):
            for i in range(3):
                runs.put("a", f"{i}", {"id": f"{i}"})
            assert await runs.last("a") == []
        assert "3 runs could not be stored: the store cannot be used: another process" in caplog.text
        runs.put("a", "later", {"id": "later"})
        assert await runs.last("a") == [{"id": "later"}]


# -- known before the start --------------------------------------------------------------------------


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 100)
    with pytest.raises(SettingsError, match=r"--store: cannot open .*notes\.txt: file is not a database"):
        check(f"sqlite:///{path}")
    assert path.read_text() == "Dear diary, " * 100


@pytest.mark.parametrize("url", ["sqlite:////proc/no/store.db", "sqlite:////"])
def test_a_file_that_cannot_be_written_stops_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="--store: cannot open /"):
        check(url)


@pytest.mark.parametrize(
    "url",
    ["redis://x", "sqlite:/x", "x", "mysql://root:secret@h/x", "postgresql://u:secret@h:port/x",
     "postgresql://[::1/x"],
)  # fmt: skip
def test_a_url_of_another_kind_stops_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="--store") as stopped:
        check(url)
    assert "secret" not in str(stopped.value)


async def test_a_file_from_the_future_stops_the_start_and_is_left_alone(sqlite: str) -> None:
    async with opened(sqlite) as state:
        await state.add_strategy(ONE)
    path = sqlite.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE optillm_schema SET version = 99")
        other.commit()
    with pytest.raises(SettingsError, match=f"newer OptiLLM .tables of version 99; this one knows {SCHEMA}"):
        Store(sqlite)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT version FROM optillm_schema").fetchall() == [(99,)]
        assert other.execute("SELECT id FROM strategies").fetchall() == [("one",)]


# -- PostgreSQL --------------------------------------------------------------------------------------


@pytest.fixture
def server(postgres: Postgres) -> str:
    return postgres.database()


async def test_a_server_from_the_future_is_left_alone(server: str) -> None:
    async with opened(server) as state:
        await state.add_strategy(ONE)
    with psycopg.connect(server, autocommit=True) as other:
        other.execute("UPDATE optillm_schema SET version = 99")
        async with opened(server) as state:
            with pytest.raises(StoreError, match=r"newer OptiLLM .tables of version 99"):
                await state.strategies()
        assert other.execute("SELECT id FROM strategies").fetchall() == [("one",)]


async def test_a_read_only_server(server: str, postgres: Postgres) -> None:
    async with opened(server) as state:
        await state.add_strategy(ONE)
    name = server.rpartition("/")[2].partition("?")[0]
    postgres.run("postgres", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with opened(server) as state:
        await refused(state, "read-only")
        assert await state.strategies() == (ONE,)


async def test_a_locked_table_can_be_read_and_then_written(server: str, impatient: None) -> None:
    async with opened(server) as state:
        await state.add_strategy(ONE)
        with psycopg.connect(server) as other:
            other.execute("LOCK strategies, counters, notes, summaries IN EXCLUSIVE MODE")
            await refused(state, "somebody has locked it")
            assert await state.strategies() == (ONE,)
        assert await state.count("n") == 1


async def test_a_full_server(server: str, postgres: Postgres) -> None:
    """No disk is filled for it: a function says what PostgreSQL says then."""
    async with opened(server) as state:
        await state.add_strategy(ONE)
        with psycopg.connect(server, autocommit=True) as other:
            other.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'; END $$"
            )
            for table in ("strategies", "counters", "notes", "summaries"):
                other.execute(
                    f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE OR DELETE ON {table}"
                    " FOR EACH ROW EXECUTE FUNCTION full_disk()"
                )
        await refused(state, "full")
        assert await state.strategies() == (ONE,)


@pytest.mark.parametrize(
    ("change", "cause"),
    [(("/test", "/none"), "does not exist"), (("postgres@", "nobody@"), 'role "nobody" does not exist'),
     (("host=", "host=%2Fnowhere"), "No such file or directory")],
)  # fmt: skip
async def test_a_server_that_cannot_be_used(
    server: str, change: tuple[str, str], cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.replace(*change).replace("@/", ":secret@/")
    async with opened(url) as state:
        with pytest.raises(StoreError, match="cannot be reached, or refuses the connection"):
            await state.strategies()
    assert "postgresql://" in caplog.text
    assert cause in caplog.text
    assert "secret" not in caplog.text


async def test_a_database_of_another_program(server: str) -> None:
    with psycopg.connect(server, autocommit=True) as other:
        other.execute("CREATE TABLE runs (experiment TEXT)")
        other.execute("CREATE TABLE notes (mine TEXT)")
        async with opened(server) as state:
            with pytest.raises(
                StoreError, match=r"another program \(notes, runs\); give OptiLLM one of its own"
            ):
                await state.count("n")
        found = other.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert sorted(found) == [("notes",), ("runs",)]


async def test_a_server_that_goes_and_comes_back() -> None:
    with running() as own:
        async with opened(own.database()) as state:
            await state.add_strategy(ONE)
            own.kill()
            for _ in range(2):
                with pytest.raises(StoreError, match="cannot be reached"):
                    await state.count("n")
            own.start()
            assert await state.count("n") == 1
            assert await state.strategies() == (ONE,)


# -- as a client sees it -----------------------------------------------------------------------------


async def test_a_client_is_told(sqlite: str, impatient: None) -> None:
    async with ScriptedUpstream() as up, serving(up, store=sqlite) as proxy:
        assert (await proxy.get("/v1/strategies")).status == 200
        with locked(sqlite):
            document = {"format": "optillm-strategies", "version": 1, "strategies": []}
            document["strategies"] = [{"id": "x", "type": "t", "text": "x"}]
            answer = await proxy.post(document, path="/v1/strategies")
            assert (answer.status, answer.error["code"]) == (503, "store_failed")
            # Answers do not depend on it.
            assert (await proxy.ask()).status == 200
        assert (await proxy.get("/v1/strategies")).json["strategies"] == []
