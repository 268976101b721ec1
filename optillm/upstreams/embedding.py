"""Embedding models: texts in, vectors out; behind a URL, or a GGUF file in this process."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from wreq import Client

from optillm.protocol.errors import MissingExtra, OptiError, UpstreamError
from optillm.upstreams.http import error_message, post_json
from optillm.upstreams.llamacpp import PACKAGED_NAME, find_packaged_model

BATCH = 64
"""Texts in one request: servers limit their number, or the tokens of all of them."""


class HTTPEmbedder:
    """Any OpenAI-compatible ``/embeddings``: ``{"model": …, "input": [...]}``.

    Args:
        url: where texts are posted, such as ``http://127.0.0.1:8080/v1/embeddings``.
        key: sent as Bearer, if any.
        model: the name to send; empty sends none.
        client: the process's HTTP client.
        timeout: seconds for a request of at most :data:`BATCH` texts.
    """

    def __init__(
        self, url: str, client: Client, *, key: str = "", model: str = "", timeout: float = 60
    ) -> None:
        self.name = model or "embedding"
        self._url, self._client, self._model, self._timeout = url, client, model, timeout
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, all of one length, in order.

        Raises:
            UpstreamError: it refused, or sent something else.
            UpstreamTimeout: it did not answer in time.
        """
        parts = await asyncio.gather(*(self._batch(part) for part in batches(texts)))
        return same_length([vector for part in parts for vector in part])

    async def _batch(self, texts: Sequence[str]) -> list[list[float]]:
        body: dict[str, Any] = {"input": list(texts)}
        if self._model:
            body["model"] = self._model
        # Its refusals are not the chat model's: a client can do nothing about them.
        data = await post_json(
            self._client, self._url, body, self._headers, seconds=self._timeout, whom="the embedding model"
        )
        return vectors(_decoded(data), len(texts))


class LlamaCppEmbedder:
    """A GGUF file as an embedding model: llama.cpp, with the mean of the last layer over the tokens.

    Loaded at the first call. A text longer than ``context`` is cut: what its beginning means stands for it.

    Args:
        path: the GGUF file.
        name: what it is called.
        context: tokens of one text.
        threads: of computation; None takes all cores.

    Raises:
        MissingExtra: xllamacpp is not installed.
        OptiError: there is no such file.
    """

    def __init__(
        self, path: Path, *, name: str = "", context: int = 2048, threads: int | None = None
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("embedded", "a local embedding model")
        if not path.is_file():
            raise OptiError(f"--embedding-model: there is no model file {path}, and no --embedding-url")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise OptiError(f"--embedding-model: {path} is not a GGUF file")
        self.name = name or path.stem
        self._path, self._context = path, context
        self._threads = threads or os.cpu_count() or 1
        self._engine: Any = None
        # One thread: the engine computes a batch with all cores, and texts are asked for together.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="embedding")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, all of one length, in order.

        Raises:
            UpstreamError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        out: list[list[float]] = []
        for part in batches(texts):
            # A run that ends stops after the batch under way.
            out += await loop.run_in_executor(self._pool, self._batch, part)
        return same_length(out)

    async def aclose(self) -> None:
        """Stop what runs and free the model."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        self._engine = None

    def _batch(self, texts: Sequence[str]) -> list[list[float]]:
        if self._engine is None:
            self._engine = self._load()
        out: list[list[float]] = []
        for text in texts:
            out += self._one(text)
        return out

    def _one(self, text: str) -> list[list[float]]:
        """The vector of a text; of a half of it, as often as it is too long."""
        shown = text or " "
        while True:
            reply = self._engine.handle_embeddings({"input": [shown]})
            error = reply.get("error") if isinstance(reply, dict) else None
            if error is None:
                return vectors(reply, 1)
            if "too large" not in str(error) or len(shown) < 2:
                raise UpstreamError(f"embedding model '{self.name}': {error_message({'error': error})}")
            shown = shown[: len(shown) // 2]

    def _load(self) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_parallel = 1
        # A text is pooled within one batch.
        params.n_ctx = params.n_batch = params.n_ubatch = self._context
        params.cpuparams.n_threads = self._threads
        params.warmup = False
        params.fit_params = False
        params.verbosity = -1
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise UpstreamError(f"embedding model '{self.name}' cannot be loaded: {error}") from error


def local_embedder(model: str) -> LlamaCppEmbedder:
    """The embedding model of a GGUF file, or of the packaged model by its name.

    Raises:
        MissingExtra: xllamacpp is not installed.
        OptiError: there is no such file.
    """
    packaged = find_packaged_model() if model == PACKAGED_NAME else None
    return LlamaCppEmbedder(packaged or Path(model), name=model if packaged else "")


def batches(texts: Sequence[str]) -> list[Sequence[str]]:
    """Texts in groups of :data:`BATCH`."""
    return [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]


def vectors(reply: Any, wanted: int) -> list[list[float]]:
    """The vectors of an answer, in the order of the texts.

    Raises:
        UpstreamError: it holds other than one vector of finite numbers for each text.
    """
    items = _object(reply).get("data")
    found = [i for i in items if isinstance(i, dict)] if isinstance(items, list) else []
    found.sort(key=lambda i: i["index"] if isinstance(i.get("index"), int) else 0)
    out = [_vector(i.get("embedding")) for i in found]
    if len(out) != wanted or None in out:
        raise UpstreamError(f"the embedding model sent no vectors for {wanted} texts: {str(reply)[:120]}")
    return [vector for vector in out if vector is not None]


def same_length(found: list[list[float]]) -> list[list[float]]:
    """The vectors, if they can be compared."""
    if len({len(vector) for vector in found}) > 1:
        raise UpstreamError("the embedding model sent vectors of different lengths")
    return found


def _vector(value: Any) -> list[float] | None:
    if not isinstance(value, list) or not value:
        return None
    numbers = [float(n) for n in value if isinstance(n, int | float) and not isinstance(n, bool)]
    return numbers if len(numbers) == len(value) and all(map(math.isfinite, numbers)) else None


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
