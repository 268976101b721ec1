"""Our server with something that notices when its event loop stands still.

    python -m benchmarks.watched FLAGS…

takes the flags of ``optillm serve``. ``GET /ticks`` tells the longest time between two turns of the
loop since it was last asked, in milliseconds: on the clock, and as CPU time of the loop's thread, which
leaves out what other processes of the machine took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from benchmarks.asgi import respond
from optillm.faces import serve
from optillm.faces.app import App
from optillm.plugins import builtin_registry
from optillm.settings import Settings, from_command_line

PAUSE = 0.001


class Watched(App):
    """The application, and its ticker."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, builtin_registry())
        self.wall = self.cpu = 0.0
        self.ticker: asyncio.Task[None] | None = None

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
        send: Callable[[Mapping[str, Any]], Awaitable[None]],
    ) -> None:
        if scope.get("path") != "/ticks":
            return await super().__call__(scope, receive, send)
        if self.ticker is None:
            self.ticker = asyncio.create_task(self.tick())
        longest = {"wall_ms": self.wall * 1000, "cpu_ms": self.cpu * 1000}
        self.wall = self.cpu = 0.0
        return await respond(send, json.dumps(longest).encode())

    async def tick(self) -> None:
        """Ask for a turn every millisecond, and keep how late the latest came."""
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(PAUSE)
            self.wall = max(self.wall, time.perf_counter() - wall - PAUSE)
            self.cpu = max(self.cpu, time.thread_time() - cpu)


if __name__ == "__main__":
    settings = from_command_line(sys.argv[1:], builtin_registry())
    serve.run_app(Watched(settings))
