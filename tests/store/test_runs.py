"""Where runs are kept: bounded, by tenant, in memory or in a file that processes share."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optillm.settings import SettingsError
from optillm.store.runs import MemoryRuns, RunStore, SQLiteRuns, open_store

pytestmark = pytest.mark.anyio

Make = Callable[[Path], RunStore]


def memory(folder: Path) -> RunStore:
    return MemoryRuns(most=10)


def sqlite(folder: Path) -> RunStore:
    return SQLiteRuns(folder / "runs.db", most=10, slack=1)


def run(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "records": [1], "choices": [2], **more}


@pytest.fixture(params=[memory, sqlite])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    opened = request.param(tmp_path)
    yield opened
    await opened.aclose()


async def test_a_run_is_shown_to_its_tenant_alone(store: RunStore) -> None:
    store.put("a", "1", run("1"))
    store.put("b", "2", run("2"))
    assert await store.get("a", "1") == {"id": "1", "records": [1], "choices": [2]}
    assert await store.get("b", "1") is None
    assert await store.get("a", "2") is None
    assert await store.last("a") == [{"id": "1"}]
    assert await store.last("c") == []


async def test_the_same_id_of_two_tenants(store: RunStore) -> None:
    store.put("a", "1", run("1", of="a"))
    store.put("b", "1", run("1", of="b"))
    assert [(await store.get(t, "1") or {})["of"] for t in "ab"] == ["a", "b"]


async def test_the_last_ones_come_first_and_the_oldest_make_room(store: RunStore) -> None:
    for i in range(25):
        store.put("a", str(i), run(str(i)))
    assert [r["id"] for r in await store.last("a")] == [str(i) for i in range(24, 14, -1)]
    assert [r["id"] for r in await store.last("a", 2)] == ["24", "23"]
    assert await store.get("a", "14") is None


async def test_memory_is_bounded_by_bytes() -> None:
    store = MemoryRuns(most=100, most_bytes=100)
    for i in range(5):
        store.put("a", str(i), run(str(i)))
    assert [r["id"] for r in await store.last("a")] == ["4", "3"]
    # One that is too large for all of it is still shown, until the next one comes.
    store.put("a", "huge", run("huge", text="x" * 1000))
    assert [r["id"] for r in await store.last("a")] == ["huge"]
    store.put("a", "5", run("5"))
    assert [r["id"] for r in await store.last("a")] == ["5"]


async def test_putting_a_run_again_does_not_count_it_twice() -> None:
    store = MemoryRuns(most=100, most_bytes=100)
    store.put("a", "0", run("0"))
    for _ in range(20):
        store.put("a", "1", run("1"))
    assert [r["id"] for r in await store.last("a")] == ["1", "0"]


async def test_a_file_is_bounded_by_bytes(tmp_path: Path) -> None:
    store = SQLiteRuns(tmp_path / "runs.db", most=100, most_bytes=3000, slack=1)
    for i in range(6):
        store.put("a", str(i), run(str(i), text="x" * 1000))
    assert [r["id"] for r in await store.last("a")] == ["5", "4"]
    store.put("a", "huge", run("huge", text="x" * 5000))
    assert [r["id"] for r in await store.last("a")] == ["huge"]
    await store.aclose()


async def test_a_file_survives_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/folder/runs.db"
    store = open_store(url)
    store.put("a", "1", run("1"))
    await store.aclose()
    again = open_store(url)
    assert (await again.get("a", "1") or {})["id"] == "1"
    await again.aclose()


async def test_processes_write_at_once(tmp_path: Path) -> None:
    """Opening included: all start on a file that is not there yet."""
    path = tmp_path / "runs.db"
    code = (
        "import asyncio, sys; from pathlib import Path; from optillm.store.runs import SQLiteRuns\n"
        "async def main(me):\n"
        f"    store = SQLiteRuns(Path({str(path)!r}))\n"
        "    for i in range(100):\n"
        "        store.put('a', f'{me}-{i}', {'id': f'{me}-{i}'})\n"
        "    await store.aclose()\n"
        "asyncio.run(main(sys.argv[1]))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(me)], stderr=subprocess.PIPE)  # noqa: ASYNC220
        for me in range(3)
    ]
    assert [(w.communicate()[1], w.returncode) for w in writers] == [(b"", 0)] * 3
    store = SQLiteRuns(path)
    found = await store.last("a", 1000)
    await store.aclose()
    assert {r["id"] for r in found} == {f"{me}-{i}" for me in range(3) for i in range(100)}


async def test_what_cannot_be_stored_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SQLiteRuns(tmp_path / "runs.db")
    store.put("a", "1", {"id": object()})
    store.put("a", "2", run("2"))
    assert [r["id"] for r in await store.last("a")] == ["2"]
    await store.aclose()
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "could not be stored: TypeError" in caplog.text


@pytest.mark.parametrize("url", ["redis://x", "sqlite:/x", "sqlite:////proc/no/runs.db"])
def test_what_cannot_be_opened(url: str) -> None:
    with pytest.raises(SettingsError, match="--store"):
        open_store(url)
