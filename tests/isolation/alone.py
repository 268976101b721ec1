"""A request on a server that never sees another one, and all that can be told of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from optillm.faces.app import App
from optillm.plugins import builtin_registry
from optillm.settings import Settings, UpstreamSettings
from tests.isolation.requests import stable, unmarked


@dataclass(frozen=True)
class Told:
    """What a server told of one request: its status, its answer, and its run when asked for."""

    status: int
    answer: str
    run: str | None


def token(number: int) -> dict[str, str]:
    """The client's own key, which goes on to the upstream."""
    return {"Authorization": f"Bearer key-of-{number}"}


async def alone(url: str, body: Mapping[str, Any], number: int, *, name: str = "up") -> Told:
    """The only request in the life of a server in front of this upstream, which the server calls ``name``."""
    upstream = UpstreamSettings(name, "openai", url, "upstream-key")
    settings = Settings(upstreams=(upstream,), stream_progress="off", retries=0, ssl_verify=False)
    app = App(settings, builtin_registry())
    try:
        status, data = await _call(app, "POST", "/v1/chat/completions", number, json.dumps(body).encode())
        if status != 200:
            return Told(status, _whole(data), None)
        _, run = await _call(app, "GET", f"/v1/runs/{_run_id(data)}", number)
        return Told(status, _answer(data, body), _run(run, body))
    finally:
        await app.stop()


async def among_others(
    http: aiohttp.ClientSession, base_url: str, body: Mapping[str, Any], number: int, *, run: bool = True
) -> Told:
    """The request to a running server and, as soon as it is answered, what is told of its run."""
    async with http.post(f"{base_url}/chat/completions", json=body, headers=token(number)) as response:
        status, data = response.status, await response.read()
    if status != 200:
        return Told(status, _whole(data), None)
    if not run:
        return Told(status, _answer(data, body), None)
    async with http.get(f"{base_url}/runs/{_run_id(data)}", headers=token(number)) as response:
        assert response.status == 200, "an answer is there, but not its run"
        return Told(status, _answer(data, body), _run(await response.read(), body))


def _run_id(data: bytes) -> str:
    """The run that an answer tells about, streamed or not; it does so once."""
    (found,) = re.findall(rb'"run_id":"([^"]+)"', data)
    return str(found.decode())


def _answer(data: bytes, body: Mapping[str, Any]) -> str:
    return _streamed(data) if body.get("stream") else _whole(data)


def _whole(data: bytes) -> str:
    return unmarked(stable(json.loads(data)))


def _streamed(data: bytes) -> str:
    """The deltas of every choice in order, and all else that the chunks say, each thing once.

    Choices that are made concurrently may come interleaved in any way.
    """
    choices: dict[int, list[Any]] = {}
    rest: set[str] = set()
    # A busy machine may keep the connection alive by comments.
    *blocks, end = [b for b in data.decode().split("\n\n") if b and not b.startswith(":")]
    assert end == "data: [DONE]"
    for block in blocks:
        event = stable(json.loads(block.removeprefix("data: ")))
        for choice in event.pop("choices"):
            choices.setdefault(choice["index"], []).append(choice)
        rest.add(json.dumps(event, sort_keys=True))
    return unmarked([choices, sorted(rest)])


def _run(data: bytes, body: Mapping[str, Any]) -> str:
    run = json.loads(data)
    if "seed" not in body:
        del run["seed"]  # it was drawn
    return unmarked(stable(run))


async def _call(app: App, method: str, path: str, number: int, body: bytes = b"") -> tuple[int, bytes]:
    requests = [{"type": "http.request", "body": body}]
    status = 0
    pieces: list[bytes] = []

    async def receive() -> Mapping[str, Any]:
        if requests:
            return requests.pop()
        stays: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        return await stays

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            pieces.append(message.get("body", b""))

    headers = [(k.lower().encode(), v.encode()) for k, v in token(number).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return status, b"".join(pieces)
