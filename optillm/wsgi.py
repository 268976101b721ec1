"""``optillm.wsgi:app`` for WSGI servers: ``gunicorn -w 1 --threads 4 optillm.wsgi:app``.

Settings come from the environment and the config file it names.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

log = logging.getLogger("optillm")

STOP_SECONDS = 30.0
"""How long the end of the process waits for what is still to be written."""


class Bridge:
    """A WSGI application around an ASGI server whose loop runs in a thread of its own.

    Args:
        server: the application, with a coroutine ``stop``.
        middleware: makes the WSGI application of it and the loop.
    """

    def __init__(self, server: Any, middleware: Callable[..., Any]) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._wsgi = middleware(server, loop=self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="optillm")
        self._thread.start()
        self._closed = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        answer: Iterable[bytes] = self._wsgi(environ, start_response)
        return answer

    def close(self) -> None:
        """Write what waits to be written, close connections, end the loop. Once is enough."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        self._loop.close()


def create_app() -> Bridge:
    """The server of the environment's settings; it is closed when the process ends.

    Raises:
        MissingExtra: a2wsgi is not installed.
        SettingsError: a bad setting.
    """
    from optillm.faces.app import App
    from optillm.plugins import load_registry
    from optillm.protocol.errors import MissingExtra
    from optillm.settings import from_environment, plugins_of

    try:
        from a2wsgi import ASGIMiddleware
    except ImportError:
        raise MissingExtra("wsgi", "the WSGI bridge") from None
    folder, override = plugins_of(())
    registry = load_registry(folder, allow_override=override)
    settings = from_environment(registry)
    for warning in settings.warnings:
        log.warning(warning)
    bridge = Bridge(App(settings, registry), ASGIMiddleware)
    atexit.register(bridge.close)
    return bridge


def __getattr__(name: str) -> Any:
    # Made when the WSGI server asks for it: importing this module does nothing.
    if name == "app":
        return create_app()
    raise AttributeError(name)
