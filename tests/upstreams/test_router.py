"""Named upstreams: which model goes where, and what they list together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from optillm.core.upstream import Call
from optillm.core.usage import Price
from optillm.faces.assemble import assembled
from optillm.plugins import builtin_registry
from optillm.protocol.errors import UpstreamError
from optillm.settings import Settings, UpstreamSettings
from optillm.upstreams.router import FAILED_FOR, LISTED_FOR, Named, Router, context_window
from tests.fakes import Fault, ScriptedUpstream
from tests.serving import serving

pytestmark = pytest.mark.anyio


class Place:
    """An upstream that only lists."""

    def __init__(self, name: str, *models: str) -> None:
        self.name, self.listed = name, models
        self.asked = 0
        self.dead = False

    async def models(self) -> Sequence[Mapping[str, Any]]:
        self.asked += 1
        if self.dead:
            raise UpstreamError(f"upstream '{self.name}' is dead")
        return [{"id": m, "owned_by": self.name} for m in self.listed]

    async def complete(self, call: Call) -> bytes:
        raise AssertionError

    def stream(self, call: Call) -> Any:
        raise AssertionError

    async def aclose(self) -> None:
        pass


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def to(router: Router, model: str) -> str:
    return router.resolve(model).upstream.name


async def test_patterns_come_first_then_lists_then_the_first() -> None:
    a, b, c = Place("a", "both", "only-a"), Place("b", "both", "only-b", "gpt-x"), Place("c")
    router = Router([Named(a), Named(b), Named(c, ("gpt-*", "exact"))], clock=Clock())
    await router.learn("anything")
    chosen = {m: to(router, m) for m in ("both", "only-a", "only-b", "gpt-x", "exact", "exactly", "nowhere")}
    assert chosen == {
        "both": "a", "only-a": "a", "only-b": "b", "gpt-x": "c", "exact": "c", "exactly": "a", "nowhere": "a",
    }  # fmt: skip


async def test_lists_are_asked_only_if_the_route_depends_on_them() -> None:
    a, b = Place("a"), Place("b")
    router = Router([Named(a), Named(b, ("b-*",))], clock=Clock())
    await router.learn("b-1")
    assert (a.asked, b.asked) == (0, 0)
    await router.learn("x")
    assert (a.asked, b.asked) == (1, 1)
    alone = Place("alone")
    await Router([Named(alone)], clock=Clock()).learn("x")
    assert alone.asked == 0


async def test_a_list_is_kept_for_a_minute() -> None:
    place, clock = Place("a", "m"), Clock()
    router = Router([Named(place)], clock=clock)
    for wait, asked in ((0, 1), (LISTED_FOR - 1, 1), (1, 2), (1, 2)):
        clock.now += wait
        place.listed = (f"m{asked}",)
        assert [m["id"] for m in await router.models()] == [f"m{asked}"]
        assert place.asked == asked


async def test_one_dead_upstream_hides_no_other() -> None:
    alive, dead, clock = Place("alive", "m"), Place("dead", "n"), Clock()
    dead.dead = True
    router = Router([Named(dead), Named(alive)], clock=clock)
    assert [m["id"] for m in await router.models()] == ["m"]
    assert await router.reasons_not_ready() == {"dead": "upstream 'dead' is dead"}
    assert router.ready
    # It is back: whoever wants to know the state is told at once.
    dead.dead = False
    clock.now += FAILED_FOR
    assert await router.reasons_not_ready() == {}
    assert [m["id"] for m in await router.models()] == ["n", "m"]


async def test_nobody_waits_for_an_upstream_that_failed_before() -> None:
    never = asyncio.Event()
    alive, dead, clock = Place("alive", "m"), Place("dead"), Clock()
    dead.dead = True
    router = Router([Named(alive), Named(dead)], clock=clock)
    await router.models()
    fail = dead.models

    async def hang() -> Sequence[Mapping[str, Any]]:
        await never.wait()
        return await fail()

    dead.models = hang  # type: ignore[method-assign]
    clock.now += LISTED_FOR
    assert [m["id"] for m in await router.models()] == ["m"]
    assert await router.lists("m")
    assert not await router.lists("x")
    await router.learn("x")
    assert alive.asked == 2
    await router.aclose()


async def test_a_list_that_fails_later_stays_known() -> None:
    place, clock = Place("a", "m"), Clock()
    router = Router([Named(place)], clock=clock)
    await router.models()
    place.dead = True
    clock.now += LISTED_FOR
    assert [m["id"] for m in await router.models()] == ["m"]
    assert not router.ready


async def test_prices_go_by_model() -> None:
    router = Router([Named(Place("a")), Named(Place("b", "n"), ("n",))], {"n": Price(1, 2)}, Clock())
    assert router.resolve("n").price == Price(1, 2)
    assert router.resolve("m").price is None


async def test_over_http() -> None:
    first = ScriptedUpstream("from first", models=("m1", "both"))
    second = ScriptedUpstream("from second", models=("m2", "both"))
    third = ScriptedUpstream("from third", models=Fault(status=500))
    async with first, second, third:
        upstreams = (
            UpstreamSettings("one", "openai", first.base_url, "k1"),
            UpstreamSettings("two", "openai", second.base_url, "k2"),
            UpstreamSettings("three", "openai", third.base_url, "k3", models=("special-*",)),
        )
        async with serving(first, upstreams=upstreams) as proxy:
            for model, text in (
                ("m2", "from second"),
                ("m1", "from first"),
                ("both", "from first"),
                ("re2-m2", "from second"),
                ("special-x", "from third"),
                ("unknown", "from first"),
            ):
                assert (await proxy.ask(model)).text == text, model
            listed = (await proxy.get("/v1/models")).json["data"]
            assert [m["id"] for m in listed] == ["m1", "both", "m2"]
            ready = await proxy.get("/ready")
            assert (ready.status, list(ready.json["upstreams"])) == (200, ["three"])
        # Each got its own key, and only its own.
        for upstream, key in ((first, "k1"), (second, "k2"), (third, "k3")):
            assert {c.headers["Authorization"] for c in upstream.calls} == {f"Bearer {key}"}


async def test_a_technique_reaches_several_upstreams() -> None:
    first, second = ScriptedUpstream("a"), ScriptedUpstream("Score: 3")
    async with first, second:
        upstreams = (
            UpstreamSettings("one", "openai", first.base_url),
            UpstreamSettings("two", "openai", second.base_url, models=("judge",)),
        )
        async with serving(first, upstreams=upstreams, n_mode="fanout") as proxy:
            first.script = lambda call: "ab"[call.body["seed"]]
            answer = await proxy.ask("bon-m", best_of_n=2, bon_judge_model="judge", seed=0)
            assert answer.text == "a"
            assert (len(first.calls), len(second.calls)) == (2, 2)
            assert {c.body["model"] for c in second.calls} == {"judge"}


@pytest.mark.parametrize(
    ("about", "window"),
    [
        ({"max_model_len": 8192}, 8192),
        ({"context_length": 4096, "n_ctx": 1}, 4096),
        ({"context_window": 131072}, 131072),
        ({"meta": {"n_ctx_train": 32768}}, 32768),
        ({"meta": {"n_ctx_train": 32768, "n_ctx": 2048}}, 2048),
        ({"context_length": None, "max_input_tokens": 1000}, 1000),
        ({"context_length": "many", "meta": "none"}, None),
        ({"max_model_len": True}, None),
        ({"max_model_len": 0}, None),
        ({}, None),
    ],
)
def test_model_objects_tell_of_their_window(about: dict[str, Any], window: int | None) -> None:
    assert context_window({"id": "m", **about}) == window


async def test_the_window_of_a_model_is_that_of_its_own_upstream() -> None:
    small = {"id": "m", "object": "model", "max_model_len": 100}
    large = {"id": "n", "object": "model", "max_model_len": 200}
    async with ScriptedUpstream(models=[small]) as a, ScriptedUpstream(models=[large]) as b:
        places = tuple(UpstreamSettings(name, "openai", up.base_url) for name, up in (("a", a), ("b", b)))
        async with assembled(Settings(upstreams=places), builtin_registry()) as (_, router):
            assert await router.window("m") == 100
            assert await router.window("n") == 200
            assert await router.window("unheard-of") is None
            assert (a.lists, b.lists) == (1, 1)


async def test_the_window_of_an_upstream_that_is_down_is_not_known() -> None:
    place = Place("a", "m")
    place.dead = True
    assert await Router([Named(place)], clock=Clock()).window("m") is None
