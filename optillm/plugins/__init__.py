"""Where approaches come from: the package, installed entry points, and plugin files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

import optillm.approaches
from optillm.core.registry import Approach, Registry, approaches_in
from optillm.plugins.old import adapted

ENTRY_POINT = "optillm.approaches"

log = logging.getLogger("optillm")

_SLUG = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def builtin_registry() -> Registry:
    """The package's own approaches and those of installed packages (entry point group
    ``optillm.approaches``, each naming an ``Approach``).
    """
    return load_registry()


def load_registry(plugins_dir: str = "", *, allow_override: bool = False) -> Registry:
    """All approaches. What cannot be loaded is reported in the log; the rest is there.

    Args:
        plugins_dir: a folder with plugins, ``*.py`` and ``optillm/plugins/*.py``; empty for none.
        allow_override: a plugin may take the name of an approach that is there already.
    """
    built_in = approaches_in(optillm.approaches)
    found = _installed()
    if plugins_dir:
        found += _from_folder(Path(plugins_dir).expanduser())
    taken = {a.slug: "a built-in approach" for a in built_in}
    extra: dict[str, Approach] = {}
    for item, where in found:
        if not _SLUG.fullmatch(item.slug) or item.slug == "auto":
            log.error("%s: '%s' cannot be a name: letters, digits and _, and not auto", where, item.slug)
        elif item.slug in taken and not allow_override:
            log.error("%s: '%s' is the name of %s (--allow-override)", where, item.slug, taken[item.slug])
        else:
            taken[item.slug] = where
            extra[item.slug] = item
    return Registry(built_in, extra.values())


Found = list[tuple[Approach, str]]


def _installed() -> Found:
    found: Found = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT):
        where = f"entry point {entry.value}"
        try:
            item = entry.load()
        # An edge: what other people's code does at its import must not stop the server.
        except (Exception, SystemExit):
            log.exception("%s cannot be loaded", where)
            continue
        if isinstance(item, Approach):
            found.append((item, where))
        else:
            log.error("%s is not an Approach", where)
    return found


def _from_folder(folder: Path) -> Found:
    found: Found = []
    for path in sorted([*folder.glob("*.py"), *(folder / "optillm" / "plugins").glob("*.py")]):
        if path.name.startswith("_"):
            continue
        try:
            module = _import(path)
        # An edge, as above.
        except (Exception, SystemExit) as error:
            log.error("plugin %s, line %s: %s: %s", path, _line(error, path), type(error).__name__, error)
            continue
        declared = [item for item in vars(module).values() if isinstance(item, Approach)]
        if declared:
            found += [(item, f"plugin {path}") for item in declared]
        elif isinstance(getattr(module, "SLUG", None), str) and callable(getattr(module, "run", None)):
            found.append((adapted(module, path), f"plugin {path}"))
        else:
            log.error("plugin %s has neither an Approach nor SLUG and run", path)
    return found


def _import(path: Path) -> ModuleType:
    # The folder is part of the name: two folders may have files of the same name.
    folder = hashlib.sha256(str(path.parent.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"optillm_plugin_{folder}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    # As every import does: dataclasses and pickle look a module up by its name.
    sys.modules.update({spec.name: module})
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _line(error: BaseException, path: Path) -> int | str:
    """The line of the plugin at which it failed to load."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    return "?" if line is None else line
