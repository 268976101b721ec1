"""Requests of the benchmarks that are more than a load: one answer, or many at once, read whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.load import chat_body
from benchmarks.processes import Server


@dataclass(frozen=True)
class Asked:
    """One answered request.

    Args:
        seconds: from sending it to having its whole answer.
        status: of the answer.
        body: the answer.
    """

    seconds: float
    status: int
    body: Mapping[str, Any]

    @property
    def about(self) -> Mapping[str, Any]:
        """What the server says of the run."""
        info: Mapping[str, Any] = self.body["optillm"]
        return info

    @property
    def fault(self) -> str:
        """Why there is no answer; empty if there is one."""
        return "" if self.status == 200 else f"{self.status}: {self.body['error']['message']}"


def session() -> aiohttp.ClientSession:
    """A client without a limit on connections."""
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def ask(http: aiohttp.ClientSession, target: Server, model: str, **fields: Any) -> Asked:
    """Send one chat request."""
    begun = time.perf_counter()
    async with http.post(target.chat_url, json=chat_body(model, **fields)) as response:
        body = await response.json()
        return Asked(time.perf_counter() - begun, response.status, body)
