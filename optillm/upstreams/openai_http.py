"""Any OpenAI-compatible server over HTTP, through one pooled client."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec

from optillm.core.frozen import to_json
from optillm.core.streaming import StreamEnd
from optillm.core.upstream import Call
from optillm.protocol.errors import UpstreamError, UpstreamTimeout
from optillm.protocol.sse import SSEDecoder
from optillm.upstreams.scheduler import FairScheduler

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
DRAIN_SECONDS = 0.05
"""How long the end of a finished stream is waited for."""


@dataclass(frozen=True)
class HTTPOptions:
    """How an upstream is talked to.

    Args:
        connect_timeout, read_timeout, total_timeout: seconds; ``read`` is between two pieces,
            ``total`` covers a call with all its retries, from its first place in the scheduler on;
            None is for callers that end calls themselves.
        retries: further tries after a failed connection, a time-out, 408, 409, 429 or a 5xx.
        backoff: seconds before the first of them; doubles, with jitter.
        max_retry_after: a longer Retry-After is not waited for but passed on.
        concurrency: calls in flight at once.
    """

    connect_timeout: float = 5.0
    read_timeout: float = 300.0
    total_timeout: float | None = 600.0
    retries: int = 2
    backoff: float = 0.25
    max_retry_after: float = 20.0
    concurrency: int = 256


def make_session(tls: ssl.SSLContext | bool = True, *, proxied: bool = True) -> aiohttp.ClientSession:
    """The process's HTTP client.

    Args:
        tls: a context, or False for no verification.
        proxied: follow the proxy variables of the environment. They are looked up in a thread at
            every call, so a process that has none does better without.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ssl=tls)
    # An upstream's cookie for one request must not travel with another.
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=proxied)


class OpenAIUpstream:
    """A base URL that speaks the OpenAI protocol.

    Args:
        name: what to call it in traces and errors.
        base_url: up to and including ``/v1``.
        key: its API key; None sends none.
        session: the shared client.
        options: time-outs, retries, concurrency.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        session: aiohttp.ClientSession,
        options: HTTPOptions | None = None,
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.options = options or HTTPOptions()
        self._key = (key or "").strip() or None
        self._session = session
        self._scheduler = FairScheduler(self.options.concurrency)
        self._timeout = self._limits(self.options.total_timeout)

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
            if "event-stream" not in response.content_type:
                raise self._malformed(await self._read(response), response.content_type)
            decoder, end = SSEDecoder(), StreamEnd()
            try:
                async for data in response.content.iter_any():
                    for payload in decoder.feed(data):
                        if payload == b"[DONE]":
                            await _drain(response)
                            return
                        end.see(payload)
                        yield payload
            except aiohttp.ClientError as error:
                raise UpstreamError(f"upstream '{self.name}' cut its stream: {error}") from error
            except TimeoutError as error:
                raise self._timed_out() from error
            if not end.complete:
                raise UpstreamError(f"upstream '{self.name}' ended its stream without finishing it")

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """The upstream's model list."""
        headers = await self.headers(None)
        timeout = aiohttp.ClientTimeout(total=10, sock_connect=self.options.connect_timeout)
        try:
            async with self._session.get(
                self.models_url, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                body = await response.read()
                if response.status != 200:
                    raise self._refused(response, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError(f"upstream '{self.name}': {error or type(error).__name__}") from error
        return model_list(body, self.name)

    async def aclose(self) -> None:
        """Nothing of its own: the session belongs to the process."""

    @asynccontextmanager
    async def _sent(self, call: Call, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """The successful response to the call, after retries; closed at the end."""
        url, headers = self.url(str(call.body.get("model"))), await self.headers(call.bearer)
        loop = asyncio.get_running_loop()
        total = math.inf if self.options.total_timeout is None else self.options.total_timeout
        attempt, timeout, end = 0, self._timeout, math.inf
        while True:
            failure: UpstreamError | UpstreamTimeout
            async with self._scheduler.turn(call.run_id):
                end = min(end, loop.time() + total)
                try:
                    response = await self._session.post(
                        url, data=body, headers=headers, timeout=timeout, allow_redirects=False
                    )
                except TimeoutError as error:
                    failure = self._timed_out()
                    failure.__cause__ = error
                except aiohttp.ClientError as error:
                    failure = self._unreachable(error)
                else:
                    try:
                        if response.status == 200:
                            yield response
                            return
                        failure = self._refused(response, await self._read(response))
                    finally:
                        response.close() if not response.content.is_eof() else response.release()
            # Nothing is held while the upstream is given time.
            delay = self._delay(failure, attempt)
            if delay is None or loop.time() + delay >= end:
                raise failure
            attempt += 1
            await asyncio.sleep(delay)
            if end < math.inf:
                timeout = self._limits(end - loop.time())

    def _limits(self, total: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=total, sock_connect=self.options.connect_timeout, sock_read=self.options.read_timeout
        )

    def _delay(self, failure: UpstreamError | UpstreamTimeout, attempt: int) -> float | None:
        """Seconds to wait before another try, or None."""
        if attempt >= self.options.retries:
            return None
        asked = None
        if isinstance(failure, UpstreamError):
            status, cause = failure.upstream_status, failure.__cause__
            # A certificate that is refused now will be refused again.
            if isinstance(cause, aiohttp.ClientSSLError | aiohttp.InvalidURL):
                return None
            if status is not None and status not in RETRIED:
                return None
            asked = _retry_after_seconds(failure.retry_after)
        if asked is not None:
            return asked if asked <= self.options.max_retry_after else None
        # Jitter between clients of one upstream; it decides nothing about an answer.
        return float(self.options.backoff * 2**attempt * random.SystemRandom().uniform(0.5, 1.0))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except TimeoutError as error:
            raise self._timed_out() from error
        except aiohttp.ClientError as error:
            raise UpstreamError(f"upstream '{self.name}' broke off its answer: {error}") from error

    def _timed_out(self) -> UpstreamTimeout:
        return UpstreamTimeout(f"upstream '{self.name}' did not answer in time")

    def _unreachable(self, error: aiohttp.ClientError) -> UpstreamError:
        what = "cannot be reached" if isinstance(error, aiohttp.ClientConnectionError) else "broke off"
        if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError) and not isinstance(
            error, aiohttp.ClientConnectorError
        ):
            what = "closed the connection"
        failure = UpstreamError(f"upstream '{self.name}' {what}: {error}")
        failure.__cause__ = error
        return failure

    def _malformed(self, body: bytes, content_type: str) -> UpstreamError:
        start = body[:120].decode(errors="replace")
        return UpstreamError(f"upstream '{self.name}' sent {content_type} for a stream: {start!r}")

    def _refused(self, response: aiohttp.ClientResponse, body: bytes) -> UpstreamError:
        body = without_keys(body, response.request_info.headers)
        try:
            parsed = msgspec.json.decode(body)
        except msgspec.DecodeError:
            parsed = None
        parsed = parsed if isinstance(parsed, dict) else None
        said = error_message(parsed) or body[:300].decode(errors="replace").strip()
        return UpstreamError(
            f"upstream '{self.name}' answered {response.status}: {said or response.reason}",
            upstream_status=response.status,
            body=parsed,
            retry_after=_header(response.headers.get("Retry-After")),
        )


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the end of a body that says nothing more, so that its connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        # An upstream that keeps the line open loses it.
        async with asyncio.timeout(DRAIN_SECONDS):
            while not response.content.at_eof():
                await response.content.readany()


def without_keys(body: bytes, sent: Mapping[str, str]) -> bytes:
    """An error body in which the key that was sent, should the upstream repeat it, is blacked out."""
    for key in (sent.get("Authorization", "").removeprefix("Bearer "), sent.get("api-key", "")):
        # A shorter one is a stand-in, and may be a word of the answer.
        if len(key) >= 8:
            body = body.replace(key.encode(), b"[redacted]")
    return body


def error_message(body: Mapping[str, Any] | None) -> str:
    """The message in an error body, whatever its shape."""
    error = (body or {}).get("error", body)
    if isinstance(error, Mapping):
        return str(error.get("message") or error.get("detail") or "")
    return str(error or "")


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


def _header(value: str | None) -> str | None:
    return value if value and value.isascii() and value.isprintable() else None
