"""The least that a proxy can do: read the request, post it on, send the answer back.

The measure for what a proxy on the same libraries could reach: uvicorn, aiohttp, orjson.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import orjson

from benchmarks.asgi import body_of, respond, run


class Echo:
    """The ASGI application.

    Args:
        upstream: base URL, up to and including ``/v1``.
    """

    def __init__(self, upstream: str) -> None:
        self.url = upstream + "/chat/completions"
        self.session: aiohttp.ClientSession | None = None

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
        send: Callable[[Mapping[str, Any]], Awaitable[None]],
    ) -> None:
        if self.session is None:
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        asked = orjson.loads(await body_of(receive))
        headers = {"Content-Type": "application/json"}
        async with self.session.post(self.url, data=orjson.dumps(asked), headers=headers) as response:
            answer = orjson.loads(await response.read())
        await respond(send, orjson.dumps(answer), response.status)


if __name__ == "__main__":
    run(Echo(sys.argv[2]))
