"""Stopping: disconnect, deadline, budgets, shutdown."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from optillm.core.usage import Price
from tests.fakes import Reply, Said, ScriptedUpstream, Seen
from tests.serving import serving

pytestmark = pytest.mark.anyio


class Gate:
    """Holds replies back until it is opened."""

    def __init__(self, then: Said = "ok") -> None:
        self.event = asyncio.Event()
        self.then = then

    async def __call__(self, call: Seen) -> Said:
        await self.event.wait()
        return self.then


@pytest.mark.parametrize(
    "model", ["m", "bon-m", "mcts-m", "self_consistency(samples=9)-m", "re2|moa-m", "pvg-m"]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_every_call(model: str, stream: bool) -> None:
    async with ScriptedUpstream(Gate()) as up, serving(up, n_mode="fanout") as proxy:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream}
        async with aiohttp.ClientSession() as leaving:
            request = asyncio.ensure_future(leaving.post(proxy.url + "/v1/chat/completions", json=body))
            await up.until(lambda: up.in_flight > 0)
            request.cancel()
        await up.until(lambda: up.in_flight == 0)
        started = len(up.calls)
        # Whatever had gone on would have been called by the time another request is answered.
        up.script = "ok"
        assert (await proxy.ask("m")).text == "ok"
        assert len(up.calls) == started + 1
        assert {c.outcome for c in up.calls[:-1]} == {"cancelled"}
        assert proxy.app.active == set()


async def test_a_client_that_leaves_in_the_middle_of_a_stream() -> None:
    async with ScriptedUpstream(Reply("some text", hangs=True)) as up, serving(up) as proxy:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with aiohttp.ClientSession() as leaving:
            response = await leaving.post(proxy.url + "/v1/chat/completions", json=body)
            await response.content.readany()
            response.close()
        await up.until(lambda: up.in_flight == 0)
        assert up.calls[0].outcome == "cancelled"


def search(call: Seen) -> Said:
    if call.stage in ("rate", "eval"):
        return "Score: 0.5"
    return "more?" if call.stage == "user" else [f"reply {i}" for i in range(call.n)]


@pytest.mark.parametrize(
    ("model", "most", "text"),
    [
        ("bon-m", 1, "reply 0"),
        ("bon-m", 2, "reply 0"),
        ("moa-m", 1, "reply 0"),
        ("moa-m", 2, "reply 0"),
        ("mcts-m", 1, "reply 0"),
        ("mcts-m", 4, "reply 0"),
        ("re2&bon-m", 1, "reply 0"),
    ],
)
async def test_calls_run_out(model: str, most: int, text: str) -> None:
    async with ScriptedUpstream(search) as up, serving(up) as proxy:
        answer = await proxy.ask(model, optillm_budget={"max_calls": most})
        assert (answer.status, answer.text) == (200, text)
        assert answer.info["cut_short"] == "max_calls"
        assert len(up.calls) == answer.info["calls"] == most


async def test_the_votes_that_were_bought_are_counted() -> None:
    def script(call: Seen) -> Said:
        return f"The answer is {'1223344'[call.body['seed']]}"

    async with ScriptedUpstream(script) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("self_consistency(samples=7)-m", seed=0, optillm_budget={"max_calls": 3})
        assert answer.text == "The answer is 2"
        assert answer.info["cut_short"] == "max_calls"


async def test_the_step_before_survives_in_a_chain() -> None:
    async with ScriptedUpstream(search) as up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency&moa-m", optillm_budget={"max_calls": 1})
        assert (answer.text, answer.info["cut_short"]) == ("reply 0", "max_calls")


async def test_tokens_run_out() -> None:
    async with ScriptedUpstream(search) as up, serving(up) as proxy:
        answer = await proxy.ask("mcts-m", mcts_simulations=6, optillm_budget={"max_tokens": 200})
        assert (answer.status, answer.info["cut_short"]) == (200, "max_tokens")
        assert answer.info["calls"] < 25


async def test_money_runs_out() -> None:
    upstream = ScriptedUpstream(Reply("reply", usage={"cost": 0.3}))
    settings: Any = {"prices": {"m": Price(1, 1)}, "n_mode": "fanout", "max_concurrency": 1}
    async with upstream as up, serving(up, **settings) as proxy:
        answer = await proxy.ask("self_consistency-m", optillm_budget={"max_cost": 0.5})
        assert (answer.status, answer.info["cut_short"]) == (200, "max_cost")
        assert (answer.info["calls"], answer.info["cost"]) == (2, pytest.approx(0.6))


async def test_time_runs_out_with_the_best_so_far() -> None:
    gate = Gate()

    def script(call: Seen) -> Any:
        return ["first", "second"] if call.stage == "sample" else gate(call)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m", best_of_n=2, optillm_budget={"max_seconds": 0.3})
        assert (answer.status, answer.text) == (200, "first")
        assert answer.info["cut_short"] == "max_seconds"
        await up.until(lambda: up.in_flight == 0)
        assert [c.outcome for c in up.calls] == ["answered", "cancelled", "cancelled"]


async def test_time_runs_out_before_there_is_anything() -> None:
    async with ScriptedUpstream(Gate()) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m", optillm_budget={"max_seconds": 0.1})
        assert (answer.status, answer.error["code"]) == (400, "max_seconds")


async def test_a_stream_that_is_cut_by_time_ends_as_truncated() -> None:
    gate = Gate()
    order: list[Seen] = []

    async def script(call: Seen) -> Said:
        order.append(call)
        return await gate(call) if len(order) > 1 else ["a", "b", "c"]

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        events = await proxy.events("moa-m", optillm_budget={"max_seconds": 0.3})
        chunks = [json.loads(e) for e in events[:-1]]
        assert events[-1] == "[DONE]"
        assert "".join(c["delta"].get("content", "") for k in chunks for c in k["choices"]) == "a"
        assert chunks[-1]["optillm"]["cut_short"] == "max_seconds"


async def test_shutdown_finishes_what_runs_and_refuses_what_comes() -> None:
    gate = Gate("done")
    async with ScriptedUpstream(gate) as up, serving(up) as proxy:
        running = asyncio.ensure_future(proxy.ask("m"))
        await up.until(lambda: up.in_flight == 1)
        proxy.app.drain()
        refused = await proxy.ask("m")
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert "Retry-After" in refused.headers
        gate.event.set()
        assert (await running).text == "done"


async def test_shutdown_ends_what_takes_too_long_with_the_best_so_far() -> None:
    gate = Gate()

    def script(call: Seen) -> Any:
        return ["first", "second"] if call.stage == "sample" else gate(call)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        running = asyncio.ensure_future(proxy.ask("bon-m"))
        hanging = asyncio.ensure_future(proxy.ask("mcts(simulations=1)-m"))
        await up.until(lambda: up.in_flight == 3)
        proxy.app.end_runs()
        assert ((await running).text, (await running).info["cut_short"]) == ("first", "shutdown")
        assert (await hanging).text == "first"


async def test_a_server_that_stops_lets_requests_end() -> None:
    gate = Gate("done")
    async with ScriptedUpstream(gate) as up, serving(up) as proxy:
        running = asyncio.ensure_future(proxy.ask("m"))
        await up.until(lambda: up.in_flight == 1)
        proxy.server.should_exit = True
        gate.event.set()
        assert (await running).text == "done"
