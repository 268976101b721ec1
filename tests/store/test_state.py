"""What techniques remember: the same in SQLite and PostgreSQL, complete, and of one tenant."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optillm.core.state import Note, State, States, Strategy
from optillm.store.states import StoredState, StoredStates
from optillm.store.store import Store

pytestmark = pytest.mark.anyio

FULL = Strategy(
    "full",
    "arithmetic",
    "Add the tens\nfirst.",
    ("2+2?", "3+3?"),
    3,
    4,
    0.75,
    10.0,
    30.0,
    20.0,
    ("so",),
    ("s",),
)


@asynccontextmanager
async def opened(url: str, tenant: str = "a") -> AsyncIterator[StoredState]:
    async with aclosing(Store(url)) as store:
        yield StoredStates(store).of(tenant)


@pytest.fixture
async def states(store_url: str) -> AsyncIterator[StoredStates]:
    async with aclosing(Store(store_url)) as store:
        yield StoredStates(store)


@pytest.fixture
async def state(states: StoredStates) -> StoredState:
    return states.of("a")


def more_success(s: Strategy) -> Strategy:
    return replace(s, success_count=s.success_count + 1)


def as_the_interface(states: StoredStates) -> tuple[States, State]:
    """Type-checks: it is what the core asks for."""
    return states, states.of("a")


# -- strategies --------------------------------------------------------------------------------------


async def test_a_strategy_comes_back_as_it_was(store_url: str) -> None:
    plain = Strategy("plain", "logic", "x")
    async with opened(store_url) as state:
        await state.add_strategy(FULL)
        await state.add_strategy(plain)
    async with opened(store_url) as state:
        assert await state.strategies() == (plain, FULL)
        assert await state.strategies("logic") == (plain,)
        assert await state.strategies("none") == ()


async def test_the_oldest_comes_first(state: StoredState) -> None:
    for name, created in (("c", 1.0), ("a", 2.0), ("B", 1.0), ("é", 1.0)):
        await state.add_strategy(Strategy(name, "t", "x", created=created))
    assert [s.id for s in await state.strategies()] == ["B", "c", "é", "a"]


async def test_an_id_that_is_taken(state: StoredState) -> None:
    await state.add_strategy(FULL)
    with pytest.raises(ValueError, match="full"):
        await state.add_strategy(replace(FULL, text="other"))
    assert await state.strategies() == (FULL,)


async def test_a_change(state: StoredState) -> None:
    await state.add_strategy(FULL)
    changed = await state.change_strategy(
        "full", lambda s: replace(s, text="new", tags=("x", "y"), last_used=None)
    )
    assert changed == replace(FULL, text="new", tags=("x", "y"), last_used=None)
    assert await state.strategies() == (changed,)
    assert await state.change_strategy("none", more_success) is None
    assert await state.change_strategy("full", lambda s: None) is None
    assert await state.strategies() == ()


async def test_a_change_that_raises_changes_nothing(state: StoredState) -> None:
    await state.add_strategy(FULL)
    with pytest.raises(ZeroDivisionError):
        await state.change_strategy("full", lambda s: replace(s, confidence=1 / 0))
    with pytest.raises(ValueError, match="another id: other"):
        await state.change_strategy("full", lambda s: replace(s, id="other"))
    assert await state.strategies() == (FULL,)
    assert await state.change_strategy("full", more_success) is not None


async def test_a_replacement_is_all_or_nothing(state: StoredState) -> None:
    one, two, three = (Strategy(name, "t", "x", created=i) for i, name in enumerate(("one", "two", "three")))
    await state.replace_strategies([], [one, two])
    with pytest.raises(ValueError, match="already"):
        await state.replace_strategies(["one"], [three, two])
    assert await state.strategies() == (one, two)
    await state.replace_strategies(["one", "two", "none"], [three])
    assert await state.strategies() == (three,)
    # An id may be used again by what takes its place.
    await state.replace_strategies(["three"], [replace(three, text="y")])
    assert await state.strategies() == (replace(three, text="y"),)


async def test_many_are_replaced_at_once(state: StoredState) -> None:
    many = [Strategy(f"{i:04}", "t", "x") for i in range(2500)]
    await state.replace_strategies([], many)
    await state.replace_strategies([s.id for s in many[:2400]], [])
    assert await state.strategies() == tuple(many[2400:])


# -- counters, summaries -----------------------------------------------------------------------------


async def test_a_counter_counts_on_after_a_restart(store_url: str) -> None:
    async with opened(store_url) as state:
        assert [await state.count("x"), await state.count("x", 5), await state.count("y")] == [1, 6, 1]
    async with opened(store_url) as state:
        assert await state.count("x", -2) == 4


async def test_a_summary_is_replaced_and_the_oldest_go(state: StoredState) -> None:
    assert await state.summary("k") is None
    await state.keep_summary("k", "one", now=1)
    await state.keep_summary("k", "two", now=2)
    assert await state.summary("k") == "two"
    for i in range(5):
        await state.keep_summary(f"{i}", "x", now=10 + i, most=3)
    assert [await state.summary(k) for k in ("k", "0", "1", "2", "3", "4")] == [
        None,
        None,
        None,
        "x",
        "x",
        "x",
    ]


# -- notes -------------------------------------------------------------------------------------------


def note(text: str, at: float = 1.0) -> Note:
    return Note(text, f"chunk of {text}", at, at)


async def add(state: StoredState, conversation: str, *notes: Note, now: float, most: int = 3) -> None:
    await state.add_notes(conversation, notes, most=most, max_age=100.0, now=now)


async def texts(state: StoredState, conversation: str = "c") -> list[str]:
    return [n.text for n in await state.notes(conversation)]


async def test_notes_are_of_a_conversation(state: StoredState) -> None:
    await add(state, "c", note("one"), note("two"), now=1)
    await add(state, "", note("of all"), now=1)
    assert [replace(n, id=0) for n in await state.notes("c")] == [note("one"), note("two")]
    assert await texts(state, "") == ["of all"]
    assert await texts(state, "d") == []


async def test_a_note_that_is_there_is_only_refreshed(state: StoredState) -> None:
    await add(state, "c", note("one"), note("two"), note("one"), now=1)
    (first, _) = await state.notes("c")
    await add(state, "c", Note("one", "elsewhere", 5.0, 6.0), now=6)
    (again, other) = await state.notes("c")
    assert again == replace(first, used=6.0)
    assert other.text == "two"


async def test_the_least_recently_used_go_first(state: StoredState) -> None:
    for i, name in enumerate(("one", "two", "three")):
        await add(state, "c", note(name, i), now=i)
    (one, *_) = await state.notes("c")
    await state.use_notes([one.id], 5.0)
    await add(state, "c", note("four", 6), now=6)
    assert await texts(state) == ["one", "three", "four"]
    # Of those used at the same time, the older ones; those of other conversations stay.
    await add(state, "d", note("other"), now=6)
    await add(state, "c", note("x", 7), note("y", 7), now=7, most=1)
    assert (await texts(state), await texts(state, "d")) == (["y"], ["other"])


async def test_what_is_not_used_is_dropped_after_its_time(state: StoredState) -> None:
    await add(state, "c", note("old", 0), note("used", 0), now=0)
    await add(state, "left", note("left", 0), now=0)
    await state.add_notes("long", [note("long", 0)], most=3, max_age=1000.0, now=0)
    (_, used) = await state.notes("c")
    await state.use_notes([used.id], 50.0)
    await add(state, "c", note("new", 100), now=100)
    assert await texts(state) == ["old", "used", "new"]
    await add(state, "c", now=101)
    assert await texts(state) == ["used", "new"]
    # A conversation that nobody goes on with is forgotten as well, each note after its own time.
    assert (await texts(state, "left"), await texts(state, "long")) == ([], ["long"])


async def test_a_shorter_time_holds_for_its_conversation(state: StoredState) -> None:
    await add(state, "c", note("one", 0), now=0)
    await add(state, "d", note("two", 0), now=0)
    await state.add_notes("c", [], most=3, max_age=10.0, now=20)
    assert (await texts(state, "c"), await texts(state, "d")) == ([], ["two"])


async def test_notes_are_forgotten(state: StoredState) -> None:
    for conversation in ("c", "d", ""):
        await add(state, conversation, note("one"), note("two"), now=1)
    await state.keep_summary("k", "x", now=1)
    assert await state.delete_notes("c") == 2
    assert (await texts(state, "c"), await texts(state, "d")) == ([], ["one", "two"])
    assert await state.summary("k") == "x"
    assert await state.delete_notes() == 4
    assert (await texts(state, "d"), await texts(state, ""), await state.summary("k")) == ([], [], None)
    assert await state.delete_notes() == 0


async def test_more_notes_are_used_than_a_statement_takes(state: StoredState) -> None:
    await add(state, "c", *(note(f"{i}") for i in range(2500)), now=1, most=10_000)
    await state.use_notes([n.id for n in await state.notes("c")], 9.0)
    await state.use_notes([], 10.0)
    assert {n.used for n in await state.notes("c")} == {9.0}


# -- any text ----------------------------------------------------------------------------------------


@given(
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), key=st.text(max_size=300)
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_text_comes_back_by_any_key(states: StoredStates, text: str, key: str) -> None:
    state = states.of("t" + key)
    strategy = Strategy("i" + key, "t" + text, text, (text, ""), tags=(text,))
    await state.replace_strategies([strategy.id], [strategy])
    await state.add_notes(key, [Note(text, text, 1, 1)], most=10_000, max_age=9, now=1)
    await state.keep_summary(key, text, now=1)
    try:
        (found,) = await state.strategies("t" + text)
        assert replace(found, id="") == replace(strategy, id="")
        assert await state.change_strategy(strategy.id, lambda s: s) == found
        assert [n.text for n in await state.notes(key)] == [text]
        assert await state.summary(key) == text
        assert await state.count(key) == 1
    finally:
        await state.delete_notes()
        await state.change_strategy(strategy.id, lambda s: None)
        await state.count(key, -1)


async def test_what_no_database_takes_is_replaced(state: StoredState) -> None:
    await state.add_strategy(Strategy("i\0", "t\0", "a\0b\ud800", ("c\0\udfff",)))
    (found,) = await state.strategies("t\0")
    assert (found.text, found.examples) == ("a\ufffdb?", ("c\ufffd?",))
    assert await state.change_strategy("i\0", more_success) is not None


# -- who sees what -----------------------------------------------------------------------------------


async def test_a_tenant_sees_and_changes_nothing_of_another(states: StoredStates) -> None:
    a, b = states.of("a"), states.of("b")
    for state, mark in ((a, "of a"), (b, "of b")):
        await state.add_strategy(replace(FULL, text=mark))
        await add(state, "c", note(mark), now=1)
        await state.keep_summary("k", mark, now=1)
        await state.count("n", len(mark))
    assert [s.text for s in await b.strategies()] == ["of b"]
    assert (await texts(b), await b.summary("k"), await b.count("n", 0)) == (["of b"], "of b", 4)
    # Whatever a does, and with whatever ids it guesses.
    (theirs,) = await b.notes("c")
    await a.use_notes([theirs.id], 99.0)
    await a.change_strategy("full", lambda s: None)
    await a.replace_strategies(["full"], [])
    await a.keep_summary("x", "x", now=2, most=1)
    await a.add_notes("c", [], most=0, max_age=0.0, now=1e9)
    assert await a.delete_notes() == 0
    assert [s.text for s in await b.strategies()] == ["of b"]
    assert await b.notes("c") == (theirs,)
    assert await b.summary("k") == "of b"


async def test_replicas_see_the_same(store_url: str) -> None:
    async with opened(store_url) as one, opened(store_url) as two:
        await add(one, "c", note("one"), now=1)
        await add(two, "c", note("two"), note("one", 2), now=2)
        assert await one.notes("c") == await two.notes("c")
        assert await texts(one) == ["one", "two"]
        await two.add_strategy(FULL)
        await one.change_strategy("full", more_success)
        assert await two.strategies() == (more_success(FULL),)
        assert await one.delete_notes("c") == 2
        assert await two.notes("c") == ()


async def test_changes_from_several_engines_add_up(store_url: str) -> None:
    async with AsyncExitStack() as stack:
        states = [await stack.enter_async_context(opened(store_url)) for _ in range(4)]
        await states[0].add_strategy(Strategy("s", "t", "x"))
        await asyncio.gather(*(states[i % 4].change_strategy("s", more_success) for i in range(100)))
        assert sorted(await asyncio.gather(*(states[i % 4].count("n") for i in range(100)))) == list(
            range(1, 101)
        )
        assert [s.success_count for s in await states[1].strategies()] == [100]


WRITER = """
import asyncio, sys
from dataclasses import replace
from optillm.store.states import StoredStates
from optillm.store.store import Store

async def main(url):
    store = Store(url)
    state = StoredStates(store).of("a")
    for i in range(25):
        await state.change_strategy("s", lambda s: replace(s, success_count=s.success_count + 1))
    await store.aclose()

asyncio.run(main(sys.argv[1]))
"""


async def test_changes_from_several_processes_add_up(store_url: str) -> None:
    async with opened(store_url) as state:
        await state.add_strategy(Strategy("s", "t", "x"))
        command = [sys.executable, "-c", WRITER, store_url]
        writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]  # noqa: ASYNC220
        await asyncio.gather(*(state.change_strategy("s", more_success) for _ in range(20)))
        ends = [await asyncio.to_thread(w.communicate) for w in writers]
        assert [(err, w.returncode) for (_, err), w in zip(ends, writers, strict=True)] == [(b"", 0)] * 4
        assert [s.success_count for s in await state.strategies()] == [120]


async def test_changes_that_wait_for_each_other_are_begun_again(states: StoredStates) -> None:
    """In PostgreSQL, two that take the same rows in opposite orders: one is told to try again."""
    state, met = states.of("a"), asyncio.Barrier(2)
    for name in ("x", "y"):
        await state.add_strategy(Strategy(name, "t", "x"))
    tried = []

    async def both(first: str, second: str) -> None:
        async def work(rows: object) -> None:
            tried.append(first)
            await rows.change_strategy(first, more_success)  # type: ignore[attr-defined]
            # Both hold their first row: now each wants the other's. SQLite lets only one in.
            if len(tried) <= 2 and states.store.url.startswith("postgres"):
                await met.wait()
            await rows.change_strategy(second, more_success)  # type: ignore[attr-defined]

        await states.store.write("a", work)

    await asyncio.gather(both("x", "y"), both("y", "x"))
    assert [s.success_count for s in await state.strategies()] == [2, 2]
    assert len(tried) == (3 if states.store.url.startswith("postgres") else 2)


async def test_a_change_that_is_cancelled_is_made_or_not_and_nothing_hangs(states: StoredStates) -> None:
    state = states.of("a")
    await state.add_strategy(Strategy("s", "t", "x"))
    started = asyncio.Event()

    def change(s: Strategy) -> Strategy:
        started.set()
        return more_success(s)

    task = asyncio.create_task(state.change_strategy("s", change))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # What had begun was brought to its end, and its connection is as good as new.
    assert [s.success_count for s in await state.strategies()] == [1]


# -- in memory ---------------------------------------------------------------------------------------


async def test_memory_holds_while_the_process_lives_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with aclosing(Store()) as store:
        states = StoredStates(store, "it ends")
        assert await states.of("a").strategies() == ()
        assert caplog.messages == []
        await states.of("a").add_strategy(FULL)
        await asyncio.gather(*(states.of("a").change_strategy("full", more_success) for _ in range(50)))
        assert caplog.messages == ["it ends"]
        assert [s.success_count for s in await states.of("a").strategies()] == [53]
        assert await states.of("b").strategies() == ()
    async with opened("") as state:
        assert await state.strategies() == ()


async def test_memory_survives_a_cancelled_request() -> None:
    async with opened("") as state:
        await state.add_strategy(Strategy("s", "t", "x"))
        for _ in range(20):
            task = asyncio.create_task(state.count("n"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert len(await state.strategies()) == 1
