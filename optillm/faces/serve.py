"""Run the server with uvicorn: one process or several, with an orderly end."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from socket import socket
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from optillm.faces.app import App
from optillm.plugins import load_registry
from optillm.settings import Settings

log = logging.getLogger("optillm")


def create_app(settings: Settings) -> App:
    """The application of one process."""
    return App(settings, load_registry(settings.plugins_dir, allow_override=settings.allow_override))


class Server(uvicorn.Server):
    """Uvicorn, but at shutdown running requests finish, or end with what they have.

    New requests on open connections are refused with 503 meanwhile; nothing is dropped silently.
    """

    def __init__(self, config: uvicorn.Config, grace: float) -> None:
        super().__init__(config)
        self.grace = grace

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Drain, wait, end the rest, then close."""
        app = _app_of(self.config)
        if app is not None:
            app.drain()
            loop = asyncio.get_running_loop()
            end = loop.call_later(self.grace, app.end_runs)
            await super().shutdown(sockets)
            end.cancel()
        else:
            await super().shutdown(sockets)


def _app_of(config: uvicorn.Config) -> App | None:
    app: Any = config.loaded_app
    while app is not None and not isinstance(app, App):
        app = getattr(app, "app", None)
    return app


def _run(settings: Settings, sockets: list[socket] | None = None) -> None:
    # The application's own grace ends first; uvicorn's is the backstop.
    config = uvicorn.Config(
        partial(create_app, settings),
        factory=True,
        host=settings.host,
        port=settings.port,
        log_level="warning" if settings.log in ("notset", "info") else settings.log,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_timeout) + 5,
        timeout_keep_alive=75,
        interface="asgi3",
        ws="none",
        workers=settings.workers,
    )
    Server(config, settings.shutdown_timeout).run(sockets)


def serve(settings: Settings) -> int:
    """Serve until told to stop; returns the exit status."""
    if settings.workers == 1:
        _run(settings)
        return 0
    config = uvicorn.Config("optillm", host=settings.host, port=settings.port, workers=settings.workers)
    listening = config.bind_socket()
    Multiprocess(config, target=partial(_run, settings), sockets=[listening]).run()
    return 0
