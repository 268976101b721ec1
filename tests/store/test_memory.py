"""The store in memory: bounded by number and by size, and told apart by tenant."""

from __future__ import annotations

import pytest

from optillm.store.runs import MemoryRuns

pytestmark = pytest.mark.anyio


async def test_the_oldest_run_makes_room() -> None:
    store = MemoryRuns(most=2)
    for number in range(3):
        store.put("a", f"run-{number}", {"id": f"run-{number}", "records": [number]})
    assert await store.get("a", "run-0") is None
    assert await store.get("a", "run-2") == {"id": "run-2", "records": [2]}
    assert await store.last("a") == [{"id": "run-2"}, {"id": "run-1"}]


async def test_its_text_is_bounded_but_the_latest_run_always_stays() -> None:
    store = MemoryRuns(most_bytes=1000)
    for number in range(3):
        store.put("a", f"run-{number}", {"id": f"run-{number}", "text": "x" * 600})
    assert [run["id"] for run in await store.last("a")] == ["run-2"]
    store.put("a", "run-3", {"id": "run-3", "text": "x" * 5000})
    assert [run["id"] for run in await store.last("a")] == ["run-3"]
    for number in (4, 5):
        store.put("a", f"run-{number}", {"id": f"run-{number}"})
    assert [run["id"] for run in await store.last("a")] == ["run-5", "run-4"]


async def test_a_tenant_sees_its_own_runs_alone() -> None:
    store = MemoryRuns()
    store.put("a", "run", {"id": "run", "of": "a"})
    store.put("b", "run", {"id": "run", "of": "b"})
    assert await store.get("a", "run") == {"id": "run", "of": "a"}
    assert await store.last("b") == [{"id": "run", "of": "b"}]
    assert await store.get("c", "run") is None


async def test_what_is_kept_no_longer_changes() -> None:
    store = MemoryRuns()
    run = {"id": "run", "records": [{"n": 1}]}
    store.put("a", "run", run)
    run["records"] = []
    assert await store.get("a", "run") == {"id": "run", "records": [{"n": 1}]}
