"""Where a store is: its URL, and what can be known of it before it is opened.

Nothing here imports the database libraries: a server that remembers nothing starts without them.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

from optillm.settings import SettingsError

SCHEMA = 2
"""The version of the tables that this program writes."""

BUSY_SECONDS = 5.0
"""How long a change waits for another process that holds the store's lock."""

NEWER = "it was made by a newer OptiLLM (tables of version {found}; this one knows {known}): update OptiLLM"
"""Why a store of the future is left alone."""

_POSTGRES = ("postgresql://", "postgres://", "postgresql+psycopg://")


INSTALL = "needs an optional library: pip install 'optillm[store]'"


def installed() -> bool:
    """Whether the libraries of the extra ``store`` are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("sqlalchemy", "aiosqlite"))


def sqlite_path(url: str) -> Path | None:
    """The file of a ``sqlite:///PATH`` URL; None of any other."""
    prefix = "sqlite:///"
    return Path(url.removeprefix(prefix)).expanduser() if url.startswith(prefix) else None


def named(url: str) -> str:
    """The store as it may be shown to its operator: without a password."""
    if not url:
        return "the store in memory"
    if (path := sqlite_path(url)) is not None:
        return str(path)
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check(url: str) -> None:
    """See whether a store can be opened, as far as that costs nothing: no server is asked.

    Args:
        url: empty for memory, ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Raises:
        SettingsError: another kind of URL, a file that cannot be written or is something else, a
            newer store, or a missing driver.
    """
    if not url:
        return
    if not installed():
        raise SettingsError(f"--store {INSTALL}")
    if (path := sqlite_path(url)) is not None:
        _check_file(path)
    elif url.startswith(_POSTGRES):
        _check_server(url)
    else:
        # What was given is not shown: it may hold a password.
        raise SettingsError("--store must be empty, sqlite:///PATH or postgresql://USER@HOST/DATABASE")


def _check_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise SettingsError(f"--store: cannot open {path}: {error.strerror}") from None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=0.1)) as db:
            found = db.execute("SELECT version FROM optillm_schema").fetchone()
    except sqlite3.OperationalError:
        # Not made yet, or somebody works on it: the first use will tell.
        return
    except sqlite3.DatabaseError as error:
        raise SettingsError(f"--store: cannot open {path}: {error}") from None
    if found and found[0] > SCHEMA:
        raise SettingsError(f"--store: cannot open {path}: {NEWER.format(found=found[0], known=SCHEMA)}")


def _check_server(url: str) -> None:
    try:
        parts = urlsplit(url)
        # Read for its check: it must be a number.
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"--store is not a URL: {error}") from None
    if importlib.util.find_spec("psycopg") is None:
        raise SettingsError("--store: PostgreSQL needs an optional library: pip install 'optillm[postgres]'")
