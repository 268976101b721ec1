"""Hundreds of requests at once: each is exactly what it is on a server of its own."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import pytest

from optillm.core.plan import parse_spec, units
from optillm.plugins import builtin_registry
from tests.fakes import ScriptedUpstream
from tests.isolation.alone import alone, among_others
from tests.isolation.requests import asked, by_marker, echo_script, marks, random_request
from tests.serving import serving

pytestmark = pytest.mark.anyio

REQUESTS = [random_request(i, rng) for rng in [random.Random(20260101)] for i in range(300)]


async def test_each_of_300_is_as_if_alone() -> None:
    async with ScriptedUpstream(echo_script) as up:
        single = [await alone(up.base_url, body, i) for i, body in enumerate(REQUESTS)]
        expected = by_marker(up.calls)
    async with (
        ScriptedUpstream(echo_script, latency=0.002) as crowded,
        serving(crowded, upstream_concurrency=64) as proxy,
    ):
        together = await asyncio.gather(
            *(among_others(proxy.http, proxy.base_url, body, i) for i, body in enumerate(REQUESTS))
        )
        seen = by_marker(crowded.calls)
    assert crowded.peak > 30
    assert seen.keys() == expected.keys() == set(range(len(REQUESTS)))
    others: set[str] = set()
    for i, body in enumerate(REQUESTS):
        assert asked(seen[i], body) == asked(expected[i], body), body
        assert together[i] == single[i], body
        assert {c.headers["Authorization"] for c in seen[i]} == {f"Bearer key-of-{i}"}
        mine = marks(seen[i])
        assert len(mine) <= 1, "a run has one mark"
        assert mine.isdisjoint(others), "and no other run has it"
        others |= mine


async def test_usage_and_calls_are_those_of_the_request_s_own_calls() -> None:
    requests = [{**body, "stream": False} for body in REQUESTS[:100]]
    async with ScriptedUpstream(echo_script) as up, serving(up) as proxy:
        answers = await asyncio.gather(*(proxy.post(body) for body in requests))
        seen = by_marker(up.calls)
    for i, answer in enumerate(answers):
        assert answer.info["calls"] == len(seen[i])
        assert answer.json["usage"]["prompt_tokens"] == sum(len(c.text.split()) for c in seen[i])


def test_the_requests_are_of_all_kinds() -> None:
    registry = builtin_registry()
    plans = [parse_spec(body["optillm_approach"], registry) for body in REQUESTS]
    used = Counter(unit.slug for plan in plans for unit in units(plan))
    assert all(used[approach.slug] >= 5 for approach in registry), used
    for sign in "&|>":
        assert sum(sign in body["optillm_approach"] for body in REQUESTS) >= 10
    for field in ("stream", "tools", "n", "optillm_budget", "stop", "temperature"):
        assert sum(field in body for body in REQUESTS) >= 20, field
    assert sum("seed" not in body for body in REQUESTS) >= 20
    assert len({json.dumps(body) for body in REQUESTS}) == len(REQUESTS)
