"""Every provider that LiteLLM knows, chosen by model name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from optillm.core.frozen import thaw
from optillm.core.upstream import Call
from optillm.protocol.errors import MissingExtra, UpstreamError, UpstreamTimeout
from optillm.upstreams.openai_http import HTTPOptions
from optillm.upstreams.scheduler import FairScheduler


class LiteLLMUpstream:
    """Calls go through the LiteLLM library; keys are read by it from the environment.

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
        self.name = name
        self._library = library
        self._options = options
        self._scheduler = FairScheduler(options.concurrency)

    async def complete(self, call: Call) -> bytes:
        """See :class:`optillm.core.upstream.Upstream`."""
        async with self._scheduler.turn(call.run_id):
            reply = await self._send(call, stream=False)
            return str(reply.model_dump_json()).encode()

    async def stream(self, call: Call) -> AsyncIterator[bytes]:
        """See :class:`optillm.core.upstream.Upstream`."""
        async with self._scheduler.turn(call.run_id):
            chunks = await self._send(call, stream=True)
            try:
                async for chunk in chunks:
                    yield chunk.model_dump_json(exclude_none=True).encode()
            except Exception as error:
                raise self._explained(error) from error

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
        body = {"error": {"message": str(error), "type": type(error).__name__, "param": None, "code": None}}
        return UpstreamError(
            f"upstream '{self.name}': {error}", upstream_status=status if status else 500, body=body
        )
