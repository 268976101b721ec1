"""Memories and strategies over HTTP: one's own, all of them, and nothing half done."""

from __future__ import annotations

from typing import Any

import pytest

from optillm.core.state import Note, Strategy
from optillm.settings import Key, sha256
from tests.faces.test_openapi import check, described
from tests.fakes import ScriptedUpstream
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

KEYS = (
    Key("a", sha256("key-a")),
    Key("b", sha256("key-b")),
    Key("a", sha256("asker-a"), ("chat",)),
)
ADD = Strategy(
    "add", "arithmetic", "Add the tens\nfirst.", ("2+2?",), 3, 4, 0.75, 10.0, 30.0, 20.0, ("so 4",), ("sum",)
)
CUT = Strategy("cut", "logic", "Cut the cases.", created=11.0)


async def send(
    proxy: Proxy, method: str, path: str, body: Any = None, *, key: str = "key-a", **fields: Any
) -> Answer:
    data = {"data": body} if isinstance(body, bytes) else {"json": body}
    headers = {"Authorization": f"Bearer {key}"}
    async with proxy.http.request(method, proxy.url + path, headers=headers, **data) as response:
        return Answer(response.status, response.headers, await response.json())


def document(*strategies: dict[str, Any], version: Any = 1) -> dict[str, Any]:
    return {"format": "optillm-strategies", "version": version, "strategies": list(strategies)}


async def remember(proxy: Proxy, tenant: str, conversation: str, *texts: str, at: float = 1.0) -> None:
    notes = [Note(text, "chunk 1", at, at) for text in texts]
    await proxy.app.stored.of(tenant).add_notes(conversation, notes, most=10_000, max_age=1e9, now=at)


async def texts(proxy: Proxy, query: str = "", key: str = "key-a") -> list[tuple[str, str]]:
    answer = await send(proxy, "GET", f"/v1/memories{query}", key=key)
    assert answer.status == 200
    return [(m["conversation"], m["text"]) for m in answer.json["data"]]


async def test_what_was_remembered_is_shown_to_its_owner_alone() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        await remember(proxy, "a", "x", "one", at=1)
        await remember(proxy, "a", "", "all", at=3)
        await remember(proxy, "a", "y z", "two", at=2)
        await remember(proxy, "b", "x", "secret")
        assert await texts(proxy) == [("", "all"), ("y z", "two"), ("x", "one")]
        assert await texts(proxy, "?conversation=y%20z") == [("y z", "two")]
        assert await texts(proxy, "?conversation=") == [("", "all")]
        assert await texts(proxy, "?conversation=none") == []
        assert await texts(proxy, key="key-b") == [("x", "secret")]
        answer = await send(proxy, "GET", "/v1/memories")
        check(await described_to(proxy), "MemoryList", answer.json)
        assert answer.json["data"][0] == {
            "object": "memory", "id": 2, "conversation": "", "text": "all", "source": "chunk 1",
            "created": 3.0, "used": 3.0,
        }  # fmt: skip


async def described_to(proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = (await send(proxy, "GET", "/openapi.json")).json
    return found


async def test_the_last_used_thousand_are_shown() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        await remember(proxy, "a", "x", *(f"note {i}" for i in range(1000)))
        answer = await send(proxy, "GET", "/v1/memories")
        assert (len(answer.json["data"]), answer.json["has_more"]) == (1000, False)
        await remember(proxy, "a", "y", "latest", at=2)
        answer = await send(proxy, "GET", "/v1/memories")
        assert (len(answer.json["data"]), answer.json["has_more"]) == (1000, True)
        assert answer.json["data"][0]["text"] == "latest"


async def test_what_was_remembered_is_forgotten() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        for conversation in ("x", "y", ""):
            await remember(proxy, "a", conversation, "one", "two")
        await remember(proxy, "b", "x", "mine")
        await proxy.app.stored.of("a").keep_summary("k", "a summary", now=1)
        await proxy.app.stored.of("b").keep_summary("k", "of b", now=1)
        answer = await send(proxy, "DELETE", "/v1/memories?conversation=x")
        assert answer.json == {"object": "memories.deleted", "deleted": 2}
        assert {name for name, _ in await texts(proxy)} == {"y", ""}
        assert (await send(proxy, "DELETE", "/v1/memories?conversation=")).json["deleted"] == 2
        # Only one conversation was to be forgotten.
        assert await proxy.app.stored.of("a").summary("k") == "a summary"
        answer = await send(proxy, "DELETE", "/v1/memories")
        assert answer.json == {"object": "memories.deleted", "deleted": 2}
        check(await described_to(proxy), "MemoriesDeleted", answer.json)
        assert await texts(proxy) == []
        assert await proxy.app.stored.of("a").summary("k") is None
        assert await texts(proxy, key="key-b") == [("x", "mine")]
        assert await proxy.app.stored.of("b").summary("k") == "of b"


async def test_an_export_is_an_import(store_url: str) -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS, store=store_url) as proxy:
        await proxy.app.stored.of("a").add_strategy(ADD)
        await proxy.app.stored.of("a").add_strategy(CUT)
        exported = (await send(proxy, "GET", "/v1/strategies")).json
        check(await described_to(proxy), "Strategies", exported)
        assert exported["strategies"][0] == {
            "id": "add", "type": "arithmetic", "text": "Add the tens\nfirst.", "examples": ["2+2?"],
            "success_count": 3, "total_attempts": 4, "confidence": 0.75, "created": 10.0, "last_used": 30.0,
            "last_updated": 20.0, "reasoning_examples": ["so 4"], "tags": ["sum"],
        }  # fmt: skip
        assert (await send(proxy, "GET", "/v1/strategies", key="key-b")).json == document()
        answer = await send(proxy, "POST", "/v1/strategies", exported, key="key-b")
        assert answer.json == {"object": "strategies.imported", "imported": 2}
        check(await described_to(proxy), "StrategiesImported", answer.json)
        assert await proxy.app.stored.of("b").strategies() == (ADD, CUT)
        assert (await send(proxy, "GET", "/v1/strategies", key="key-b")).json == exported


async def test_an_import_replaces_what_has_its_id_and_keeps_the_rest() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        await proxy.app.stored.of("a").replace_strategies([], [ADD, CUT])
        new = document({"id": "cut", "type": "logic", "text": "Anew."}, {"id": "c", "type": "t", "text": "x"})
        assert (await send(proxy, "POST", "/v1/strategies", new)).status == 200
        found = {s.id: s.text for s in await proxy.app.stored.of("a").strategies()}
        assert found == {"add": ADD.text, "cut": "Anew.", "c": "x"}


GOOD = {"id": "new", "type": "t", "text": "x"}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (document(GOOD, version=2), "version", "version 2 of strategies is not known"),
        (document(GOOD, version="1"), "version", "version 1"),
        (document(GOOD) | {"format": "x"}, "format", "optillm-strategies"),
        ({"version": 1, "strategies": []}, None, "format"),
        (document(GOOD, GOOD), "strategies[1].id", "twice"),
        (document(GOOD, {"id": "b", "type": "t"}), "strategies[1]", "text"),
        (document(GOOD | {"id": ""}), "strategies[0].id", "1 to 200 characters"),
        (document(GOOD | {"id": "x" * 201}), "strategies[0].id", "1 to 200 characters"),
        (document(GOOD | {"confidence": 1.5}), "strategies[0].confidence", "1"),
        (document(GOOD | {"success_count": 1}), "strategies[0].success_count", "of only 0 attempts"),
        (document(GOOD | {"total_attempts": -1}), "strategies[0].total_attempts", "0"),
        (document(GOOD | {"total_attempts": 2**63}), "strategies[0].total_attempts", ""),
        (document(GOOD | {"tag": []}), "strategies[0]", "no field 'tag'"),
        (document(GOOD | {"tags": "x"}), "strategies[0].tags", "must be an array, not"),
        (document(GOOD | {"tags": [1]}), "strategies[0].tags[0]", "must be a string, not"),
        (document(GOOD | {"text": ""}), "strategies[0].text", "at least 1 character, not"),
        ([], None, "object"),
        (b"{", None, "JSON"),
        (b"", None, "empty"),
    ],
)
async def test_a_bad_import_changes_nothing(body: Any, param: str | None, words: str) -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        await proxy.app.stored.of("a").add_strategy(ADD)
        answer = await send(proxy, "POST", "/v1/strategies", body)
        assert (answer.status, answer.error["param"]) == (400, param), answer.error
        assert words in answer.error["message"]
        assert await proxy.app.stored.of("a").strategies() == (ADD,)


async def test_a_strategy_is_deleted_once() -> None:
    odd = Strategy("a/b ü", "t", "x")
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        await proxy.app.stored.of("a").replace_strategies([], [ADD, odd])
        assert (await send(proxy, "DELETE", "/v1/strategies/add", key="key-b")).status == 404
        answer = await send(proxy, "DELETE", "/v1/strategies/add")
        assert answer.json == {"object": "strategy.deleted", "id": "add", "deleted": True}
        check(await described_to(proxy), "StrategyDeleted", answer.json)
        answer = await send(proxy, "DELETE", "/v1/strategies/add")
        assert (answer.status, answer.error["code"]) == (404, "unknown_strategy")
        assert (await send(proxy, "DELETE", "/v1/strategies/a/b%20%C3%BC")).status == 200
        assert await proxy.app.stored.of("a").strategies() == ()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/memories", "GET, HEAD, DELETE"),
        ("DELETE", "/v1/strategies", "GET, HEAD, POST"),
        ("GET", "/v1/strategies/x", "DELETE"),
    ],
)
async def test_methods(method: str, path: str, allowed: str) -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        answer = await send(proxy, method, path)
        assert (answer.status, answer.headers["Allow"]) == (405, allowed)


async def test_a_key_for_asking_alone_does_not_see_them() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        for method, path in (("GET", "/v1/memories"), ("DELETE", "/v1/memories"), ("GET", "/v1/strategies")):
            assert (await send(proxy, method, path, key="asker-a")).status == 403
            assert (await send(proxy, method, path, key="none")).status == 401


async def test_a_document_that_is_too_large() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS, max_body_mb=0.001) as proxy:
        body = document(GOOD | {"text": "x" * 2000})
        assert (await send(proxy, "POST", "/v1/strategies", body)).status == 413


async def test_the_description_is_valid_and_true() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        spec = await described(proxy)
        assert set(spec["paths"]["/v1/memories"]) == {"get", "delete"}
        assert set(spec["paths"]["/v1/strategies"]) == {"get", "post"}
        assert set(spec["paths"]["/v1/strategies/{id}"]) == {"delete"}
