"""``optillm.wsgi:app`` for WSGI servers: ``gunicorn -w 1 --threads 4 optillm.wsgi:app``.

Settings come from the environment and the config file it names.
"""

from __future__ import annotations

from typing import Any


def create_app() -> Any:
    """A WSGI application around a server of its own, whose loop runs in a thread.

    Raises:
        MissingExtra: a2wsgi is not installed.
    """
    from optillm.faces.app import App
    from optillm.plugins import builtin_registry, load_registry
    from optillm.protocol.errors import MissingExtra
    from optillm.settings import from_environment

    try:
        from a2wsgi import ASGIMiddleware
    except ImportError:
        raise MissingExtra("wsgi", "the WSGI bridge") from None
    settings = from_environment(builtin_registry())
    registry = load_registry(settings.plugins_dir, allow_override=settings.allow_override)
    application: Any = App(settings, registry)
    return ASGIMiddleware(application)


def __getattr__(name: str) -> Any:
    # Made when the WSGI server asks for it: importing this module does nothing.
    if name == "app":
        return create_app()
    raise AttributeError(name)
