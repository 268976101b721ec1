"""Work that is done when the answer has been delivered: nobody waits for it, nothing of it gets lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import Registry, approach
from optillm.core.reply import Answer
from optillm.core.task import Task, system, user
from optillm.faces.afterwards import Afterwards
from optillm.faces.service import Service
from optillm.library import solve, solve_with
from optillm.plugins import builtin_registry
from optillm.settings import Key, sha256
from optillm.upstreams.capabilities import Capabilities
from optillm.upstreams.http import ClientOptions, make_client
from optillm.upstreams.openai_http import OpenAIUpstream
from optillm.upstreams.router import Named, Router
from tests.fakes import Fault, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio
ROLES = {"you learn": "learn"}


class Params(ApproachParams):
    """Parameters of ``late``."""

    calls: int = field(1, "calls afterwards", ge=0, le=9)
    breaks: bool = field(False, "raise something that nobody expects")


@approach("late", family="tests", title="Learns late", calls="1", depth="1", worst=lambda p, s: 1)
async def late(task: Task, llm: LLM, p: Params) -> Answer:
    """Answer, then make some calls."""
    reply = await llm.answer("late.answer", task.messages)

    async def work(later: LLM) -> None:
        if p.breaks:
            raise ZeroDivisionError("of all things")
        said = later.delivered.text if later.delivered else "nothing"
        for i in range(p.calls):
            await later.ask("late.learn", (system("you learn"), user(f"{task.text}: {said}, {i}")))
        await later.note("late.learned", calls=p.calls)

    run_id = llm.afterwards(work, name="learning", max_calls=3)
    return Answer((reply,), {"learning": run_id})


REGISTRY = Registry([*builtin_registry(), late])


class Gate:
    """Answers helpers only when it is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, call: Seen) -> Said:
        if call.stage != "learn":
            return [f"text {i}" for i in range(call.n)]
        if "held" in call.text:
            await self.open.wait()
        return "learned"


def queue(proxy: Proxy) -> Afterwards:
    assert proxy.app._chat is not None
    return proxy.app._chat.service.afterwards


async def test_the_answer_does_not_wait_and_the_work_is_a_run_of_its_own() -> None:
    gate = Gate()
    async with ScriptedUpstream(gate, roles=ROLES) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("late-m", "held", seed=7)
        child = answer.info["learning"]
        assert (answer.text, answer.info["calls"], child) == ("text 0", 1, answer.json["id"] + ".learning")
        await up.until(lambda: len(up.of("learn")) == 1)
        assert (await proxy.get(f"/v1/runs/{child}")).status == 404
        gate.open.set()
        await queue(proxy).drain()
        run = (await proxy.get(f"/v1/runs/{child}")).json
        parent = (await proxy.get(f"/v1/runs/{answer.json['id']}")).json
    assert up.of("learn")[0].last == "held: text 0, 0"
    assert (run["id"], run["object"], run["parent"]) == (child, "run", answer.json["id"])
    assert (run["approach"], run["model"], run["calls"], run["depth"]) == ("late", "m", 1, 1)
    assert (run["error"], run["seed"], run["choices"]) == (None, 7, [])
    assert [(r["kind"], r.get("stage", r.get("name"))) for r in run["records"]] == [
        ("call", "late.learn"), ("note", "late.learned"),
    ]  # fmt: skip
    # The client pays for its answer; what is learned from it is on the other run.
    assert answer.json["usage"] == parent["usage"]
    assert (parent["calls"], len(parent["records"])) == (1, 1)
    assert run["usage"]["total_tokens"] == run["records"][0]["usage"]["total_tokens"] > 0


async def test_a_stream_ends_before_the_work_does() -> None:
    gate = Gate()
    async with ScriptedUpstream(gate, roles=ROLES) as up, serving(up, registry=REGISTRY) as proxy:
        events = await proxy.events("late-m", "held")
        assert events[-1] == "[DONE]"
        assert queue(proxy)._workers
        gate.open.set()
        await queue(proxy).drain()
        assert len(up.of("learn")) == 1


async def test_one_at_a_time_per_tenant_and_no_tenant_waits_for_another() -> None:
    gate = Gate()
    keys = (Key("a", sha256("key-a")), Key("b", sha256("key-b")))

    async def ask(proxy: Proxy, token: str, question: str) -> None:
        body = {"model": "late-m", "messages": [{"role": "user", "content": question}]}
        answer = await proxy.post(body, {"Authorization": f"Bearer {token}"})
        assert answer.status == 200

    async with (
        ScriptedUpstream(gate, roles=ROLES) as up,
        serving(up, registry=REGISTRY, keys=keys) as proxy,
    ):
        for i in range(5):
            await ask(proxy, "key-a", f"held a{i}")
        await up.until(lambda: len(up.of("learn")) == 1)
        await ask(proxy, "key-b", "b1")
        await ask(proxy, "key-b", "b2")
        await up.until(lambda: len([c for c in up.of("learn") if "b2" in c.text]) == 1)
        assert [c.last[:7] for c in up.of("learn") if "held" in c.text] == ["held a0"]
        gate.open.set()
        await queue(proxy).drain()
        assert [c.last[:7] for c in up.of("learn") if "held" in c.text] == [f"held a{i}" for i in range(5)]
        listed = (await proxy.get("/v1/runs", Authorization="Bearer key-b")).json["data"]
        assert len(listed) == 4
        # A child is its tenant's like its parent.
        child = next(r["id"] for r in listed if r["id"].endswith(".learning"))
        assert (await proxy.get(f"/v1/runs/{child}", Authorization="Bearer key-a")).status == 404


async def test_the_token_of_the_client_goes_on() -> None:
    async with (
        ScriptedUpstream(Gate(), roles=ROLES) as up,
        serving(up, registry=REGISTRY, forward_bearer=True, optillm_api_key="other") as proxy,
    ):
        body = {"model": "late-m", "messages": [{"role": "user", "content": "q"}]}
        assert (await proxy.post(body, {"Authorization": "Bearer mine"})).status == 200
        await queue(proxy).drain()
    assert [c.headers["Authorization"] for c in up.calls] == ["Bearer mine"] * 2


@pytest.mark.parametrize("fault", [refusal(401, "no such key"), Fault(status=503), Fault("not_json")])
async def test_a_failure_is_logged_and_kept_and_the_next_one_is_done(
    fault: Said, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "optillm")

    def script(call: Seen) -> Said:
        return fault if call.stage == "learn" and "bad" in call.text else "ok"

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up, registry=REGISTRY) as proxy:
        bad, good = await proxy.ask("late-m", "bad"), await proxy.ask("late-m", "good")
        await queue(proxy).drain()
        failed = (await proxy.get(f"/v1/runs/{bad.info['learning']}")).json
        done = (await proxy.get(f"/v1/runs/{good.info['learning']}")).json
        assert (bad.status, bad.text, queue(proxy).failed) == (200, "ok", 1)
    assert failed["error"]
    assert done["error"] is None
    assert bad.info["learning"] in caplog.text
    assert good.info["learning"] not in caplog.text


async def test_a_fault_of_ours_is_logged_and_the_next_one_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ScriptedUpstream("ok", roles=ROLES) as up, serving(up, registry=REGISTRY) as proxy:
        bad, good = await proxy.ask("late-m", late_breaks=True), await proxy.ask("late-m")
        await queue(proxy).drain()
        assert (await proxy.get(f"/v1/runs/{bad.info['learning']}")).json["error"] == "of all things"
        assert (await proxy.get(f"/v1/runs/{good.info['learning']}")).json["error"] is None
    assert bad.info["learning"] in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_its_budget_is_its_own() -> None:
    async with ScriptedUpstream("ok", roles=ROLES) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("late-m", late_calls=9, optillm_budget={"max_calls": 1})
        await queue(proxy).drain()
        run = (await proxy.get(f"/v1/runs/{answer.info['learning']}")).json
    assert (len(up.of("learn")), run["calls"], run["cut_short"]) == (3, 3, "max_calls")
    assert "cut_short" not in answer.info


async def test_the_server_s_limit_holds_for_it_too() -> None:
    async with (
        ScriptedUpstream("ok", roles=ROLES) as up,
        serving(up, registry=REGISTRY, max_upstream_calls=2) as proxy,
    ):
        await proxy.ask("late-m", late_calls=9)
        await queue(proxy).drain()
    assert len(up.of("learn")) == 2


async def test_without_an_answer_nothing_is_learned() -> None:
    async with (
        ScriptedUpstream(refusal(400, "no"), roles=ROLES) as up,
        serving(up, registry=REGISTRY) as proxy,
    ):
        assert (await proxy.ask("late-m")).status == 400
        await queue(proxy).drain()
    assert up.of("learn") == []


async def test_whoever_leaves_before_the_answer_teaches_nothing() -> None:
    gate = asyncio.Event()

    async def script(call: Seen) -> Said:
        await gate.wait()
        return "ok"

    async with ScriptedUpstream(script, roles=ROLES) as up, serving(up, registry=REGISTRY) as proxy:
        asking = asyncio.ensure_future(proxy.ask("late&re2-m"))
        await up.until(lambda: up.in_flight == 1)
        asking.cancel()
        await up.until(lambda: up.calls[0].outcome == "cancelled")
        await queue(proxy).drain()
        assert up.of("learn") == []


async def test_each_choice_of_a_composition_learns_from_its_own() -> None:
    async with (
        ScriptedUpstream(lambda c: [f"text of {c.body.get('seed')}"], roles=ROLES) as up,
        serving(up, registry=REGISTRY, n_mode="fanout") as proxy,
    ):
        answer = await proxy.ask("re2|late|late-m", "q", seed=1)
        await queue(proxy).drain()
    assert len(answer.texts) == 3
    assert {c.last for c in up.of("learn")} == {f"q: {text}, 0" for text in answer.texts[1:]}


async def test_of_candidates_the_chosen_one_is_what_was_delivered() -> None:
    def script(call: Seen) -> Said:
        return "Score: 9" if call.stage == "rate" and "read" in call.text else "Score: 1"

    def said(call: Seen) -> Said:
        if call.stage == "rate":
            return script(call)
        return "read" if "Read the question again" in call.text else "late"

    async with ScriptedUpstream(said, roles=ROLES) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("m", "q", optillm_approach="(re2|late)>bon")
        await queue(proxy).drain()
    assert answer.text == "read"
    assert [c.last for c in up.of("learn")] == ["q: read, 0"]


# -- shutdown ----------------------------------------------------------------------------------


async def test_a_server_that_stops_lets_the_work_end() -> None:
    gate = Gate()
    async with ScriptedUpstream(gate, roles=ROLES) as up:
        async with serving(up, registry=REGISTRY) as proxy:
            for i in range(3):
                await proxy.ask("late-m", f"held {i}")
            await up.until(lambda: len(up.of("learn")) == 1)
            proxy.server.should_exit = True
            gate.open.set()
        assert [c.outcome for c in up.of("learn")] == ["answered"] * 3


async def test_after_the_grace_time_it_is_ended_and_the_rest_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ScriptedUpstream(Gate(), roles=ROLES) as up:
        async with serving(up, registry=REGISTRY, shutdown_timeout=0.05) as proxy:
            runs = [(await proxy.ask("late-m", "held")).info["learning"] for _ in range(3)]
            await up.until(lambda: len(up.of("learn")) == 1)
            afterwards = queue(proxy)
        await up.until(lambda: up.in_flight == 0)
        assert [c.outcome for c in up.of("learn")] == ["cancelled"]
    assert (afterwards.failed, afterwards.dropped) == (1, 2)
    assert all(run in caplog.text for run in runs)


async def test_work_that_does_not_end_when_told_is_cancelled() -> None:
    ended = asyncio.Event()

    @approach("stuck", family="tests", title="Never ends", calls="1", depth="1")
    async def stuck(task: Task, llm: LLM, p: Params) -> Answer:
        reply = await llm.answer("stuck.answer", task.messages)

        async def work(later: LLM) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        llm.afterwards(work, name="learning", max_calls=1)
        return Answer((reply,))

    async with (
        ScriptedUpstream("ok") as up,
        serving(up, registry=Registry([*REGISTRY, stuck]), shutdown_timeout=0) as proxy,
    ):
        await proxy.ask("stuck-m")
    assert ended.is_set()


# -- as a library ------------------------------------------------------------------------------


@asynccontextmanager
async def service_of(up: ScriptedUpstream, afterwards: Afterwards) -> AsyncIterator[Service]:
    with closing(make_client(ClientOptions())) as client:
        router = Router([Named(OpenAIUpstream("up", up.base_url, None, client))])
        yield Service(registry=REGISTRY, models=router, learned=Capabilities(), afterwards=afterwards)


async def test_solve_has_learned_when_it_returns() -> None:
    async with ScriptedUpstream(Gate(), roles=ROLES) as up:
        solution = await solve("q", approach="late", model="m", upstream=up.base_url, registry=REGISTRY)
        assert [c.outcome for c in up.of("learn")] == ["answered"]
    assert (solution.text, len(solution.trace.calls)) == ("text 0", 1)


async def test_solve_that_is_cancelled_leaves_nothing_running() -> None:
    async with ScriptedUpstream(Gate(), roles=ROLES) as up:
        solving = asyncio.ensure_future(
            solve("held", approach="late", model="m", upstream=up.base_url, registry=REGISTRY)
        )
        await up.until(lambda: len(up.of("learn")) == 1)
        solving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await solving
        await up.until(lambda: up.in_flight == 0)
        assert up.of("learn")[0].outcome == "cancelled"


async def test_a_full_queue_drops_with_a_note() -> None:
    gate, kept = Gate(), dict[str, Any]()
    afterwards = Afterwards(lambda tenant, run_id, run: kept.update({run_id: run}), most=2)
    async with ScriptedUpstream(gate, roles=ROLES) as up, service_of(up, afterwards) as service:
        solutions = [
            await solve_with(service, "held 0", model="m", optillm_approach="late"),
        ]
        await up.until(lambda: len(up.of("learn")) == 1)
        for i in range(1, 5):
            solutions.append(await solve_with(service, f"held {i}", model="m", optillm_approach="late"))
        gate.open.set()
        await afterwards.drain()
    # One was under way, two waited.
    assert [c.last[:6] for c in up.of("learn")] == ["held 0", "held 1", "held 2"]
    assert (afterwards.dropped, len(kept)) == (2, 3)
    notes = [[r.to_dict(0)["name"] for r in s.trace.records[1:]] for s in solutions]
    assert notes == [[], [], [], ["afterwards.dropped"], ["afterwards.dropped"]]


async def test_what_cannot_be_kept_does_not_stop_the_queue(caplog: pytest.LogCaptureFixture) -> None:
    def keep(tenant: str, run_id: str, run: Any) -> None:
        raise OSError("the disk is gone")

    afterwards = Afterwards(keep)
    async with ScriptedUpstream(Gate(), roles=ROLES) as up, service_of(up, afterwards) as service:
        for i in range(2):
            await solve_with(service, f"q{i}", model="m", optillm_approach="late")
        await afterwards.drain()
    assert len(up.of("learn")) == 2
    assert "the disk is gone" in caplog.text


async def test_nothing_is_left_of_a_tenant_that_has_learned() -> None:
    afterwards = Afterwards()
    async with ScriptedUpstream(Gate(), roles=ROLES) as up, service_of(up, afterwards) as service:
        await solve_with(service, "q", model="m", optillm_approach="late")
        await afterwards.drain()
        assert (afterwards._waiting, afterwards._workers, afterwards._running) == ({}, {}, set())
        await afterwards.aclose()
        await solve_with(service, "q", model="m", optillm_approach="late")
    assert (afterwards.dropped, afterwards._waiting, afterwards._workers) == (1, {}, {})


async def test_calls_go_through_the_scheduler_as_another_run() -> None:
    """With one place upstream, a client's request gets the next one, before the rest of what is learned."""
    gate = asyncio.Event()

    async def script(call: Seen) -> Said:
        if "first: ok, 0" in call.text:
            await gate.wait()
        return "ok"

    async with (
        ScriptedUpstream(script, roles=ROLES) as up,
        serving(up, registry=REGISTRY, upstream_concurrency=1) as proxy,
    ):
        await proxy.ask("late-m", "first", late_calls=3)
        await up.until(lambda: len(up.of("learn")) == 1)
        asking = asyncio.ensure_future(proxy.ask("m", "second"))
        assert proxy.app._router is not None
        upstream = proxy.app._router.resolve("m").upstream
        assert isinstance(upstream, OpenAIUpstream)
        while not upstream._scheduler._waiting:  # noqa: ASYNC110 - nothing else tells of it
            await asyncio.sleep(0)
        gate.set()
        assert (await asking).text == "ok"
        await queue(proxy).drain()
    assert [c.last for c in up.calls][:3] == ["first", "first: ok, 0", "second"]
