"""The trace of a run: complete, also of runs that failed, were cut short or were left."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.fakes import Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio


def script(call: Seen) -> Said:
    used = {"prompt_tokens": 10, "completion_tokens": 2}
    if call.stage == "rate":
        return Reply(f"Score: {8 if 'text 1' in call.text else 3}", usage=used)
    return [Reply(f"text {i}", usage=used) for i in range(call.n)]


async def run_of(proxy: Proxy, run_id: str) -> dict[str, Any]:
    found = await proxy.get(f"/v1/runs/{run_id}")
    assert found.status == 200
    out: dict[str, Any] = found.json
    return out


async def only_run(proxy: Proxy) -> dict[str, Any]:
    (listed,) = (await proxy.get("/v1/runs")).json["data"]
    assert not {"records", "choices"} & set(listed)
    return await run_of(proxy, listed["id"])


async def test_a_trace_is_complete() -> None:
    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m", best_of_n=2, seed=7)
        run = await run_of(proxy, answer.info["run_id"])
    assert (run["object"], run["id"], run["seed"]) == ("run", answer.json["id"], 7)
    assert (run["approach"], run["model"], run["calls"], run["depth"]) == ("bon", "m", 3, 2)
    assert run["params"]["bon"]["n"] == 2
    assert run["error"] is None
    assert run["usage"] == answer.json["usage"]
    assert [c["message"]["content"] for c in run["choices"]] == ["text 1"]
    calls = [r for r in run["records"] if r["kind"] == "call"]
    assert [(c["stage"], c["unit"], c["tag"], c["depth"]) for c in calls] == [
        ("bon.sample", "bon", None, 1), ("bon.rate", "bon", "0", 2), ("bon.rate", "bon", "1", 2),
    ]  # fmt: skip
    for call in calls:
        assert (call["upstream"], call["model"], call["error"]) == ("up", "m", None)
        assert 0 <= call["started"] <= call["ended"] <= run["seconds"]
        assert call["usage"]["total_tokens"] == 12
        assert call["request"] in [c.body for c in up.calls]
    assert calls[1]["started"] >= calls[0]["ended"]
    assert [r["message"]["content"] for r in calls[0]["replies"]] == ["text 0", "text 1"]
    (note,) = [r for r in run["records"] if r["kind"] == "note"]
    assert (note["name"], note["data"]) == ("bon.scores", {"scores": [0.3, 0.8], "winner": 1})
    assert note["at"] >= max(c["ended"] for c in calls)


@pytest.mark.parametrize("model", ["none-m", "re2-m"])
async def test_a_streamed_run_is_as_complete(model: str) -> None:
    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        await proxy.events(model, stream_options={"include_usage": True})
        run = await only_run(proxy)
    (call,) = run["records"]
    assert call["replies"][0]["message"]["content"] == "text 0"
    assert call["usage"]["total_tokens"] == run["usage"]["total_tokens"] == 12
    assert call["ended"] is not None
    assert run["choices"][0]["message"]["content"] == "text 0"


async def test_a_run_that_was_cut_short() -> None:
    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m", optillm_budget={"max_calls": 2})
        run = await run_of(proxy, answer.info["run_id"])
    assert (run["cut_short"], run["calls"], run["error"]) == ("max_calls", 2, None)
    # Calls that the budget refused were not made.
    calls = [r for r in run["records"] if r["kind"] == "call"]
    assert [(c["stage"], c["error"]) for c in calls] == [("bon.sample", None), ("bon.rate", None)]
    assert run["choices"][0]["message"]["content"] == answer.text


async def test_the_depth_is_that_of_the_calls_that_were_made() -> None:
    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m", optillm_budget={"max_calls": 1})
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (1, 1, 1)


async def test_a_run_that_failed() -> None:
    async with ScriptedUpstream(refusal(404, "no such model")) as up, serving(up) as proxy:
        await proxy.ask("bon-m")
        run = await only_run(proxy)
    assert "no such model" in run["error"]
    assert run["choices"] == []
    assert "no such model" in run["records"][0]["error"]
    assert run["records"][0]["ended"] is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_whose_client_left(stream: bool) -> None:
    gate = asyncio.Event()

    async def hold(call: Seen) -> Said:
        await gate.wait()
        return "ok"

    async with ScriptedUpstream(hold) as up, serving(up) as proxy:
        body = {"model": "bon-m", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        async with aiohttp.ClientSession() as leaving:
            request = asyncio.ensure_future(leaving.post(proxy.url + "/v1/chat/completions", json=body))
            await up.until(lambda: up.in_flight == 1)
            request.cancel()
        await up.until(lambda: up.in_flight == 0)
        run = await only_run(proxy)
    assert run["error"] == "the client went away"
    assert run["records"][0]["error"] == "CancelledError"
    assert run["records"][0]["ended"] is not None


async def test_a_request_that_never_ran_leaves_no_run() -> None:
    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        await proxy.ask("bon-m", best_of_n=0)
        assert (await proxy.get("/v1/runs")).json == {"object": "list", "data": []}


async def test_runs_are_kept_in_a_file_if_told(tmp_path: Any) -> None:
    store = f"sqlite:///{tmp_path}/runs.db"
    async with ScriptedUpstream(script) as up:
        async with serving(up, store=store) as proxy:
            run_id = (await proxy.ask("bon-m")).info["run_id"]
            before = await run_of(proxy, run_id)
        async with serving(up, store=store) as proxy:
            assert await run_of(proxy, run_id) == before
