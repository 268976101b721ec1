"""Run the server with uvicorn: one process or several, with an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import signal
import sys
from dataclasses import replace
from multiprocessing.context import ForkProcess
from socket import socket
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn

from optillm.core.registry import Registry
from optillm.faces.app import App
from optillm.protocol.errors import OptiError
from optillm.settings import Settings, SettingsError
from optillm.store.places import installed

log = logging.getLogger("optillm")

CANNOT_START = 3
"""The exit status of a process that could not start, also uvicorn's."""


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


COLLECT_AFTER, OLDER_AFTER = 10_000, 5
"""New objects after which Python looks for cycles among them; every fifth time, also among older ones."""


def _spare_the_collector() -> None:
    """Keep collections of cyclic garbage, during which the loop stands still, few and short.

    What exists at the start stays for good and need not be looked at again. Requests make almost no
    cycles, so that looking less often costs nothing; but a look takes as long as what it looks at.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, OLDER_AFTER, 10)


def run_app(app: App, sockets: list[socket] | None = None) -> None:
    """Serve an application in this process, until a signal says to stop."""
    settings = app.settings
    # The application's own grace ends first; uvicorn's is the backstop.
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning" if settings.log in ("notset", "info") else settings.log,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.shutdown_timeout) + 5,
        timeout_keep_alive=75,
        interface="asgi3",
        lifespan="on",
        ws="none",
        workers=settings.workers,
    )
    config.load()
    _spare_the_collector()
    Server(config, settings.shutdown_timeout).run(sockets)


def serve(settings: Settings, registry: Registry) -> int:
    """Serve until told to stop; returns the exit status.

    Raises:
        SettingsError: what the settings ask for cannot be opened.
    """
    if settings.workers == 1:
        run_app(App(settings, registry))
        return 0
    config = uvicorn.Config("optillm", host=settings.host, port=settings.port, workers=settings.workers)
    with config.bind_socket() as listening, TemporaryDirectory(prefix="optillm-") as folder:
        # Any worker must be able to show a run, and know what was learned, whichever made it.
        if not settings.store and installed():
            settings = replace(settings, store=f"sqlite:///{folder}/store.db", store_ends=True)
        elif not settings.store:
            log.warning("each worker knows its own runs alone: pip install 'optillm[store]' lets them share")
        return _supervise(settings, registry, listening)


def _supervise(settings: Settings, registry: Registry, listening: socket) -> int:
    """Keep the workers running, until a signal says to stop; then let them end in order."""
    # Forked before any loop or thread exists; settings and loaded code are shared, not copied.
    processes = multiprocessing.get_context("fork")
    signals = {signal.SIGINT, signal.SIGTERM}
    # Blocked here and taken by sigtimedwait below; the workers unblock them for themselves.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def start() -> ForkProcess:
        worker = processes.Process(target=_worker, args=(settings, registry, listening))
        worker.start()
        return worker

    workers = [start() for _ in range(settings.workers)]
    status = 0
    while status == 0 and signal.sigtimedwait(signals, 1) is None:
        for i, worker in enumerate(workers):
            if worker.exitcode == CANNOT_START:
                # Another one would end like it.
                status = CANNOT_START
            elif not worker.is_alive():
                log.error("worker %s ended with status %s; starting another", worker.pid, worker.exitcode)
                workers[i] = start()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
    return status


def _worker(settings: Settings, registry: Registry, listening: socket) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    logging.basicConfig(level=logging.INFO if settings.log == "notset" else settings.log.upper())
    try:
        run_app(App(settings, registry), [listening])
    except (SettingsError, OptiError) as error:
        log.error("%s", error)
        sys.exit(CANNOT_START)
