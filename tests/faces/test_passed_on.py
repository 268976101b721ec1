"""Requests that are only passed on: their short way comes to what the long way comes to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes import ScriptedUpstream
from tests.serving import serving

pytestmark = pytest.mark.anyio

ASKED: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "Be brief.", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "What is 6 times 7?"}]},
    ],
    "temperature": 0.5,
    "seed": 7,
    "something_new": {"deep": [1, {"er": None}]},
}


def without_times(run: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in run.items() if k not in ("id", "run_id", "created", "seconds")}
    kept["records"] = [{k: v for k, v in r.items() if k not in ("started", "ended")} for r in run["records"]]
    return kept


@pytest.mark.parametrize(
    "extra", [{}, {"n": 1}, {"n": 2}, {"stop": ["\n"]}, {"max_completion_tokens": 5}, {"tools": []}], ids=str
)
async def test_both_ways_are_the_same(extra: dict[str, Any]) -> None:
    """The same request, once plain and once with an approach that is named: same call, same run."""
    async with ScriptedUpstream("42") as up, serving(up) as proxy:
        runs = []
        for named in ({}, {"optillm_approach": "none"}):
            answer = await proxy.post({**ASKED, **extra, **named})
            assert answer.status == 200
            assert answer.headers["X-Optillm-Approach"] == "none"
            assert answer.headers["X-Optillm-Calls"] == answer.headers["X-Optillm-Depth"] == "1"
            runs.append((await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json)
    first, second = up.calls
    assert first.body == second.body
    assert without_times(runs[0]) == without_times(runs[1])
    assert runs[0]["records"][0]["request"]["something_new"] == ASKED["something_new"]
    assert runs[0]["choices"][0]["message"]["content"] == "42"
    assert 0 <= runs[0]["records"][0]["started"] <= runs[0]["records"][0]["ended"] <= runs[0]["seconds"]


@pytest.mark.parametrize("escaped", [False, True])
async def test_a_tag_is_seen_however_it_is_written(escaped: bool) -> None:
    """JSON may escape any character; a tag stays a tag."""
    tag = "<optillm_approach>re2</optillm_approach>"
    written = "".join(f"\\u{ord(c):04x}" for c in tag) if escaped else tag
    text = '{"model": "m", "messages": [{"role": "user", "content": "' + written + 'Why?"}]}'
    async with ScriptedUpstream("42") as up, serving(up) as proxy:
        answer = await proxy.post(text.encode())
    assert answer.info["approach"] == "re2"
    assert tag not in json.dumps(up.calls[0].body)


async def test_a_parameter_without_its_approach_still_warns() -> None:
    async with ScriptedUpstream("42") as up, serving(up) as proxy:
        answer = await proxy.post({**ASKED, "mcts_depth": 2})
    assert "mcts_depth" in answer.info["warnings"][0]
    assert "mcts_depth" not in up.calls[0].body


async def test_the_servers_approach_and_choices_hold_for_plain_requests() -> None:
    async with ScriptedUpstream("42") as up:
        async with serving(up, approach="re2") as proxy:
            assert (await proxy.post(ASKED)).info["approach"] == "re2"
        async with serving(up, n=3) as proxy:
            assert len((await proxy.post(ASKED)).texts) == 3
