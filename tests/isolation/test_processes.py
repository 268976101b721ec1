"""The same proof against real servers: several workers, and gunicorn with threads."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from socket import AF_INET, SOCK_STREAM, socket
from typing import Any

import aiohttp
import pytest

from tests.fakes import ScriptedUpstream, Seen
from tests.isolation.alone import alone, among_others
from tests.isolation.requests import asked, by_marker, echo_script, random_request

pytestmark = pytest.mark.anyio


def free_port() -> int:
    with socket(AF_INET, SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@asynccontextmanager
async def process(command: Sequence[str], port: int, env: Mapping[str, str]) -> AsyncIterator[str]:
    """A server process that answers /health; ended by SIGTERM."""
    running = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", *command], env={**os.environ, **env}, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as http:
            while not await healthy(http, url):
                assert running.poll() is None, "the server ended"
                await asyncio.sleep(0.05)
        yield url
        running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait, 30) in (0, -signal.SIGTERM)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


async def healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def send(http: aiohttp.ClientSession, url: str, body: Any) -> tuple[int, Any]:
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        return response.status, await response.json()


def workers(upstream: str, port: int) -> tuple[list[str], dict[str, str]]:
    return ["optillm", "--base-url", upstream, "--port", str(port), "--workers", "2"], {}


def gunicorn(upstream: str, port: int) -> tuple[list[str], dict[str, str]]:
    command = ["gunicorn", "-w", "1", "--threads", "4", "-b", f"127.0.0.1:{port}", "optillm.wsgi:app"]
    # With its two seconds a client may send on a connection that is just being closed.
    command += ["--keep-alive", "75"]
    return command, {"OPTILLM_BASE_URL": upstream}


@pytest.mark.parametrize(
    ("server", "one_process"), [(workers, False), (gunicorn, True)], ids=["workers", "gunicorn"]
)
async def test_concurrent_requests_are_as_if_alone(server: Any, one_process: bool) -> None:
    rng = random.Random(99)
    requests = [random_request(i, rng) for i in range(120)]
    async with ScriptedUpstream(echo_script, latency=0.002) as up:
        single = [await alone(up.base_url, r, i, name="upstream") for i, r in enumerate(requests)]
        expected, up.calls = by_marker(up.calls), []
        port = free_port()
        command, env = server(up.base_url, port)
        env = {**env, "OPTILLM_STREAM_PROGRESS": "off"}
        async with process(command, port, env) as url, aiohttp.ClientSession() as http:
            # Another worker is shown a run only a moment after its answer.
            together = await asyncio.gather(
                *(among_others(http, f"{url}/v1", r, i, run=one_process) for i, r in enumerate(requests))
            )
        seen = by_marker(up.calls)
    for i, request in enumerate(requests):
        # A request that may take more calls than the server allows makes none.
        assert asked(seen.get(i, []), request) == asked(expected.get(i, []), request), request
        assert {c.headers["Authorization"] for c in seen.get(i, [])} <= {f"Bearer key-of-{i}"}
        wanted = single[i] if one_process else replace(single[i], run=None)
        assert together[i] == wanted, request


@pytest.mark.parametrize("server", [workers, gunicorn], ids=["workers", "gunicorn"])
async def test_reported_bug_every_request_keeps_its_own_mcts_parameters(server: Any) -> None:
    """40 requests at once; in the old system 34 were computed with another one's parameters."""
    rng = random.Random(304)
    wanted = [(rng.randint(1, 3), rng.randint(0, 3), rng.choice([0.1, 0.5, 2.0])) for _ in range(40)]
    bodies_sent = [
        {
            "model": "mcts-m",
            "messages": [{"role": "user", "content": f"marker-{i}- Why?"}],
            "mcts_simulations": s,
            "mcts_depth": d,
            "mcts_exploration": c,
        }
        for i, (s, d, c) in enumerate(wanted)
    ]
    async with ScriptedUpstream(dialogue) as up:
        port = free_port()
        command, env = server(up.base_url, port)
        async with process(command, port, env) as url, aiohttp.ClientSession() as http:
            answers = await asyncio.gather(*(send(http, url, b) for b in bodies_sent))
        counted = by_marker(up.calls)
    for i, (s, d, c) in enumerate(wanted):
        info = answers[i][1]["optillm"]
        used = info["params"]["mcts"]
        assert (used["simulations"], used["depth"], used["exploration"]) == (s, d, c)
        assert len(counted[i]) == info["calls"] == 1 + s * (2 * d + 1)


def dialogue(call: Seen) -> Any:
    if call.stage == "eval":
        return "Score: 0.5"
    return "more?" if call.stage == "user" else [f"reply {i}" for i in range(call.n)]


async def test_any_worker_shows_a_run_that_another_made() -> None:
    async with ScriptedUpstream("hello") as up:
        port = free_port()
        command, env = workers(up.base_url, port)
        async with process(command, port, env) as url:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            async with aiohttp.ClientSession() as http:
                runs = [(await send(http, url, body))[1]["optillm"]["run_id"] for _ in range(8)]
            for run in runs * 2:
                # A connection of its own, so that either worker may get it.
                async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/runs/{run}") as response:
                    assert response.status == 200
