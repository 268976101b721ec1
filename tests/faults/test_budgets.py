"""Budgets: whatever the technique and wherever the limit falls, the best answer so far comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from optillm.core.usage import Price
from tests.fakes import Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio

# With n_mode fan-out, so that every sample is a call that the budget can refuse.
PLANS = {
    "none-like": "re2",
    "cot_reflection": "cot_reflection",
    "bon": "bon(n=3)",
    "moa": "moa",
    "self_consistency": "self_consistency(samples=3)",
    "mcts": "mcts(simulations=2)",
    "chain": "bon(n=2)&moa",
    "rewritten": "re2&bon(n=2)",
    "par": "bon(n=2)|moa",
    "nested": "(re2|cot_reflection)&bon(n=2)",
}
FOUR = "The answer is 4."
EACH = pytest.mark.parametrize("plan", PLANS)


def dialogue(call: Seen) -> Reply | str:
    """Every answer is one that a client could use."""
    if call.stage in ("rate", "eval"):
        return "Score: 0.5"
    if call.stage in ("user", "critique"):
        return "Go on."
    # Distinct, so that nothing is left out as a repetition; the same answer, so that votes agree.
    text = f"{call.body['seed']} says:\n{FOUR}"
    return Reply(text, usage={"prompt_tokens": 10, "completion_tokens": 10})


async def told(proxy: Proxy, plan: str, stream: bool, **fields: Any) -> tuple[str, dict[str, Any], str]:
    """The last line of the answer, the optillm object and the last finish reason."""
    fields.setdefault("seed", 0)
    model = f"{PLANS[plan]}-m" if plan not in ("nested",) else "m"
    if plan == "nested":
        fields["optillm_approach"] = PLANS[plan]
    if not stream:
        answer = await proxy.ask(model, **fields)
        assert answer.status == 200, answer.json
        return answer.text.split("\n")[-1], answer.info, answer.json["choices"][0]["finish_reason"]
    events = await proxy.events(model, **fields)
    assert events[-1] == "[DONE]", events[-1]
    chunks = [json.loads(e) for e in events[:-1]]
    choices = [c for k in chunks for c in k["choices"] if c["index"] == 0]
    text = "".join(c["delta"].get("content") or "" for c in choices)
    [info] = [k["optillm"] for k in chunks if "optillm" in k]
    assert text.count(FOUR) == 1
    return text.split("\n")[-1], info, next(c["finish_reason"] for c in choices if c["finish_reason"])


async def calls_of(proxy: Proxy, plan: str) -> int:
    """The calls of the same request without a budget."""
    _, info, _ = await told(proxy, plan, False)
    assert "cut_short" not in info
    return int(info["calls"])


@EACH
@pytest.mark.parametrize("stream", [False, True])
async def test_wherever_the_calls_run_out(plan: str, stream: bool) -> None:
    async with ScriptedUpstream(dialogue) as up, serving(up, n_mode="fanout") as proxy:
        whole = await calls_of(proxy, plan)
        for most in range(1, whole + 2):
            before = len(up.calls)
            text, info, finish = await told(proxy, plan, stream, optillm_budget={"max_calls": most})
            assert (text, finish) == (FOUR, "stop"), most
            assert len(up.calls) - before == info["calls"] == min(most, whole)
            # It says so exactly when something was cut.
            assert info.get("cut_short") == ("max_calls" if most < whole else None), most


@EACH
@pytest.mark.parametrize("stream", [False, True])
async def test_wherever_the_tokens_run_out(plan: str, stream: bool) -> None:
    settings: dict[str, Any] = {"n_mode": "fanout", "max_concurrency": 1}
    async with ScriptedUpstream(dialogue) as up, serving(up, **settings) as proxy:
        whole = await calls_of(proxy, plan)
        for most in (1, 21, 61):
            text, info, finish = await told(proxy, plan, stream, optillm_budget={"max_tokens": most})
            assert (text, finish) == (FOUR, "stop")
            assert info.get("cut_short") == ("max_tokens" if info["calls"] < whole else None)
        assert (await told(proxy, plan, stream, optillm_budget={"max_tokens": 1}))[1]["calls"] == 1


@EACH
@pytest.mark.parametrize("stream", [False, True])
async def test_wherever_the_money_runs_out(plan: str, stream: bool) -> None:
    def dear(call: Seen) -> Said:
        said = dialogue(call)
        return Reply(said if isinstance(said, str) else said.text, usage={"cost": 1.0})

    settings: dict[str, Any] = {"n_mode": "fanout", "max_concurrency": 1, "prices": {"m": Price(1, 1)}}
    async with ScriptedUpstream(dear) as up, serving(up, **settings) as proxy:
        whole = await calls_of(proxy, plan)
        text, info, _ = await told(proxy, plan, stream, optillm_budget={"max_cost": 2.5})
        assert text == FOUR
        assert info["calls"] == min(3, whole)
        assert info["cost"] == info["calls"]
        assert info.get("cut_short") == ("max_cost" if whole > 3 else None)


@EACH
@pytest.mark.parametrize("stream", [False, True])
async def test_wherever_the_time_runs_out(plan: str, stream: bool) -> None:
    """The upstream hangs after its first answers, so that only the clock ends the request."""
    answered: list[Seen] = []
    most = 1000

    async def script(call: Seen) -> Said:
        if len(answered) == most:
            await asyncio.Event().wait()
        answered.append(call)
        return dialogue(call)

    settings: dict[str, Any] = {"n_mode": "fanout", "max_concurrency": 1}
    async with ScriptedUpstream(script) as up, serving(up, **settings) as proxy:
        whole = await calls_of(proxy, plan)
        most = whole + 3
        text, info, _ = await told(proxy, plan, stream, optillm_budget={"max_seconds": 0.5})
        assert text == FOUR
        assert info.get("cut_short") == ("max_seconds" if whole > 3 else None)
        await up.until(lambda: up.in_flight == 0)


@pytest.mark.parametrize("model", ["m", "re2-m", "cot_reflection-m", "re2&re2-m"])
@pytest.mark.parametrize("limit", ["max_seconds", "deadline", "shutdown"])
async def test_a_stream_that_is_cut_in_the_middle_ends_as_truncated(model: str, limit: str) -> None:
    """What the client has seen is its answer; nothing else is put behind it."""
    pieces = ("<thinking>t</thinking><output>", "half a text")[0 if model.startswith("cot") else 1 :]
    reply = Reply("".join(pieces), pieces=pieces, hangs=True)
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True}
    body["stream_options"] = {"include_usage": True}
    if limit == "max_seconds":
        body["optillm_budget"] = {"max_seconds": 0.5}
    seconds = 0.5 if limit == "deadline" else 30
    async with ScriptedUpstream(reply) as up, serving(up, request_timeout=seconds) as proxy:
        async with proxy.http.post(proxy.base_url + "/chat/completions", json=body) as response:
            raw = b""
            while b"half a text" not in raw:
                raw += await response.content.readany()
            if limit == "shutdown":
                proxy.app.end_runs()
            raw += await response.read()
        events = [e.removeprefix("data: ") for e in raw.decode().split("\n\n") if e]
        assert events[-1] == "[DONE]"
        chunks = [json.loads(e) for e in events[:-1]]
        choices = [c for k in chunks for c in k["choices"]]
        assert "".join(c["delta"].get("content") or "" for c in choices) == "half a text"
        assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["length"]
        [info] = [k["optillm"] for k in chunks if "optillm" in k]
        assert info["cut_short"] == limit
        assert info["calls"] == 1
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 0


async def test_every_choice_of_a_cut_stream_ends_once() -> None:
    whole = Reply("whole")

    async def script(call: Seen) -> Any:
        return whole if call.body["seed"] == 1 else Reply(f"part {call.body['seed']}", hangs=True)

    async with ScriptedUpstream(script) as up, serving(up, n_mode="fanout") as proxy:
        events = await proxy.events("re2-m", n=3, seed=0, optillm_budget={"max_seconds": 0.5})
        choices = [c for e in events[:-1] for c in json.loads(e)["choices"]]
        texts = ["", "", ""]
        for choice in choices:
            texts[choice["index"]] += choice["delta"].get("content") or ""
        ends = sorted((c["index"], c["finish_reason"]) for c in choices if c["finish_reason"])
        assert texts == ["part 0", "whole", "part 2"]
        assert ends == [(0, "length"), (1, "stop"), (2, "length")]


async def test_a_native_stream_that_is_cut_teaches_nothing() -> None:
    async with ScriptedUpstream([Reply("a", hangs=True), "b"]) as up, serving(up) as proxy:
        events = await proxy.events("re2-m", n=2, optillm_budget={"max_seconds": 0.5})
        assert events[-1] == "[DONE]"
        up.script = "ok"
        assert (await proxy.ask("re2-m", n=2)).info["calls"] == 1


async def test_n_pipelines_return_those_that_have_an_answer() -> None:
    async with ScriptedUpstream(dialogue) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("bon(n=2)-m", n=2, seed=0, optillm_budget={"max_calls": 3})
        assert answer.status == 200
        assert all(text.endswith(FOUR) for text in answer.texts)
        assert answer.info["cut_short"] == "max_calls"


async def test_an_answer_that_uses_up_the_budget_is_not_cut_short() -> None:
    async with ScriptedUpstream(dialogue) as up, serving(up) as proxy:
        for limit in ({"max_calls": 1}, {"max_tokens": 1}):
            for model in ("m", "re2-m"):
                answer = await proxy.ask(model, seed=0, optillm_budget=limit)
                assert (answer.status, answer.info.get("cut_short")) == (200, None)


async def test_a_client_that_waits_for_a_retry_leaves() -> None:
    """Nothing goes on upstream: the next try never comes."""
    async with (
        ScriptedUpstream(refusal(429, "slow", retry_after="15")) as up,
        serving(up, retries=5) as proxy,
    ):
        body = {"model": "bon-m", "messages": [{"role": "user", "content": "x"}]}
        asking = asyncio.ensure_future(proxy.post(body))
        await up.until(lambda: bool(up.calls) and up.calls[0].outcome == "answered")
        asking.cancel()
        await asyncio.wait((asking,))
        up.script = "ok"
        assert (await proxy.ask("m")).text == "ok"
        while proxy.app.active:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert len(up.calls) == 2


async def test_a_client_that_waits_in_the_queue_leaves() -> None:
    event = asyncio.Event()

    async def script(call: Seen) -> Said:
        await event.wait()
        return "done"

    async with ScriptedUpstream(script) as up, serving(up, upstream_concurrency=1) as proxy:
        first = asyncio.ensure_future(proxy.ask("m", "first"))
        await up.until(lambda: up.in_flight == 1)
        second = asyncio.ensure_future(proxy.ask("m", "second"))
        while len(proxy.app.active) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        second.cancel()
        while len(proxy.app.active) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        event.set()
        assert (await first).text == "done"
        assert (await proxy.ask("m", "third")).text == "done"
        assert [c.last for c in up.calls] == ["first", "third"]


async def test_shutdown_ends_queued_and_retrying_requests_too() -> None:
    async with (
        ScriptedUpstream(refusal(503, "busy", retry_after="15")) as up,
        serving(up, retries=5) as proxy,
    ):
        asking = asyncio.ensure_future(proxy.ask("m"))
        await up.until(lambda: bool(up.calls) and up.calls[0].outcome == "answered")
        proxy.app.end_runs()
        answer = await asking
        assert (answer.status, answer.error["code"]) == (503, "shutdown")
