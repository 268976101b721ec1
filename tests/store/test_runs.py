"""Where runs are kept: bounded, by tenant, in memory or in a file that processes share."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from optillm.store.runs import MemoryRuns, RunStore, StoredRuns
from optillm.store.store import Store

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def memory(url: str) -> AsyncIterator[RunStore]:
    yield MemoryRuns(most=10)


@asynccontextmanager
async def stored(url: str, **limits: int) -> AsyncIterator[StoredRuns]:
    async with aclosing(Store(url)) as store, aclosing(StoredRuns(store, **limits)) as runs:
        yield runs


def run(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "records": [1], "choices": [2], **more}


@pytest.fixture(params=["memory", "stored"])
async def store(request: pytest.FixtureRequest, store_url: str) -> Any:
    opened = memory(store_url) if request.param == "memory" else stored(store_url, most=10, slack=1)
    async with opened as runs:
        yield runs


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


async def test_the_store_is_bounded_by_bytes(store_url: str) -> None:
    async with stored(store_url, most=100, most_bytes=3000, slack=1) as runs:
        for i in range(6):
            runs.put("a", str(i), run(str(i), text="x" * 1000))
        assert [r["id"] for r in await runs.last("a")] == ["5", "4"]
        # One that is too large for all of it is still shown, until the next one comes.
        runs.put("a", "huge", run("huge", text="x" * 5000))
        assert [r["id"] for r in await runs.last("a")] == ["huge"]


async def test_what_others_left_is_bounded_too(store_url: str) -> None:
    async with stored(store_url) as runs:
        for i in range(30):
            runs.put("a", str(i), run(str(i)))
    async with stored(store_url, most=10) as runs:
        runs.put("b", "30", run("30"))
        assert len(await runs.last("a")) == 9
        assert len(await runs.last("b")) == 1


async def test_runs_survive_a_restart(store_url: str) -> None:
    async with stored(store_url) as runs:
        runs.put("a", "1", run("1"))
    async with stored(store_url) as runs:
        assert (await runs.get("a", "1") or {})["id"] == "1"


async def test_putting_a_run_again_makes_it_the_latest(store: RunStore) -> None:
    store.put("a", "1", run("1"))
    store.put("a", "2", run("2"))
    assert [r["id"] for r in await store.last("a")] == ["2", "1"]
    store.put("a", "1", run("1", again=True))
    assert await store.last("a") == [{"id": "1", "again": True}, {"id": "2"}]


async def test_many_are_written_in_the_order_in_which_they_came(store_url: str) -> None:
    async with stored(store_url, most=1000) as runs:
        for i in range(250):
            runs.put("ab"[i % 2], str(i), run(str(i)))
        assert [r["id"] for r in await runs.last("a", 1000)] == [str(i) for i in range(248, -1, -2)]
        assert [r["id"] for r in await runs.last("b", 1000)] == [str(i) for i in range(249, -1, -2)]


async def test_processes_write_at_once(store_url: str) -> None:
    """Opening included: all start on a store that has no tables yet."""
    code = (
        "import asyncio, sys\n"
        "from optillm.store.runs import StoredRuns\n"
        "from optillm.store.store import Store\n"
        "async def main(me, url):\n"
        "    store = Store(url)\n"
        "    runs = StoredRuns(store)\n"
        "    for i in range(100):\n"
        "        runs.put('a', f'{me}-{i}', {'id': f'{me}-{i}'})\n"
        "    await runs.aclose()\n"
        "    await store.aclose()\n"
        "asyncio.run(main(*sys.argv[1:]))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(me), store_url], stderr=subprocess.PIPE)  # noqa: ASYNC220
        for me in range(3)
    ]
    assert [(w.communicate()[1], w.returncode) for w in writers] == [(b"", 0)] * 3
    async with stored(store_url) as runs:
        found = await runs.last("a", 1000)
    assert {r["id"] for r in found} == {f"{me}-{i}" for me in range(3) for i in range(100)}


async def test_what_cannot_be_stored_is_said(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stored(store_url) as runs:
        runs.put("a", "1", {"id": object()})
        runs.put("a", "2", run("2"))
        assert [r["id"] for r in await runs.last("a")] == ["2"]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "run 1 could not be stored: TypeError" in caplog.text


async def test_more_than_may_wait_are_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with stored(f"sqlite:///{tmp_path}/store.db", waiting=2) as runs:
        for i in range(4):
            runs.put("a", str(i), run(str(i)))
        assert [r["id"] for r in await runs.last("a")] == ["3", "2"]
    assert [r.getMessage() for r in caplog.records] == [
        f"run {i} is not kept: the store does not keep up" for i in range(2)
    ]
