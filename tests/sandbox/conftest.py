"""One warm sandbox for all tests of this folder; every run in it is fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import pytest

from optillm.core.tools import Outcome
from optillm.sandbox.namespaces import NamespaceSandbox
from tests.sandbox.processes import descendants, settled

T = TypeVar("T")


class Bench:
    """A sandbox and a loop to use it from plain functions."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.sandbox = NamespaceSandbox()
        # Where namespaces are forbidden this fails, and so do all tests: nothing is skipped.
        self.modules = self.do(self.sandbox.start())
        self.idle = descendants()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def run(self, code: str, **arguments: Any) -> Outcome:
        return self.do(self.sandbox.run(code, **arguments))

    def close(self) -> None:
        self.do(self.sandbox.aclose())
        self._runner.close()


class Run(Protocol):
    def __call__(self, code: str, **arguments: Any) -> Outcome: ...


@pytest.fixture(scope="session")
def shared_bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def bench(shared_bench: Bench) -> Iterator[Bench]:
    """The sandbox; after each test it still works, and nothing but its own two processes is left."""
    yield shared_bench
    after = shared_bench.run("print(6 * 7)")
    assert (after.status, after.stdout) == ("ok", "42\n")
    assert settled() == shared_bench.idle


@pytest.fixture
def run(bench: Bench) -> Run:
    return bench.run
