"""Memory of the server process: idle, and with many requests in flight."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from benchmarks import processes
from benchmarks.asking import ask, session
from benchmarks.load import chat_body, request_bytes
from benchmarks.processes import Server

IN_FLIGHT = 1000


def measure() -> dict[str, Any]:
    """Of our server and of the bare echo proxy."""
    _allow_files(3 * IN_FLIGHT)
    out: dict[str, Any] = {"in_flight": IN_FLIGHT}
    with processes.upstream() as up:
        limit = str(2 * IN_FLIGHT)
        servers: dict[str, Callable[[], AbstractContextManager[Server]]] = {
            "echo": lambda: processes.echo(up),
            "optillm": lambda: processes.optillm(up, "--upstream-concurrency", limit),
        }
        for name, start in servers.items():
            with start() as server:
                out[name] = asyncio.run(_measure(server, up))
    return out


async def _measure(server: Server, up: Server) -> dict[str, float]:
    async with session() as http:
        for _ in range(5):
            assert not (await ask(http, server, "wait0")).fault
    idle = server.memory
    # One write per connection and no answer yet: what the client does costs the server nothing.
    request = request_bytes(server.chat_url, chat_body("wait30000"))
    connections = []
    for _ in range(IN_FLIGHT):
        connections.append(await asyncio.open_connection("127.0.0.1", server.port))
        connections[-1][1].write(request)
    await _all_arrived(up)
    loaded = server.memory
    for _, writer in connections:
        writer.close()
    return {"idle_mb": idle / 1e6, "per_request_kb": (loaded - idle) / IN_FLIGHT / 1e3}


async def _all_arrived(up: Server) -> None:
    """Wait until the upstream holds all of them."""
    async with session() as http:
        for _ in range(300):
            async with http.get(up.root + "/waiting") as response:
                if (await response.json())["waiting"] >= IN_FLIGHT:
                    return
            await asyncio.sleep(0.1)
    raise RuntimeError("not all requests have reached the upstream")


def _allow_files(count: int) -> None:
    """Let this process and its children open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
