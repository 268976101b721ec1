"""``optillm.wsgi:app`` for WSGI servers: ``gunicorn -w 1 --threads 4 optillm.wsgi:app``.

Settings come from the environment and the config file it names.
"""

from __future__ import annotations

import logging
from typing import Any


def create_app() -> Any:
    """A WSGI application around a server of its own, whose loop runs in a thread.

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
        logging.getLogger("optillm").warning(warning)
    application: Any = App(settings, registry)
    return ASGIMiddleware(application)


def __getattr__(name: str) -> Any:
    # Made when the WSGI server asks for it: importing this module does nothing.
    if name == "app":
        return create_app()
    raise AttributeError(name)
