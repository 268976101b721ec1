"""Embedding models: over HTTP, and the embedded one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from optillm.approaches.context.retrieval import cosine
from optillm.faces.assemble import assembled
from optillm.plugins import builtin_registry
from optillm.protocol.errors import OptiError, UpstreamError, UpstreamTimeout
from optillm.settings import Settings, UpstreamSettings
from optillm.upstreams.embedding import BATCH, HTTPEmbedder, local_embedder, vectors
from optillm.upstreams.http import ClientOptions, make_client
from optillm.upstreams.llamacpp import PACKAGED_NAME

pytestmark = pytest.mark.anyio


class Server:
    """An ``/embeddings`` that answers as it is told; the vector of a text is its length."""

    def __init__(self, answer: Callable[[list[str]], Any] | None = None, status: int = 200) -> None:
        self.answer = answer or self.lengths
        self.status = status
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @staticmethod
    def lengths(texts: list[str]) -> Any:
        items = [{"index": i, "embedding": [float(len(t)), 1]} for i, t in enumerate(texts)]
        return {"object": "list", "data": items[::-1]}

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        self.keys.append(request.headers.get("Authorization"))
        said = self.answer(body["input"])
        if isinstance(said, bytes):
            return web.Response(status=self.status, body=said)
        return web.json_response(said, status=self.status)

    @asynccontextmanager
    async def embedder(self, **options: Any) -> AsyncIterator[HTTPEmbedder]:
        app = web.Application()
        app.router.add_post("/v1/embeddings", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with closing(make_client(ClientOptions())) as client:
            host, port = runner.addresses[0][:2]
            yield HTTPEmbedder(f"http://{host}:{port}/v1/embeddings", client, **options)
        await runner.cleanup()


async def test_vectors_come_in_the_order_of_the_texts() -> None:
    server = Server()
    async with server.embedder(key="secret", model="em") as embedder:
        assert await embedder.embed(["a", "bbb", "cc"]) == [[1, 1], [3, 1], [2, 1]]
    assert server.seen == [{"input": ["a", "bbb", "cc"], "model": "em"}]
    assert server.keys == ["Bearer secret"]
    assert embedder.name == "em"


async def test_without_key_and_model_none_is_sent() -> None:
    server = Server()
    async with server.embedder() as embedder:
        await embedder.embed(["a"])
    assert (server.seen, server.keys) == ([{"input": ["a"]}], [None])


async def test_many_texts_go_in_batches() -> None:
    server = Server()
    texts = ["x" * i for i in range(1, 2 * BATCH + 2)]
    async with server.embedder() as embedder:
        found = await embedder.embed(texts)
    assert [v[0] for v in found] == [float(len(t)) for t in texts]
    assert sorted(len(b["input"]) for b in server.seen) == [1, BATCH, BATCH]


async def test_no_texts_no_request() -> None:
    server = Server()
    async with server.embedder() as embedder:
        assert await embedder.embed([]) == []
    assert server.seen == []


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        {},
        {"data": []},
        {"data": [{"embedding": [1.0]}]},
        {"data": [{"embedding": []}, {"embedding": [1.0]}]},
        {"data": [{"embedding": ["1"]}, {"embedding": [1.0]}]},
        {"data": [{"embedding": [1.0, 2.0]}, {"embedding": [1.0]}]},
    ],
)
async def test_what_is_no_answer_is_an_error(answer: Any) -> None:
    async with Server(lambda texts: answer).embedder() as embedder:
        with pytest.raises(UpstreamError):
            await embedder.embed(["a", "b"])


def test_numbers_have_to_be_finite() -> None:
    with pytest.raises(UpstreamError):
        vectors({"data": [{"embedding": [float("nan")]}]}, 1)


async def test_a_refusal_says_why_without_the_key_and_is_no_refusal_of_the_client() -> None:
    said = {"error": {"message": "no model for secret-key-1"}}
    async with Server(lambda texts: said, status=404).embedder(key="secret-key-1") as embedder:
        with pytest.raises(UpstreamError, match=r"404: no model for \[redacted\]") as error:
            await embedder.embed(["a"])
    assert error.value.status == 502


async def test_a_dead_or_slow_server_is_an_error() -> None:
    unreachable = HTTPEmbedder("http://127.0.0.1:1/v1/embeddings", make_client(ClientOptions()))
    with pytest.raises(UpstreamError, match="cannot be reached"):
        await unreachable.embed(["a"])

    async def never(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    server = Server()
    server.handle = never  # type: ignore[method-assign]
    async with server.embedder(timeout=0.05) as embedder:
        with pytest.raises(UpstreamTimeout):
            await embedder.embed(["a"])


async def test_the_embedded_model_embeds() -> None:
    embedder = local_embedder(PACKAGED_NAME)
    try:
        cat, kitten, law, long, empty = await embedder.embed(
            ["The cat sleeps.", "A cat is asleep.", "Section 12 of the tax law applies.", "word " * 5000, ""]
        )
        assert len({len(cat), len(kitten), len(law), len(long), len(empty)}) == 1
        assert cosine(cat, kitten) > cosine(cat, law)
        assert (await embedder.embed(["The cat sleeps."]))[0] == pytest.approx(cat, abs=1e-3)
    finally:
        await embedder.aclose()


def test_a_missing_file_and_one_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(OptiError, match="--embedding-model: there is no model file"):
        local_embedder(str(tmp_path / "none.gguf"))
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(OptiError, match="is not a GGUF file"):
        local_embedder(str(tmp_path / "text.gguf"))


async def test_the_settings_choose_the_embedder() -> None:
    up = (UpstreamSettings("up", "openai", "http://127.0.0.1:1/v1"),)
    registry = builtin_registry()
    async with assembled(Settings(upstreams=up), registry) as (service, _):
        assert service.tools.embedder is None
    url = "http://127.0.0.1:1/v1/embeddings"
    settings = Settings(upstreams=up, embedding_url=url, embedding_model="em")
    async with assembled(settings, registry) as (service, _):
        assert isinstance(service.tools.embedder, HTTPEmbedder)
    async with assembled(Settings(upstreams=up, embedding_model=PACKAGED_NAME), registry) as (service, _):
        assert service.tools.embedder is not None
        assert service.tools.embedder.name == PACKAGED_NAME
