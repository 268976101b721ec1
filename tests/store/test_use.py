"""Techniques that remember: through the server, the library and the command line."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import optillm
from optillm.cli.main import main
from optillm.core.tools import Tools
from optillm.faces.app import ENDS
from optillm.protocol.errors import NotConfigured
from optillm.settings import Key, SettingsError, sha256
from optillm.store import database
from tests.fakes import ScriptedUpstream
from tests.isolation.test_processes import free_port, process
from tests.serving import Proxy, serving
from tests.store.remembering import registry

pytestmark = pytest.mark.anyio

KEYS = tuple(Key(name, sha256(name)) for name in "ab")


async def ask(proxy: Proxy, question: str, key: str = "a") -> str:
    body = {"model": "remembers-m", "messages": [{"role": "user", "content": question}]}
    answer = await proxy.post(body, {"Authorization": f"Bearer {key}"})
    assert answer.status == 200, answer.json
    return answer.text


async def test_memory_ends_with_the_server_which_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "optillm")
    async with ScriptedUpstream() as up:
        async with serving(up, registry=registry()) as proxy:
            assert await ask(proxy, "one") == "1: one"
            assert await ask(proxy, "two") == "2: one two"
        async with serving(up, registry=registry()) as proxy:
            assert caplog.messages.count(ENDS) == 1
            assert await ask(proxy, "three") == "1: three"
    assert caplog.messages.count(ENDS) == 2


async def test_a_store_outlives_the_server(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "optillm")
    async with ScriptedUpstream() as up:
        for count, question, known in ((1, "one", "one"), (2, "two", "one two")):
            async with serving(up, registry=registry(), store=store_url) as proxy:
                assert await ask(proxy, question) == f"{count}: {known}"
                # Runs are in the same store.
                assert len((await proxy.get("/v1/runs")).json["data"]) == count
    assert ENDS not in caplog.messages


async def test_a_tenant_is_not_told_what_another_one_asked(store_url: str) -> None:
    async with (
        ScriptedUpstream() as up,
        serving(up, registry=registry(), store=store_url, keys=KEYS) as proxy,
    ):
        questions = [("ab"[i % 2], f"{'ab'[i % 2]}{i}") for i in range(20)]
        answers = await asyncio.gather(*(ask(proxy, question, key) for key, question in questions))
        for (key, question), answer in zip(questions, answers, strict=True):
            known = answer.partition(": ")[2].split()
            assert question in known
            assert {word[0] for word in known} == {key}
        for key in "ab":
            counts = [
                int(a.partition(":")[0]) for (k, _), a in zip(questions, answers, strict=True) if k == key
            ]
            assert sorted(counts) == list(range(1, 11))


async def test_replicas_remember_together(store_url: str) -> None:
    async with (
        ScriptedUpstream() as up,
        serving(up, registry=registry(), store=store_url) as one,
        serving(up, registry=registry(), store=store_url) as two,
    ):
        assert await ask(one, "one") == "1: one"
        assert await ask(two, "two") == "2: one two"
        assert await ask(one, "three") == "3: one two three"


async def test_a_request_that_needs_a_locked_store_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    url = f"sqlite:///{tmp_path}/store.db"
    async with ScriptedUpstream() as up, serving(up, registry=registry(), store=url) as proxy:
        assert await ask(proxy, "one") == "1: one"
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await proxy.ask("remembers-m", "two")
            assert (answer.status, answer.error["code"]) == (503, "store_failed")
            assert "locked" in answer.error["message"]
        assert await ask(proxy, "three") == "2: one three"


async def test_all_workers_remember_the_same() -> None:
    """Also without a store of one's own: the server makes one for its workers."""
    document = {"format": "optillm-strategies", "version": 1}
    entry = {"id": "x", "type": "t", "text": "x"}
    port = free_port()
    async with ScriptedUpstream() as up:
        command = ["optillm", "--base-url", up.base_url, "--port", str(port), "--workers", "2"]
        async with process(command, port, {}) as url:
            for i in range(10):
                # Each on a connection of its own, which any worker may take.
                async with aiohttp.ClientSession() as http:
                    body = {**document, "strategies": [{**entry, "id": f"{i}"}]}
                    async with http.post(f"{url}/v1/strategies", json=body) as response:
                        assert response.status == 200
                async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/strategies") as response:
                    found = (await response.json())["strategies"]
                assert {s["id"] for s in found} == {f"{n}" for n in range(i + 1)}


# -- the library -------------------------------------------------------------------------------------


async def solved(up: ScriptedUpstream, question: str, **more: Any) -> str:
    solution = await optillm.solve(
        question, approach="remembers", upstream=up.base_url, registry=registry(), **more
    )
    return solution.text


async def test_a_call_remembers_where_it_is_told(store_url: str) -> None:
    async with ScriptedUpstream() as up:
        assert await solved(up, "one", store=store_url) == "1: one"
        assert await solved(up, "two", store=store_url) == "2: one two"
        # Without a store, each call is alone.
        assert await solved(up, "three") == "1: three"
        assert await solved(up, "four") == "1: four"


async def test_the_field_of_the_protocol_is_still_one() -> None:
    async with ScriptedUpstream() as up:
        await optillm.solve("x", upstream=up.base_url, store=True)
        assert up.calls[0].body["store"] is True
        await solved(up, "x", store=False)
        assert up.calls[1].body["store"] is False


async def test_a_call_with_a_bad_store_makes_no_call() -> None:
    async with ScriptedUpstream() as up:
        with pytest.raises(SettingsError, match="store"):
            await solved(up, "x", store="redis://x")
        with pytest.raises(TypeError, match="tools or store"):
            await solved(up, "x", store="sqlite:////x.db", tools=Tools())
        assert up.calls == []


async def test_a_call_without_a_store() -> None:
    async with ScriptedUpstream() as up:
        with pytest.raises(NotConfigured, match="no store"):
            await solved(up, "x", tools=Tools())


# -- the command -------------------------------------------------------------------------------------


def test_strategies_are_carried_from_one_store_to_another(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {
        "id": "add",
        "type": "sums",
        "text": "Add the\ntens first.",
        "success_count": 3,
        "total_attempts": 4,
    }
    document = {"format": "optillm-strategies", "version": 1, "strategies": [entry]}
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(document))
    assert main(["strategies", "import", str(first), "--store", store_url, "--tenant", "a"]) == 0
    assert capsys.readouterr().err == "1 strategies imported for 'a'\n"
    monkeypatch.setenv("OPTILLM_STORE", store_url)
    assert main(["strategies", "list", "--tenant", "a"]) == 0
    assert capsys.readouterr().out.split() == ["add", "sums", "3/4", "Add", "the", "tens", "first."]
    assert main(["strategies", "list"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["strategies", "export", str(second), "--tenant", "a"]) == 0
    assert main(["strategies", "export", "--tenant", "a"]) == 0
    assert capsys.readouterr().out == second.read_text()
    assert json.loads(second.read_text())["strategies"][0].items() >= entry.items()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["list"], "strategies are in a store: --store"),
        (["list", "--store", "redis://x"], "--store must be empty, sqlite:///PATH or postgresql://"),
        (["import", "/nowhere.json", "--store", "sqlite:///{tmp}/s.db"], "cannot read /nowhere.json"),
        (["import", "{tmp}/new.json", "--store", "sqlite:///{tmp}/s.db"], "version 2 of strategies"),
        (["export", "/proc/no.json", "--store", "sqlite:///{tmp}/s.db"], "cannot write /proc/no.json"),
    ],
)
def test_the_command_says_what_is_wrong(
    argv: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPTILLM_STORE", raising=False)
    (tmp_path / "new.json").write_text('{"format": "optillm-strategies", "version": 2, "strategies": []}')
    assert main(["strategies", *(a.format(tmp=tmp_path) for a in argv)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("optillm: ")
    assert words in said
