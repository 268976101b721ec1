"""The config file: TOML, every key known and of the right type."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optillm.core.params import Param
from optillm.core.registry import Registry
from optillm.core.usage import Price
from optillm.settings.model import SCOPES, Key, SettingsError, UpstreamSettings, sha256
from optillm.settings.options import OPTIONS

KINDS = ("openai", "azure", "litellm", "llamacpp")
TABLES = MappingProxyType(
    {"upstreams": dict, "routes": dict, "keys": list, "prices": dict, "approaches": dict}
)

_UPSTREAM = MappingProxyType(
    {
        "kind": str, "base_url": str, "key": str, "key_env": str, "api_version": str,
        "model_path": str, "models": list,
    }
)  # fmt: skip
_KEY = MappingProxyType({"tenant": str, "sha256": str, "key": str, "scopes": list})
_PRICE = MappingProxyType({"input": float, "output": float})
_WORDS = MappingProxyType(
    {
        str: "text", bool: "true or false", int: "an integer", float: "a number", list: "a list",
        dict: "a table",
    }
)  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read(path: str) -> Mapping[str, Any]:
    """The file's settings and tables, by name; of tables only the outer type has been checked.

    Raises:
        SettingsError: it cannot be read, is not TOML, or has an unknown key; names file and key.
    """
    if not path:
        return MappingProxyType({})
    try:
        content = tomllib.loads(Path(path).expanduser().read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config: {path} is not TOML: {error}") from None
    known = {o.name: None for o in OPTIONS if o.name != "config"} | dict(TABLES)
    for name, value in content.items():
        if name not in known:
            raise SettingsError(f"{path}: unknown key '{name}'; allowed: {', '.join(sorted(known))}")
        if name in TABLES:
            _typed(value, TABLES[name], f"{path}: {name}")
    return content


def upstreams(
    config: Mapping[str, Any], environ: Mapping[str, str], path: str
) -> tuple[UpstreamSettings, ...]:
    """``[upstreams.NAME]`` in the order written, with what ``[routes]`` sends to each."""
    found = {
        name: _upstream(name, value, environ, path) for name, value in config.get("upstreams", {}).items()
    }
    for pattern, name in config.get("routes", {}).items():
        where = f"{path}: routes.{pattern}"
        if _typed(name, str, where) not in found:
            raise SettingsError(f"{where}: there is no upstream '{name}'; allowed: {', '.join(found)}")
    return tuple(_routed(u, config.get("routes", {})) for u in found.values())


def keys(config: Mapping[str, Any], path: str) -> tuple[Key, ...]:
    """``[[keys]]``."""
    found: dict[str, Key] = {}
    for i, value in enumerate(config.get("keys", ())):
        key = _key(value, f"{path}: keys[{i}]")
        if key.sha256 in found:
            raise SettingsError(f"{path}: keys[{i}] is the same key as another one")
        found[key.sha256] = key
    return tuple(found.values())


def prices(config: Mapping[str, Any], path: str) -> Mapping[str, Price]:
    """``[prices.MODEL]``: US dollars per million tokens."""
    out: dict[str, Price] = {}
    for model, value in config.get("prices", {}).items():
        where = f"{path}: prices.{model}"
        table = _table(value, _PRICE, where)
        for name in _PRICE:
            if name not in table:
                raise SettingsError(f"{where} needs '{name}'")
            if not (math.isfinite(table[name]) and table[name] >= 0):
                raise SettingsError(f"{where}.{name} must be a number of at least 0, not {table[name]}")
        out[model] = Price(float(table["input"]), float(table["output"]))
    return MappingProxyType(out)


def params(config: Mapping[str, Any], registry: Registry, path: str) -> Mapping[str, Mapping[str, Any]]:
    """``[approaches.SLUG]``: by slug and short name, not checked yet."""
    out: dict[str, dict[str, Any]] = {}
    for slug, value in config.get("approaches", {}).items():
        where = f"{path}: approaches.{slug}"
        if slug not in registry:
            allowed = ", ".join(a.slug for a in registry)
            raise SettingsError(f"{path}: unknown key 'approaches.{slug}'; allowed: {allowed}")
        names: dict[str, Param] = {}
        for param in registry[slug].params:
            names |= {param.name: param, param.request_name: param}
        for name, item in _typed(value, dict, where).items():
            if name not in names:
                raise SettingsError(f"{where}: unknown key '{name}'; allowed: {', '.join(names) or 'none'}")
            out.setdefault(slug, {})[names[name].name] = item
    return out


def _upstream(name: str, value: Any, environ: Mapping[str, str], path: str) -> UpstreamSettings:
    where = f"{path}: upstreams.{name}"
    table = _table(value, _UPSTREAM, where)
    kind = table.get("kind", "openai")
    if kind not in KINDS:
        raise SettingsError(f"{where}.kind must be one of {', '.join(KINDS)}, not {kind!r}")
    for needed in {"openai": ("base_url",), "azure": ("base_url", "api_version")}.get(kind, ()):
        if not table.get(needed):
            raise SettingsError(f"{where} needs '{needed}'")
    if "base_url" in table:
        next(o for o in OPTIONS if o.name == "base_url").check(table["base_url"], f"{where}.base_url")
    key = table.get("key")
    if variable := table.get("key_env"):
        key = environ.get(variable)
        if not key:
            raise SettingsError(f"{where} wants its key in the variable {variable}, which is not set")
    return UpstreamSettings(
        name,
        kind,
        table.get("base_url", ""),
        key or None,
        table.get("api_version", ""),
        table.get("model_path", ""),
        _texts(table.get("models", []), f"{where}.models"),
    )


def _routed(upstream: UpstreamSettings, routes: Mapping[str, str]) -> UpstreamSettings:
    more = (pattern for pattern, name in routes.items() if name == upstream.name)
    names = tuple(dict.fromkeys((*upstream.models, *more)))
    return UpstreamSettings(
        upstream.name,
        upstream.kind,
        upstream.base_url,
        upstream.key,
        upstream.api_version,
        upstream.model_path,
        names,
    )


def _key(value: Any, where: str) -> Key:
    table = _table(value, _KEY, where)
    if not table.get("tenant"):
        raise SettingsError(f"{where} needs 'tenant'")
    if ("key" in table) == ("sha256" in table) or table.get("key") == "":
        raise SettingsError(f"{where} needs 'sha256' or 'key', one of them")
    digest = sha256(table["key"]) if "key" in table else table["sha256"].lower()
    if not _SHA256.fullmatch(digest):
        raise SettingsError(f"{where}.sha256 must be 64 hexadecimal digits: printf %s KEY | sha256sum")
    scopes = _texts(table.get("scopes", list(SCOPES)), f"{where}.scopes")
    for scope in scopes:
        if scope not in SCOPES:
            raise SettingsError(f"{where}.scopes may hold {', '.join(SCOPES)}, not {scope!r}")
    return Key(table["tenant"], digest, scopes)


def _table(value: Any, fields: Mapping[str, type], where: str) -> dict[str, Any]:
    """A table whose keys are known and of their types."""
    table: dict[str, Any] = _typed(value, dict, where)
    for name, item in table.items():
        if name not in fields:
            raise SettingsError(f"{where}: unknown key '{name}'; allowed: {', '.join(fields)}")
        _typed(item, fields[name], f"{where}.{name}")
    return table


def _typed(value: Any, kind: type, where: str) -> Any:
    # What was given is not shown: it may be a key.
    if type(value) is not kind and not (kind is float and type(value) is int):
        given = _WORDS.get(type(value), "a date or time")
        raise SettingsError(f"{where} must be {_WORDS[kind]}, not {given}")
    return value


def _texts(values: list[Any], where: str) -> tuple[str, ...]:
    return tuple(_typed(value, str, f"{where}[{i}]") for i, value in enumerate(values))
