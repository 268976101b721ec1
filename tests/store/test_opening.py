"""When a store is opened, by whom, and what it costs those who do not use it."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from optillm.protocol.errors import MissingExtra
from optillm.settings import Settings, SettingsError
from optillm.store.places import check, named
from optillm.store.states import StoredStates
from optillm.store.store import Store

pytestmark = pytest.mark.anyio

DRIVERS = ("sqlalchemy", "aiosqlite", "psycopg", "greenlet")


def test_the_start_does_not_import_the_database_libraries(tmp_path: Path) -> None:
    """Nor does the check of a store's URL, of all kinds."""
    code = (
        "import sys, optillm, optillm.cli.main, optillm.faces.serve, optillm.cli.strategies\n"
        "from optillm.faces.app import App\n"
        "from optillm.plugins import builtin_registry\n"
        "from optillm.settings import Settings\n"
        f"for url in ('', 'sqlite:///{tmp_path}/store.db', 'postgresql://u:p@h:1/d'):\n"
        "    App(Settings(store=url), builtin_registry())\n"
        f"print([m for m in {DRIVERS!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_server_that_remembers_nothing_never_imports_them() -> None:
    code = (
        "import asyncio, sys\n"
        "from tests.fakes import ScriptedUpstream\n"
        "from tests.serving import serving\n"
        "async def main():\n"
        "    async with ScriptedUpstream() as up, serving(up) as proxy:\n"
        "        assert (await proxy.ask('bon-m')).status == 200\n"
        "        assert (await proxy.get('/v1/runs')).status == 200\n"
        f"        print([m for m in {DRIVERS!r} if m in sys.modules])\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_driver_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "psycopg" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(SettingsError, match=r"^--store: .*pip install 'optillm\[postgres\]'$"):
        check("postgresql://h/x")


async def test_a_driver_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, but not the library that it is for."""
    async with aclosing(Store("postgresql://h/x")) as store:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(MissingExtra, match=r"optillm\[postgres\]"):
            await StoredStates(store).of("a").count("n")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", "the store in memory"),
        ("sqlite:////x/y.db", "/x/y.db"),
        ("postgresql://user:secret@host:1/name?x=y", "postgresql://host:1/name"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert named(url) == shown
    assert "secret" not in repr(Settings(store=url))


async def test_odd_paths(tmp_path: Path) -> None:
    for name in ("a b", "ü", "50%", "q?x=1", "#1"):
        url = f"sqlite:///{tmp_path}/{name}/store.db"
        for expected in (1, 2):
            async with aclosing(Store(url)) as store:
                assert await StoredStates(store).of("a").count("n") == expected
        assert (tmp_path / name / "store.db").exists()


async def test_a_store_is_opened_once_however_many_want_it(tmp_path: Path) -> None:
    async with aclosing(Store(f"sqlite:///{tmp_path}/store.db")) as store:
        states = StoredStates(store)
        counts = await asyncio.gather(*(states.of("a").count("n") for _ in range(20)))
        assert sorted(counts) == list(range(1, 21))
        opened = await asyncio.gather(*(store.database() for _ in range(5)))
        assert len({id(database) for database in opened}) == 1


async def test_the_loop_goes_on_while_it_is_opened(tmp_path: Path) -> None:
    """The libraries are imported in a thread: a subprocess, as they are imported already here."""
    code = (
        "import asyncio, threading, sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "where = []\n"
        "class Watch(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'sqlalchemy':\n"
        "            where.append(threading.current_thread() is threading.main_thread())\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from optillm.store.states import StoredStates\n"
        "from optillm.store.store import Store\n"
        "async def main():\n"
        "    store = Store()\n"
        "    await StoredStates(store).of('a').count('n')\n"
        "    await store.aclose()\n"
        "asyncio.run(main())\n"
        "print(set(where))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: ASYNC221
    assert done.stdout.strip() == "{False}"
