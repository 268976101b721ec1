"""A lean load generator: keep-alive connections that send one request after another.

It speaks just enough HTTP/1.1 to cost little: one prepared request, answers with a Content-Length.

    python -m benchmarks.load URL MODEL CLIENTS SECONDS

prints one JSON object: requests per second, and the median latency in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

QUESTION = "How many legs do five spiders and one ant have together? Explain each step of the sum briefly."


def request_bytes(url: str, body: Mapping[str, Any]) -> bytes:
    """The request, as it is sent every time."""
    parts = urlsplit(url)
    data = json.dumps(body).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json\r\nAuthorization: Bearer sk-bench\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def chat_body(model: str, **fields: Any) -> dict[str, Any]:
    """An ordinary small chat request."""
    messages = [
        {"role": "system", "content": "You are a patient and precise teacher of arithmetic."},
        {"role": "user", "content": QUESTION},
    ]
    return {"model": model, "messages": messages, "temperature": 0.7, "max_tokens": 256, **fields}


class Client(asyncio.Protocol):
    """One connection; asks again as soon as it is answered, until told to stop."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.seconds: list[float] = []
        self.closed = asyncio.get_running_loop().create_future()
        self.stopping = False
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return None
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            return self._fail(f"answered {self._buffer[:400]!r}")
        length = _content_length(self._buffer[:head])
        if len(self._buffer) < head + 4 + length:
            return None
        self._buffer = b""
        self.seconds.append(time.perf_counter() - self._sent)
        if self.stopping:
            self.transport.close()
        else:
            self._send()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            if self.stopping and error is None:
                self.closed.set_result(None)
            else:
                self.closed.set_exception(error or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self.transport.write(self.request)

    def _fail(self, what: str) -> None:
        self.closed.set_exception(RuntimeError(what))
        self.transport.abort()


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    start = lowered.index(b"content-length:") + 15
    end = lowered.find(b"\r\n", start)
    return int(lowered[start : end if end >= 0 else None])


async def load(url: str, model: str, clients: int, seconds: float) -> dict[str, float]:
    """Keep so many clients busy for so long."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    request = request_bytes(url, chat_body(model))
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(lambda: Client(request), host, port))[1] for _ in range(clients)]
    begun, done = time.perf_counter(), sum(len(c.seconds) for c in made)
    await asyncio.wait([c.closed for c in made], timeout=seconds)
    took, answered = time.perf_counter() - begun, sum(len(c.seconds) for c in made)
    for client in made:
        client.stopping = True
    await asyncio.gather(*(c.closed for c in made))
    latencies = [s for c in made for s in c.seconds]
    return {
        "answered": len(latencies),
        "rps": (answered - done) / took,
        "p50_ms": statistics.median(latencies) * 1000,
    }


if __name__ == "__main__":
    address, name, connections, duration = sys.argv[1:]
    print(json.dumps(uvloop.run(load(address, name, int(connections), float(duration)))))
