"""The server under test: a real one, on a free port, in this process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import AF_INET, IPPROTO_TCP, SOCK_STREAM, socket
from typing import Any

import aiohttp
import uvicorn

from optillm.core.registry import Registry
from optillm.core.state import States
from optillm.faces.app import App
from optillm.faces.serve import Server
from optillm.plugins import builtin_registry
from optillm.settings import Settings, UpstreamSettings
from tests.fakes import ScriptedUpstream


@dataclass
class Answer:
    """An HTTP answer, read."""

    status: int
    headers: Mapping[str, str]
    json: Any

    @property
    def text(self) -> str:
        return str(self.json["choices"][0]["message"]["content"])

    @property
    def texts(self) -> list[str]:
        return [c["message"]["content"] for c in self.json["choices"]]

    @property
    def info(self) -> dict[str, Any]:
        out: dict[str, Any] = self.json["optillm"]
        return out

    @property
    def error(self) -> dict[str, Any]:
        out: dict[str, Any] = self.json["error"]
        return out


class Proxy:
    """A running server."""

    def __init__(self, app: App, server: Server, url: str, http: aiohttp.ClientSession) -> None:
        self.app, self.server, self.url, self.http = app, server, url, http

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    async def get(self, path: str, **headers: str) -> Answer:
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        async with self.http.get(self.url + path, headers=named) as response:
            return Answer(response.status, response.headers, await response.json())

    async def post(
        self, body: Any, headers: Mapping[str, str] | None = None, path: str = "/v1/chat/completions"
    ) -> Answer:
        data = {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(self.url + path, headers=headers, **data) as response:
            return Answer(response.status, response.headers, await response.json())

    async def ask(self, model: str = "test-model", question: Any = "What is 2+2?", **fields: Any) -> Answer:
        messages = fields.pop("messages", [{"role": "user", "content": question}])
        return await self.post({"model": model, "messages": messages, **fields})

    async def events(
        self, model: str = "test-model", question: Any = "What is 2+2?", **fields: Any
    ) -> list[str]:
        """The payloads (and comments) of a streamed answer, in order."""
        messages = fields.pop("messages", [{"role": "user", "content": question}])
        body = {"model": model, "messages": messages, "stream": True, **fields}
        async with self.http.post(self.url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            raw = (await response.read()).decode()
        return [block.removeprefix("data: ") for block in raw.split("\n\n") if block]


class PromptServer(Server):
    """The server, but one that has nothing left to do does not sleep before it ends."""

    async def main_loop(self) -> None:
        while not self.should_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        if self.server_state.tasks or _app(self).active:
            await super().shutdown(sockets)
            return
        for listening in self.servers:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        async with asyncio.timeout(5):
            while self.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await self.lifespan.shutdown()


def _app(server: Server) -> App:
    app = server.config.app
    assert isinstance(app, App)
    return app


@asynccontextmanager
async def serving(
    upstream: ScriptedUpstream | str,
    *,
    registry: Registry | None = None,
    states: States | None = None,
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """Serve with these settings, in front of an upstream."""
    url = upstream if isinstance(upstream, str) else upstream.base_url
    settings.setdefault("upstreams", (UpstreamSettings("up", "openai", url, "upstream-key"),))
    app = App(
        Settings(**{"stream_progress": "off", "retries": 0, **settings}),
        registry or builtin_registry(),
        states,
    )
    # Named as TCP, so that asyncio turns Nagle's algorithm off.
    with socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(4096)
        config = uvicorn.Config(
            app,
            log_level="warning",
            interface="asgi3",
            timeout_graceful_shutdown=2,
            # On a busy machine a connection waits long for its next request; it must still be there then.
            timeout_keep_alive=300,
            access_log=False,
        )
        server = PromptServer(config, app.settings.shutdown_timeout)
        task = asyncio.create_task(server.serve([listening]))
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            yield Proxy(app, server, f"http://127.0.0.1:{listening.getsockname()[1]}", http)
        server.should_exit = True
        await task
