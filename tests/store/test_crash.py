"""``kill -9`` in the middle of learning: of the process that writes, and of the database server.

A child process makes 200 changes and prints each when it has been told that it is committed. It is killed
at some of them. All that it printed must be there afterwards, whole, and the store must go on.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import aclosing, closing
from dataclasses import replace

import psycopg
import pytest

from optillm.core.state import Strategy
from optillm.store.states import StoredStates
from optillm.store.store import Store
from tests.postgres import running

pytestmark = pytest.mark.anyio

CHANGES = 200

# Three kinds of writes by turns, several at once: new strategies, changed ones, replaced ones.
LEARNER = """
import asyncio, sys
from dataclasses import replace
from optillm.core.state import Strategy
from optillm.protocol.errors import StoreError
from optillm.store.states import StoredStates
from optillm.store.store import Store

def say(*words):
    # Out of this process at once: what is in a pipe survives it.
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

async def learn(state, first):
    for i in range(first, 200, 4):
        try:
            await state.add_strategy(Strategy(f"s{i}", "t", f"text {i} " * 500))
            say("added", i)
            await state.change_strategy(f"s{i}", lambda s: replace(s, total_attempts=i, success_count=i))
            say("changed", i)
            if i % 5 == 0:
                merged = [Strategy(f"{name}{i}", "t", "merged") for name in "mn"]
                await state.replace_strategies([f"s{i}"], merged)
                say("replaced", i)
        except StoreError as error:
            say("failed", i)
            return

async def main(url):
    store = Store(url)
    state = StoredStates(store).of("a")
    await asyncio.gather(*(learn(state, first) for first in range(4)))
    await store.aclose()

asyncio.run(main(sys.argv[1]))
"""


class Learner:
    """The child process, and what it said."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-c", LEARNER, url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said: list[tuple[str, int]] = []

    def until(self, lines: int) -> None:
        """Read on until it has said so much."""
        assert self.process.stdout is not None
        while len(self.said) < lines:
            self._note(self.process.stdout.readline())

    def rest(self) -> str:
        """Read on until it has ended; what it wrote to stderr."""
        out, err = self.process.communicate()
        for line in out.splitlines(keepends=True):
            self._note(line)
        return err

    def _note(self, line: str) -> None:
        # A line that was cut off by the end was not said.
        if line.endswith("\n"):
            what, number = line.split()
            self.said.append((what, int(number)))
        else:
            assert line == "" and self.process.wait() != 0, "it ended too early"  # noqa: PT018


async def check(url: str, said: list[tuple[str, int]]) -> None:
    """All that was said to be committed is there, nothing is there by half, and the store goes on."""
    async with aclosing(Store(url)) as store:
        state = StoredStates(store).of("a")
        found = {s.id: s for s in await state.strategies()}
        committed = set(said)
        for what, i in committed:
            added, merged = found.get(f"s{i}"), f"m{i}" in found
            # Replaced, perhaps, without having been able to say so.
            assert added is not None or (i % 5 == 0 and merged), (what, i)
            if what == "replaced":
                assert merged, i
            elif added is not None and what == "changed":
                assert added.success_count == i
        for name, strategy in found.items():
            i = int(name[1:])
            assert (f"m{i}" in found) == (f"n{i}" in found), "a replacement by half"
            assert not (f"m{i}" in found and f"s{i}" in found), "a replacement by half"
            assert strategy.total_attempts == strategy.success_count
            assert strategy.text == ("merged" if name[0] in "mn" else f"text {i} " * 500)
        await state.add_strategy(Strategy("after", "t", "x"))
        assert await state.change_strategy("after", lambda s: replace(s, text="y")) is not None


@pytest.mark.parametrize("lines", [1, 150, 330])
async def test_the_writer_is_killed(store_url: str, lines: int) -> None:
    learner = Learner(store_url)
    learner.until(lines)
    learner.process.kill()
    assert learner.rest() == ""
    assert learner.process.returncode == -9
    assert len(learner.said) < 2 * CHANGES + CHANGES // 5
    await check(store_url, learner.said)
    if store_url.startswith("sqlite"):
        with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_writer_that_is_killed_again_and_again(store_url: str) -> None:
    """Every time in another place, and without being given time to look at what it left."""
    for round_ in range(4):
        learner = Learner(store_url)
        learner.until(20 + 7 * round_)
        learner.process.kill()
        learner.rest()
        async with aclosing(Store(store_url)) as store:
            state = StoredStates(store).of("a")
            ids = {s.id for s in await state.strategies()}
            assert {f"s{i}" for what, i in learner.said if what == "changed" and i % 5} <= ids
            await state.replace_strategies(sorted(ids), [])


async def test_the_server_is_killed() -> None:
    with running() as server:
        url = server.database()
        learner = Learner(url)
        learner.until(150)
        # While the writer goes on writing.
        server.kill()
        errors = learner.rest()
        assert learner.process.returncode == 0
        assert "Traceback" not in errors
        said = [line for line in learner.said if line[0] != "failed"]
        assert 150 <= len(said) < 2 * CHANGES + CHANGES // 5
        assert len(learner.said) - len(said) == 4
        server.start()
        await check(url, said)
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT count(*) FROM strategies").fetchone()
            assert found is not None
            assert found[0] > 50


async def test_the_server_and_the_writer_are_killed_together() -> None:
    with running() as server:
        url = server.database()
        learner = Learner(url)
        learner.until(100)
        both = threading.Thread(target=server.kill)
        both.start()
        learner.process.kill()
        both.join()
        learner.rest()
        server.start()
        await check(url, [line for line in learner.said if line[0] != "failed"])
