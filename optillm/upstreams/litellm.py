"""Every provider that LiteLLM knows, chosen by model name."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from optillm.core.frozen import thaw
from optillm.core.upstream import Call
from optillm.protocol.errors import MissingExtra, UpstreamError, UpstreamTimeout
from optillm.upstreams.openai_http import HTTPOptions
from optillm.upstreams.scheduler import FairScheduler

# Keys are LiteLLM's to read, so they are known here by their looks alone.
_KEY = re.compile(r"\b(?:sk|gsk|xai|pk)-[\w-]{6,}")


class LiteLLMUpstream:
    """Calls go through the LiteLLM library; keys are read by it from the environment.

    Its own limits remain: it retries while its call holds its place, and it ends a stream that was
    cut as if it had been finished.

    Args:
        name: what to call it in traces and errors.
        options: time-outs, retries, concurrency.
        library: what stands in for the ``litellm`` module.

    Raises:
        MissingExtra: LiteLLM is not installed.
    """

    def __init__(self, name: str, options: HTTPOptions, library: Any = None) -> None:
        if library is None:
            try:
                import litellm

                library = litellm
            except ImportError:
                raise MissingExtra("litellm", "an upstream through LiteLLM") from None
        # Or it prints hints to standard output at every error.
        library.suppress_debug_info = True
        self.name = name
        self._library = library
        self._options = options
        self._scheduler = FairScheduler(options.concurrency)

    async def complete(self, call: Call) -> bytes:
        """See :class:`optillm.core.upstream.Upstream`."""
        async with self._scheduler.turn(call.run_id):
            reply = await self._send(call, stream=False)
            return str(reply.model_dump_json(warnings=False)).encode()

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """See :class:`optillm.core.upstream.Upstream`."""
        async with self._scheduler.turn(call.run_id):
            chunks = await self._send(call, stream=True)
            try:
                async for chunk in chunks:
                    yield chunk.model_dump_json(exclude_none=True, warnings=False).encode()
            except Exception as error:
                raise self._explained(error) from error
            finally:
                if hasattr(chunks, "aclose"):
                    await chunks.aclose()

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """The models that the keys in the environment open."""
        names = self._library.get_valid_models()
        return [{"id": n, "object": "model", "created": 0, "owned_by": "litellm"} for n in names]

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _send(self, call: Call, *, stream: bool) -> Any:
        fields = {k: thaw(v) for k, v in call.body.items() if k not in ("stream", "stream_options")}
        if stream and "stream_options" in call.body:
            fields["stream_options"] = thaw(call.body["stream_options"])
        if call.bearer:
            fields["api_key"] = call.bearer
        try:
            # Its own time-out is for each of its tries.
            async with asyncio.timeout(self._options.total_timeout):
                return await self._library.acompletion(
                    **fields,
                    stream=stream,
                    timeout=self._options.total_timeout,
                    num_retries=self._options.retries,
                )
        except Exception as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> UpstreamError | UpstreamTimeout:
        """LiteLLM's exceptions carry the upstream's status; anything else is the upstream's fault."""
        status = getattr(error, "status_code", None)
        if status == 408 or isinstance(error, TimeoutError):
            return UpstreamTimeout(f"upstream '{self.name}' did not answer in time")
        said = _KEY.sub("***", str(error))
        body = {"error": {"message": said, "type": type(error).__name__, "param": None, "code": None}}
        headers = getattr(error, "litellm_response_headers", None)
        headers = headers or getattr(getattr(error, "response", None), "headers", None) or {}
        return UpstreamError(
            f"upstream '{self.name}': {said}",
            upstream_status=status if status else 500,
            body=body,
            retry_after=headers.get("retry-after"),
        )
