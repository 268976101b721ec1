"""Techniques that run code: through the server and the library, with a sandbox and without."""

from __future__ import annotations

import pytest

import optillm
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams
from optillm.core.registry import Registry, approach
from optillm.core.reply import Answer
from optillm.core.task import Task
from optillm.core.tools import Outcome, Tools
from optillm.core.trace import NoteRecord
from optillm.plugins import builtin_registry
from optillm.protocol.errors import SandboxUnavailable
from optillm.settings import Settings, SettingsError, load
from tests.fakes import ScriptedUpstream
from tests.sandbox.processes import descendants, settled
from tests.serving import serving

pytestmark = pytest.mark.anyio


class NoParams(ApproachParams):
    pass


@approach("runs_code", family="test", title="Runs the answer", calls="1", depth="1", worst=lambda p, sigma: 1)
async def runs_code(task: Task, llm: LLM, p: NoParams) -> Answer:
    """Runs what the model wrote, and answers with it."""
    reply = await llm.answer("write", task.messages)
    outcome: Outcome = await llm.sandbox.run(reply.text, timeout=10)
    await llm.note("ran", status=outcome.status, stdout=outcome.stdout)
    return Answer((reply,), note={"status": outcome.status, "printed": outcome.stdout})


def registry() -> Registry:
    return Registry([*builtin_registry(), runs_code])


async def test_the_server_runs_code_and_ends_what_it_started() -> None:
    before = descendants()
    async with ScriptedUpstream("import sympy\nprint(sympy.factorint(12))") as up:
        async with serving(up, registry=registry()) as proxy:
            assert descendants() == before, "nothing is started before it is used"
            answer = await proxy.ask("runs_code-m")
            assert answer.status == 200, answer.json
            run = (await proxy.get("/v1/runs/" + answer.json["id"])).json
            assert {"status": "ok", "stdout": "{2: 2, 3: 1}\n"} in [
                r["data"] for r in run["records"] if r["kind"] == "note"
            ]
        assert settled(until=lambda now: now == before) == before


async def test_without_a_sandbox_the_request_is_refused() -> None:
    async with ScriptedUpstream("print(1)") as up, serving(up, registry=registry(), sandbox="off") as proxy:
        answer = await proxy.ask("runs_code-m")
        assert answer.status == 501
        assert answer.error["code"] == "sandbox_unavailable"
        assert "--sandbox" in answer.error["message"]
        assert (await proxy.ask("m")).text == "print(1)"


async def test_the_library_makes_one_and_ends_it() -> None:
    before = descendants()
    async with ScriptedUpstream("print(sum(range(10)))") as up:
        solution = await optillm.solve(
            "x", approach="runs_code", model="m", upstream=up.base_url, registry=registry()
        )
    assert [r.data["stdout"] for r in solution.trace.records if isinstance(r, NoteRecord)] == ["45\n"]
    assert settled(until=lambda now: now == before) == before


async def test_the_library_takes_one() -> None:
    async with ScriptedUpstream("print(1)") as up:
        with pytest.raises(SandboxUnavailable):
            await optillm.solve(
                "x", approach="runs_code", model="m", upstream=up.base_url, registry=registry(), tools=Tools()
            )


def test_the_setting() -> None:
    empty = Registry([])
    assert Settings().sandbox == "auto"
    assert load(["--sandbox", "off"], {}, empty).sandbox == "off"
    assert load([], {"OPTILLM_SANDBOX": "wasm"}, empty).sandbox == "wasm"
    with pytest.raises(SettingsError, match="auto, namespaces, wasm, off"):
        load(["--sandbox", "on"], {}, empty)
