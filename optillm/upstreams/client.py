"""An ``AsyncOpenAI`` client (or anything shaped like one) as an upstream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from optillm.core.frozen import thaw
from optillm.core.streaming import StreamEnd
from optillm.core.upstream import Call
from optillm.protocol.errors import UpstreamError, UpstreamTimeout

# What the client's create() takes by name; everything else travels in extra_body.
_NAMED = frozenset({"model", "messages"})


class ClientUpstream:
    """Calls go through ``client.chat.completions.create``."""

    name = "client"

    def __init__(self, client: Any) -> None:
        self._client = client

    async def complete(self, call: Call) -> bytes:
        """See :class:`optillm.core.upstream.Upstream`."""
        reply = await self._create(call, stream=False)
        return _json(reply)

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """See :class:`optillm.core.upstream.Upstream`."""
        chunks, end = await self._create(call, stream=True), StreamEnd()
        try:
            async for chunk in chunks:
                payload = _json(chunk)
                end.see(payload)
                yield payload
        except Exception as error:
            raise broken(error) from error
        finally:
            if hasattr(chunks, "close"):
                await chunks.close()
        if not end.complete:
            raise UpstreamError("the client's upstream ended its stream without finishing it")

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """The client's model list."""
        try:
            page = await self._client.models.list()
        except Exception as error:
            raise explained(error) from error
        return [msgspec.json.decode(_json(model)) for model in page.data]

    async def aclose(self) -> None:
        """The client belongs to its owner."""

    async def _create(self, call: Call, *, stream: bool) -> Any:
        body = {k: thaw(v) for k, v in call.body.items()}
        named = {k: body.pop(k) for k in _NAMED}
        if not stream:
            body.pop("stream_options", None)
        try:
            return await self._client.chat.completions.create(**named, stream=stream, extra_body=body)
        except Exception as error:
            raise explained(error) from error


def explained(error: Exception) -> Exception:
    """The client's exception as one of ours; one that is not about the upstream stays itself."""
    status = getattr(error, "status_code", None)
    if type(error).__name__ == "APITimeoutError":
        return UpstreamTimeout("the client's upstream did not answer in time")
    if status is None and type(error).__name__ != "APIConnectionError":
        return error
    body = getattr(error, "body", None)
    envelope = body if isinstance(body, Mapping) and "error" in body else {"error": body}
    headers = getattr(getattr(error, "response", None), "headers", {})
    return UpstreamError(
        str(error),
        upstream_status=status,
        body=envelope if isinstance(envelope["error"], Mapping) else None,
        retry_after=headers.get("retry-after"),
    )


def broken(error: Exception) -> Exception:
    """What ended a stream in its middle: the client lets its HTTP library's exceptions through."""
    known = explained(error)
    return known if known is not error else UpstreamError(f"the client's upstream cut its stream: {error}")


def _json(reply: Any) -> bytes:
    if hasattr(reply, "model_dump_json"):
        return str(reply.model_dump_json(exclude_unset=True, warnings=False)).encode()
    return msgspec.json.encode(reply)
