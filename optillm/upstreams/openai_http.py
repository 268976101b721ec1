"""Any OpenAI-compatible server over HTTP."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import msgspec
from wreq import Client, Response, Streamer
from wreq.exceptions import BuilderError, TlsError

from optillm.core.frozen import to_json
from optillm.core.streaming import StreamEnd
from optillm.core.upstream import Call
from optillm.protocol.errors import UpstreamError, UpstreamTimeout
from optillm.protocol.sse import SSEDecoder
from optillm.upstreams.http import (
    FAILED,
    NOT_REACHED,
    cause,
    error_message,
    header,
    timed_out,
    without_keys,
)
from optillm.upstreams.scheduler import FairScheduler

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
LIST_TIMEOUT = timedelta(seconds=10)
"""How long a list of models is waited for."""
UNLIMITED = timedelta(days=1)
DRAIN_SECONDS = 0.05
"""How long the end of a finished stream is waited for."""


@dataclass(frozen=True)
class HTTPOptions:
    """How an upstream is talked to.

    Args:
        total_timeout: seconds for a call with all its retries, from its first place in the scheduler
            on; None is for callers that end calls themselves.
        retries: further tries after a failed connection, a time-out, 408, 409, 429 or a 5xx.
        backoff: seconds before the first of them; doubles, with jitter.
        max_retry_after: a longer Retry-After is not waited for but passed on.
        concurrency: calls in flight at once.
    """

    total_timeout: float | None = 600.0
    retries: int = 2
    backoff: float = 0.25
    max_retry_after: float = 20.0
    concurrency: int = 256


class OpenAIUpstream:
    """A base URL that speaks the OpenAI protocol.

    Args:
        name: what to call it in traces and errors.
        base_url: up to and including ``/v1``.
        key: its API key; None sends none.
        client: the process's HTTP client; see :func:`optillm.upstreams.http.make_client`.
        options: total time-out, retries, concurrency.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        client: Client,
        options: HTTPOptions | None = None,
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.options = options or HTTPOptions()
        self._key = (key or "").strip() or None
        self._client = client
        self._scheduler = FairScheduler(self.options.concurrency)
        total = self.options.total_timeout
        self._limit = UNLIMITED if total is None else timedelta(seconds=total)

    def url(self, model: str) -> str:
        """Where chat completions of a model are posted."""
        return f"{self.base_url}/chat/completions"

    @property
    def models_url(self) -> str:
        """Where models are listed."""
        return f"{self.base_url}/models"

    async def headers(self, bearer: str | None) -> dict[str, str]:
        """Headers of a request; the client's token, if given, stands in for the key."""
        key = bearer or self._key
        out = {"Content-Type": "application/json"}
        if key:
            out["Authorization"] = f"Bearer {key}"
        return out

    async def complete(self, call: Call) -> bytes:
        """See :class:`optillm.core.upstream.Upstream`."""
        body = {k: v for k, v in call.body.items() if k not in ("stream", "stream_options")}
        async with self._sent(call, to_json(body)) as response:
            return await self._read(response)

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """See :class:`optillm.core.upstream.Upstream`."""
        async with self._sent(call, to_json({**call.body, "stream": True})) as response:
            kind = header(response, "Content-Type") or "no type"
            if "event-stream" not in kind:
                raise self._malformed(await self._read(response), kind)
            decoder, end = SSEDecoder(), StreamEnd()
            try:
                async with response.stream() as pieces:
                    async for data in pieces:
                        # What is no data are trailers.
                        for payload in decoder.feed(bytes(data)) if isinstance(data, memoryview) else ():
                            if payload == b"[DONE]":
                                await _drain(pieces)
                                return
                            end.see(payload)
                            yield payload
            except FAILED as error:
                raise self._broken("cut its stream", error) from error
            if not end.complete:
                raise UpstreamError(f"upstream '{self.name}' ended its stream without finishing it")

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """The upstream's model list."""
        headers = await self.headers(None)
        try:
            response = await self._client.get(self.models_url, headers=headers, timeout=LIST_TIMEOUT)
            body = bytes(await response.bytes())
        except FAILED as error:
            raise UpstreamError(f"upstream '{self.name}': {cause(error)}") from error
        if response.status.as_int() != 200:
            raise self._refused(response, body, headers)
        return model_list(body, self.name)

    async def aclose(self) -> None:
        """Nothing of its own: the client belongs to the process."""

    def _sent(self, call: Call, body: bytes) -> AbstractAsyncContextManager[Response]:
        """The successful response to the call, after retries; closed at the end."""
        return _Exchange(self, call, body)

    async def _answered(self, call: Call, body: bytes) -> Response:
        """The same, with its place in the scheduler still held."""
        url, headers = self.url(str(call.body.get("model"))), await self.headers(call.bearer)
        loop = asyncio.get_running_loop()
        attempt, left, end, limit = 0, self.options.total_timeout, math.inf, self._limit
        while True:
            failure: UpstreamError | UpstreamTimeout
            await self._scheduler.acquire(call.run_id)
            answered = False
            try:
                if left is not None:
                    end = min(end, loop.time() + left)
                try:
                    response = await self._client.post(url, headers=headers, body=body, timeout=limit)
                except FAILED as error:
                    failure = self._broken(_stage(error), error)
                    failure.__cause__ = error
                else:
                    if response.status.as_int() == 200:
                        answered = True
                        return response
                    failure = self._refused(response, await self._read(response), headers)
            finally:
                if not answered:
                    self._scheduler.release(call.run_id)
            # Nothing is held while the upstream is given time.
            delay = self._delay(failure, attempt)
            if delay is None or loop.time() + delay >= end:
                raise failure
            attempt += 1
            await asyncio.sleep(delay)
            if left is not None:
                left = end - loop.time()
                limit = timedelta(seconds=left)

    def _delay(self, failure: UpstreamError | UpstreamTimeout, attempt: int) -> float | None:
        """Seconds to wait before another try, or None."""
        if attempt >= self.options.retries:
            return None
        asked = None
        if isinstance(failure, UpstreamError):
            status, problem = failure.upstream_status, failure.__cause__
            # What is refused now will be refused again.
            if isinstance(problem, BuilderError | TlsError) or (problem and "certificate" in cause(problem)):
                return None
            if status is not None and status not in RETRIED:
                return None
            asked = _retry_after_seconds(failure.retry_after)
        if asked is not None:
            return asked if asked <= self.options.max_retry_after else None
        # Jitter between clients of one upstream; it decides nothing about an answer.
        return float(self.options.backoff * 2**attempt * random.SystemRandom().uniform(0.5, 1.0))

    async def _read(self, response: Response) -> bytes:
        try:
            return bytes(await response.bytes())
        except FAILED as error:
            raise self._broken("broke off its answer", error) from error

    def _broken(self, what: str, error: Exception) -> UpstreamError | UpstreamTimeout:
        if timed_out(error):
            return UpstreamTimeout(f"upstream '{self.name}' did not answer in time")
        return UpstreamError(f"upstream '{self.name}' {what}: {cause(error)}")

    def _malformed(self, body: bytes, content_type: str) -> UpstreamError:
        start = body[:120].decode(errors="replace")
        return UpstreamError(f"upstream '{self.name}' sent {content_type} for a stream: {start!r}")

    def _refused(self, response: Response, body: bytes, sent: Mapping[str, str]) -> UpstreamError:
        body = without_keys(body, sent)
        try:
            parsed = msgspec.json.decode(body)
        except msgspec.DecodeError:
            parsed = None
        parsed = parsed if isinstance(parsed, dict) else None
        said = error_message(parsed) or body[:300].decode(errors="replace").strip()
        return UpstreamError(
            f"upstream '{self.name}' answered {response.status.as_int()}: {said or 'nothing'}",
            upstream_status=response.status.as_int(),
            body=parsed,
            retry_after=header(response, "Retry-After"),
        )


class _Exchange:
    """Around the use of a response: its place in the scheduler is given back at the end."""

    __slots__ = ("_body", "_call", "_response", "_upstream")

    def __init__(self, upstream: OpenAIUpstream, call: Call, body: bytes) -> None:
        self._upstream, self._call, self._body = upstream, call, body

    async def __aenter__(self) -> Response:
        self._response = await self._upstream._answered(self._call, self._body)
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                # A body that was read to its end has given its connection back already.
                await self._response.close()
        finally:
            self._upstream._scheduler.release(self._call.run_id)


def _stage(error: Exception) -> str:
    return "cannot be reached" if isinstance(error, NOT_REACHED) else "closed the connection"


async def _drain(pieces: Streamer) -> None:
    """Read the end of a body that says nothing more, so that its connection can be used again."""
    # An upstream that keeps the line open loses it.
    with suppress(TimeoutError, *FAILED):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in pieces:
                pass


def model_list(body: bytes, name: str) -> list[dict[str, Any]]:
    """The model objects of a ``/models`` answer."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise UpstreamError(f"upstream '{name}' sent no model list") from error
    items = data.get("data", data.get("models")) if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise UpstreamError(f"upstream '{name}' sent no model list")
    return [m for m in items if isinstance(m, dict) and isinstance(m.get("id"), str)]


def _retry_after_seconds(value: str | None) -> float | None:
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    # "-0000" says that the zone is not known; HTTP dates are in UTC.
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
