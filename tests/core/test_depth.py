"""The depth of a run is its own, whatever ran before it in the same task."""

from __future__ import annotations

import pytest

from optillm.library import solve
from tests.fakes import ScriptedUpstream

pytestmark = pytest.mark.anyio


async def test_runs_one_after_the_other_in_one_task() -> None:
    async with ScriptedUpstream("4") as up:
        solved = [
            await solve("2+2?", approach=approach, model="m", upstream=up.base_url)
            for approach in ("re2", "moa", "re2", "re2|re2")
        ]
    assert [s.response["optillm"]["depth"] for s in solved] == [1, 3, 1, 1]
