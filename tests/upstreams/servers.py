"""Small servers for what a scripted upstream does not do, and upstreams in front of them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

from aiohttp import web

from optillm.core.upstream import Call
from optillm.upstreams.http import ClientOptions, make_client
from optillm.upstreams.openai_http import HTTPOptions, OpenAIUpstream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = "sk-the-key-of-the-server"
COMPLETION = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
}


async def _abort_connections(port: int) -> None:
    """End connections to a server that are still in their TLS handshake: no server knows of them yet."""
    loop: Any = asyncio.get_running_loop()
    for transport in list(loop._transports.values()):
        name = transport.get_extra_info("sockname")
        if name and name[1] == port:
            transport.abort()
    # Aborted transports close at the loop's next turn.
    await asyncio.sleep(0)


@asynccontextmanager
async def answering(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server whose every path is one handler; yields its base URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        scheme = "https" if tls else "http"
        yield f"{scheme}://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        port = runner.addresses[0][1]
        await runner.cleanup()
        await _abort_connections(port)


@asynccontextmanager
async def upstream(
    base_url: str,
    *,
    key: str | None = KEY,
    client: ClientOptions | None = None,
    **options: Any,
) -> AsyncIterator[OpenAIUpstream]:
    """An upstream that retries at once, and only if told to."""
    limits = HTTPOptions(**{"retries": 0, "backoff": 0.001, **options})
    with closing(make_client(client or ClientOptions())) as http:
        yield OpenAIUpstream("up", base_url, key, http, limits)


def call(text: str = "hi", *, run: str = "run", bearer: str | None = None, **fields: Any) -> Call:
    """A call as a run makes it."""
    return Call({"model": "m", "messages": [{"role": "user", "content": text}], **fields}, run, bearer)
