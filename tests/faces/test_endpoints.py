"""The endpoints beside chat completions."""

from __future__ import annotations

import pytest

from optillm.plugins import builtin_registry
from optillm.settings import UpstreamSettings
from tests.fakes import Fault, ScriptedUpstream
from tests.serving import serving

pytestmark = pytest.mark.anyio


def two(one: ScriptedUpstream, other: ScriptedUpstream) -> tuple[UpstreamSettings, ...]:
    return UpstreamSettings("one", "openai", one.base_url), UpstreamSettings("two", "openai", other.base_url)


async def test_models_of_all_upstreams_each_once() -> None:
    async with (
        ScriptedUpstream(models=("a", "b")) as one,
        ScriptedUpstream(models=("b", "c")) as other,
        serving(one, upstreams=two(one, other)) as proxy,
    ):
        listed = (await proxy.get("/v1/models")).json
        assert listed["object"] == "list"
        assert [m["id"] for m in listed["data"]] == ["a", "b", "c"]
        assert (await proxy.get("/v1/models/c")).json["object"] == "model"
        assert (await proxy.get("/v1/models/d")).error["code"] == "model_not_found"
        named = [m["id"] for m in (await proxy.get("/v1/models?approaches=1")).json["data"]]
        slugs = [a.slug for a in builtin_registry() if a.slug != "none"]
        assert named == ["a", "b", "c", *(f"{s}-{m}" for s in slugs for m in "abc")]


async def test_a_dead_upstream_does_not_break_the_list() -> None:
    async with (
        ScriptedUpstream(models=("a",)) as one,
        ScriptedUpstream(models=Fault(status=500)) as dead,
        serving(one, upstreams=two(dead, one)) as proxy,
    ):
        assert [m["id"] for m in (await proxy.get("/v1/models")).json["data"]] == ["a"]
        ready = await proxy.get("/ready")
        assert (ready.status, ready.json["status"]) == (200, "ready")
        assert list(ready.json["upstreams"]) == ["one"]
        assert "500" in ready.json["upstreams"]["one"]


async def test_ready_says_why_not() -> None:
    async with ScriptedUpstream(models=Fault(status=500)) as up, serving(up) as proxy:
        ready = await proxy.get("/ready")
        assert (ready.status, ready.json["status"]) == (503, "not ready")
        assert "500" in ready.json["upstreams"]["up"]
        assert (await proxy.get("/health")).json == {"status": "ok"}
        proxy.app.drain()
        assert (await proxy.get("/ready")).json["status"] == "draining"
        assert (await proxy.get("/health")).status == 200


async def test_approaches_tell_all_that_is_known_of_them() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        listed = (await proxy.get("/v1/approaches")).json["data"]
        assert [a["id"] for a in listed] == [a.slug for a in builtin_registry()]
        for item in listed:
            assert item == (await proxy.get(f"/v1/approaches/{item['id']}")).json
            assert item["title"]
            assert item["family"]
            assert item["calls"]
            assert item["depth"]
            assert item["produces"] in ("task", "answer")
        mcts = (await proxy.get("/v1/approaches/mcts")).json["parameters"]
        assert mcts["type"] == "object"
        simulations = mcts["properties"]["mcts_simulations"]
        assert (simulations["type"], simulations["minimum"], simulations["maximum"]) == ("integer", 1, 64)
        assert (simulations["default"], simulations["x-name"]) == (2, "simulations")
        assert simulations["description"]


async def test_head_and_a_slash_at_the_end() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        async with proxy.http.head(proxy.url + "/health") as response:
            assert (response.status, await response.read()) == (200, b"")
        assert (await proxy.get("/v1/models/")).status == 200
        assert (await proxy.get("/v1/runs/")).json["data"] == []
