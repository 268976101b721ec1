"""Settings: the only reader of flags, environment variables and configuration files.

A flag beats its variable, which beats the config file, which beats the default.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optillm.core.frozen import empty
from optillm.core.params import Param
from optillm.core.plan import parse_spec
from optillm.core.registry import Registry
from optillm.core.usage import Price
from optillm.protocol.errors import InvalidRequest
from optillm.version import __version__

log = logging.getLogger("optillm")


class SettingsError(ValueError):
    """A setting that stops the start; the message is one sentence for people."""


@dataclass(frozen=True)
class UpstreamSettings:
    """One named upstream.

    Args:
        name: what it is called in traces, routes and errors.
        kind: openai, azure, litellm or llamacpp.
        base_url, key, api_version: where it is and how to enter.
        model_path: of a local model.
        models: names that are routed to it; a trailing ``*`` matches any ending.
    """

    name: str
    kind: str = "openai"
    base_url: str = ""
    key: str | None = field(default=None, repr=False)
    api_version: str = ""
    model_path: str = ""
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """A client key: the tenant that it names, and the SHA-256 of the key in hex."""

    tenant: str
    sha256: str = field(repr=False)


@dataclass(frozen=True)
class Settings:
    """All settings of a server; see ``optillm --help`` for what each does."""

    approach: str = "auto"
    model: str = "gpt-4o-mini"
    base_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    optillm_api_key: str = field(default="", repr=False)
    n: int = 1
    log: str = "info"
    launch_gui: bool = False
    plugins_dir: str = ""
    allow_override: bool = False
    log_conversations: bool = False
    conversation_log_dir: str = "~/.optillm/conversations"
    ssl_verify: bool = True
    ssl_cert_path: str = ""
    batch_mode: bool = False
    batch_size: int = 4
    batch_wait_ms: int = 50
    config: str = ""
    workers: int = 1
    max_body_mb: float = 32.0
    max_upstream_calls: int = 256
    max_concurrency: int = 16
    upstream_concurrency: int = 256
    request_timeout: float = 600.0
    connect_timeout: float = 5.0
    shutdown_timeout: float = 30.0
    store: str = ""
    stream_progress: str = "reasoning"
    forward_bearer: bool | None = None
    n_mode: str = "auto"
    retries: int = 2
    default_max_tokens: int = 4096
    helper_max_tokens: int = 2048
    intermediate_max_tokens: int = 4096
    upstreams: tuple[UpstreamSettings, ...] = ()
    keys: tuple[Key, ...] = ()
    prices: Mapping[str, Price] = field(default_factory=empty)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=empty)

    @property
    def guarded(self) -> bool:
        """Whether clients need a key."""
        return bool(self.optillm_api_key or self.keys)

    @property
    def forwards_bearer(self) -> bool:
        """Whether a client's own token is passed on to the upstream."""
        return not self.guarded if self.forward_bearer is None else self.forward_bearer


@dataclass(frozen=True)
class Option:
    """One setting: its names, its type and range, and its help."""

    name: str
    help: str
    flags: tuple[str, ...] = ()
    env: str = ""
    choices: tuple[str, ...] = ()
    ge: float | None = None
    le: float | None = None

    @property
    def flag_names(self) -> tuple[str, ...]:
        """All its flags."""
        dashed = "--" + self.name.replace("_", "-")
        return tuple(dict.fromkeys((dashed, "--" + self.name, *self.flags)))

    @property
    def env_name(self) -> str:
        """Its environment variable."""
        return self.env or f"OPTILLM_{self.name.upper()}"

    def parse(self, value: Any, where: str) -> Any:
        """A checked value from text or TOML; raises SettingsError naming ``where`` and the range."""
        default = getattr(Settings(), self.name)
        kind = bool if self.name == "forward_bearer" else type(default)
        try:
            parsed = _parse(value, kind)
        except ValueError:
            raise SettingsError(f"{where} must be {self._words(kind)}, not {value!r}") from None
        in_range = not isinstance(parsed, int | float) or isinstance(parsed, bool)
        in_range = in_range or (
            math.isfinite(parsed)
            and (self.ge is None or parsed >= self.ge)
            and (self.le is None or parsed <= self.le)
        )
        if not in_range or (self.choices and parsed not in self.choices):
            raise SettingsError(f"{where} must be {self._words(kind)}, not {value!r}")
        return parsed

    def _words(self, kind: type) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {int: "an integer", float: "a number", bool: "true, 1, yes, false, 0 or no"}
        bounds = [f"at least {self.ge:g}" if self.ge is not None else ""]
        bounds.append(f"at most {self.le:g}" if self.le is not None else "")
        return " ".join([words.get(kind, "text"), " and ".join(b for b in bounds if b)]).strip()


OPTIONS = (
    Option("approach", "technique when the request names none: a slug, a composition, or auto"),
    Option("model", "model when the request names none"),
    Option("base_url", "base URL of the upstream, up to /v1"),
    Option("host", "address to listen on"),
    Option("port", "port to listen on", ge=0, le=65535),
    Option("optillm_api_key", "key that clients must send as Bearer", env="OPTILLM_API_KEY"),
    Option("n", "answers per request when the request does not say", ge=1, le=128),
    Option(
        "log",
        "log level",
        choices=("notset", "debug", "info", "warning", "error", "critical"),
    ),
    Option("launch_gui", "open the web page after the start"),
    Option("plugins_dir", "folder with plugin files"),
    Option("allow_override", "let plugins replace built-in techniques of the same name"),
    Option("log_conversations", "write every request with its calls to a JSON Lines file"),
    Option("conversation_log_dir", "folder of the conversation log"),
    Option("ssl_verify", "verify the certificates of upstreams"),
    Option("ssl_cert_path", "CA bundle for upstreams"),
    Option("batch_mode", "old batching switch: limits calls in flight to the batch size"),
    Option("batch_size", "calls in flight at once in batch mode", ge=1, le=4096),
    Option("batch_wait_ms", "accepted for compatibility; nothing waits", ge=0),
    Option("config", "TOML file: upstreams, routes, keys, limits, defaults per technique"),
    Option("workers", "server processes", ge=1, le=256),
    Option("max_body_mb", "largest request body in MiB", ge=0.001, le=4096),
    Option("max_upstream_calls", "most upstream calls that one request may take", ge=1),
    Option("max_concurrency", "upstream calls of one request in flight at once", ge=1, le=4096),
    Option("upstream_concurrency", "calls in flight at once per upstream", ge=1),
    Option("request_timeout", "seconds until a request is ended", ge=0.01),
    Option("connect_timeout", "seconds to connect to an upstream", ge=0.01),
    Option("shutdown_timeout", "seconds that running requests get at shutdown", ge=0),
    Option("store", "where run traces are kept: empty for memory, or sqlite:///PATH"),
    Option(
        "stream_progress",
        "how a streaming client sees what a technique does",
        choices=("reasoning", "comments", "off"),
    ),
    Option("forward_bearer", "pass clients' own tokens upstream (default: when no key is set)"),
    Option("n_mode", "how several samples are asked for", choices=("auto", "native", "fanout")),
    Option("retries", "further tries after a failed upstream call", ge=0, le=20),
    Option("default_max_tokens", "token limit when the client gives none; 0 sends none", ge=0),
    Option("helper_max_tokens", "token limit of judges and critics", ge=1),
    Option("intermediate_max_tokens", "token limit of plans and steps", ge=1),
)


LEGACY = ("rstar-max-depth", "rstar-num-rollouts", "rstar-c")
"""Flags of techniques that are not there yet; accepted, with a warning."""


def load(argv: Sequence[str], environ: Mapping[str, str], registry: Registry) -> Settings:
    """Settings from flags, environment and the config file they name.

    Raises:
        SettingsError: a bad value; one sentence naming it and what is allowed.
        SystemExit: --help or an unknown flag.
    """
    command_line = parser(registry)
    namespace, unknown = command_line.parse_known_args(argv)
    if left := _without_legacy(unknown):
        command_line.error(f"unknown arguments: {' '.join(left)}")
    flags = vars(namespace)
    values: dict[str, Any] = {}
    path = flags.get("config") or environ.get("OPTILLM_CONFIG") or ""
    filed = _read_config(path) if path else {}
    known = {o.name for o in OPTIONS} | {"upstreams", "keys", "prices", "approaches"}
    for name in filed:
        if name not in known:
            raise SettingsError(f"{path}: unknown setting '{name}'; known: {', '.join(sorted(known))}")
    for option in OPTIONS:
        if flags.get(option.name) is not None:
            values[option.name] = option.parse(flags[option.name], option.flag_names[0])
        elif environ.get(option.env_name):
            values[option.name] = option.parse(environ[option.env_name], option.env_name)
        elif option.name in filed:
            values[option.name] = option.parse(filed[option.name], f"{path}: {option.name}")
    values["params"] = _params(registry, flags, environ, filed.get("approaches", {}), path)
    values["upstreams"] = _upstreams(filed, values, environ, path)
    values["keys"] = tuple(_key(k, path) for k in filed.get("keys", ()))
    values["prices"] = MappingProxyType(
        {m: Price(float(p["input"]), float(p["output"])) for m, p in filed.get("prices", {}).items()}
    )
    settings = Settings(**values)
    if settings.ssl_cert_path and not Path(settings.ssl_cert_path).is_file():
        raise SettingsError(f"--ssl-cert-path: there is no file {settings.ssl_cert_path}")
    if settings.approach not in ("auto", "none"):
        try:
            parse_spec(settings.approach, registry, "--approach")
        except InvalidRequest as error:
            raise SettingsError(f"--approach: {error.message}") from None
    return settings


def parser(registry: Registry) -> argparse.ArgumentParser:
    """The command line of the server: every setting and every parameter of every technique."""
    out = argparse.ArgumentParser(
        prog="optillm serve",
        description="OpenAI-compatible optimizing inference proxy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=None,
        allow_abbrev=False,
    )
    out.add_argument("--version", action="version", version=__version__)
    defaults = Settings()
    for option in OPTIONS:
        default = getattr(defaults, option.name)
        shown = f"{option.help} [{option.env_name}; default {default!r}]".replace("%", "%%")
        if isinstance(default, bool) or option.name == "forward_bearer":
            out.add_argument(
                *option.flag_names, dest=option.name, nargs="?", const="true", metavar="BOOL", help=shown
            )
            negated = "--no-" + option.name.replace("_", "-")
            out.add_argument(
                negated, dest=option.name, action="store_const", const="false", help=argparse.SUPPRESS
            )
        else:
            metavar = "{" + ",".join(option.choices) + "}" if option.choices else "VALUE"
            out.add_argument(*option.flag_names, dest=option.name, metavar=metavar, help=shown)
    taken = {f for o in OPTIONS for f in (*o.flag_names, "--no-" + o.name.replace("_", "-"))}
    for approach in registry:
        group = out.add_argument_group(f"{approach.slug}: {approach.title}")
        for param in approach.params:
            names = [f for f in param.flag_names if f not in taken]
            taken.update(names)
            described = (
                f"{param.rule.help}; {param.accepts} [{param.env_names[0]}; default {param.default!r}]"
            )
            group.add_argument(
                *names,
                dest=f"param {approach.slug} {param.name}",
                metavar="VALUE",
                nargs="?" if param.kind is bool else None,
                const="true" if param.kind is bool else None,
                help=described.replace("%", "%%"),
            )
    return out


def sha256(key: str) -> str:
    """The hex SHA-256 under which a key is kept."""
    return hashlib.sha256(key.encode()).hexdigest()


def plugins_of(argv: Sequence[str]) -> tuple[str, bool]:
    """The plugin folder and whether plugins may override, before anything else is read.

    Plugins declare parameters, and those are flags: so they are loaded before flags are parsed.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    names = {o.name: o for o in OPTIONS}
    for name in ("plugins_dir", "allow_override"):
        nargs = "?" if name == "allow_override" else None
        early.add_argument(*names[name].flag_names, dest=name, nargs=nargs, const="true" if nargs else None)
    flags = vars(early.parse_known_args(list(argv))[0])
    path = flags["config"] or os.environ.get("OPTILLM_CONFIG") or ""
    filed = _read_config(path) if path else {}
    found = {
        name: flags[name] or os.environ.get(names[name].env_name) or filed.get(name) or ""
        for name in ("plugins_dir", "allow_override")
    }
    override = names["allow_override"].parse(found["allow_override"] or False, "--allow-override")
    return str(found["plugins_dir"]), bool(override)


def _without_legacy(arguments: Sequence[str]) -> list[str]:
    """The arguments that were never known; old ones are dropped with a warning."""
    left: list[str] = []
    skip = False
    for i, argument in enumerate(arguments):
        name = argument.partition("=")[0].lstrip("-").replace("_", "-")
        if skip:
            skip = False
        elif argument.startswith("--") and (name in LEGACY or name.startswith("cepo-")):
            log.warning("%s belongs to a technique that this version does not have; ignored", argument)
            following = arguments[i + 1 : i + 2]
            skip = "=" not in argument and bool(following) and not following[0].startswith("--")
        else:
            left.append(argument)
    return left


def _parse(value: Any, kind: type) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        text = str(value).strip().lower()
        if text not in known:
            raise ValueError(value)
        return known[text]
    if kind is str and not isinstance(value, str):
        raise ValueError(value)
    if isinstance(value, bool):
        raise ValueError(value)
    return kind(value)


def _params(
    registry: Registry,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    filed: Mapping[str, Any],
    path: str,
) -> Mapping[str, Mapping[str, Any]]:
    for slug in filed:
        if slug not in registry:
            raise SettingsError(f"{path}: unknown technique '{slug}' in [approaches]")
        names = {p.name for p in registry[slug].params} | {p.request_name for p in registry[slug].params}
        for name in filed[slug]:
            if name not in names:
                raise SettingsError(f"{path}: '{slug}' has no parameter '{name}'")
    out: dict[str, Mapping[str, Any]] = {}
    for approach in registry:
        values = {
            param.name: value
            for param in approach.params
            if (value := _param(param, flags, environ, filed.get(approach.slug, {}), path)) is not _UNSET
        }
        if values:
            out[approach.slug] = MappingProxyType(values)
    return MappingProxyType(out)


_UNSET = object()


def _param(
    param: Param, flags: Mapping[str, Any], environ: Mapping[str, str], filed: Mapping[str, Any], path: str
) -> Any:
    flag = flags.get(f"param {param.slug} {param.name}")
    sources: list[tuple[str, Callable[[], Any]]] = []
    if flag is not None:
        sources.append((param.flag_names[0], lambda: param.parse(flag)))
    for name in param.env_names:
        if environ.get(name):
            sources.append((name, lambda name=name: param.parse(environ[name])))  # type: ignore[misc]
    for name in (param.name, param.request_name):
        if name in filed:
            sources.append((f"{path}: {name}", lambda name=name: param.check(filed[name])))  # type: ignore[misc]
    if not sources:
        return _UNSET
    where, read = sources[0]
    try:
        return read()
    except (ValueError, InvalidRequest) as error:
        raise SettingsError(f"{where}: {error}") from None


def _upstreams(
    filed: Mapping[str, Any], values: Mapping[str, Any], environ: Mapping[str, str], path: str
) -> tuple[UpstreamSettings, ...]:
    """The upstreams of the config file, else the one that flags and variables select."""
    configured = tuple(
        _upstream(name, table, environ, path) for name, table in filed.get("upstreams", {}).items()
    )
    if configured and not values.get("base_url"):
        return configured
    base_url = values.get("base_url", "")
    if key := environ.get("CEREBRAS_API_KEY"):
        first = UpstreamSettings("cerebras", "openai", base_url or "https://api.cerebras.ai/v1", key)
    elif key := environ.get("OPENAI_API_KEY"):
        first = UpstreamSettings("openai", "openai", base_url or "https://api.openai.com/v1", key)
    elif environ.get("AZURE_OPENAI_API_KEY") or environ.get("AZURE_API_BASE"):
        first = _azure(base_url, environ)
    elif base_url:
        first = UpstreamSettings("upstream", "openai", base_url, environ.get("OPTILLM_API_KEY") or None)
    elif any(name.endswith("_API_KEY") and name not in _OURS for name in environ if environ[name]):
        first = UpstreamSettings("litellm", "litellm")
    else:
        first = UpstreamSettings("embedded", "llamacpp")
    return (first, *configured)


def _azure(base_url: str, environ: Mapping[str, str]) -> UpstreamSettings:
    """Azure, by its key, or without one by the machine's managed identity."""
    base, version = base_url or environ.get("AZURE_API_BASE"), environ.get("AZURE_API_VERSION")
    if not base or not version:
        missing = "AZURE_API_BASE" if not base else "AZURE_API_VERSION"
        raise SettingsError(f"Azure needs {missing} besides AZURE_OPENAI_API_KEY, and it is not set")
    return UpstreamSettings("azure", "azure", base, environ.get("AZURE_OPENAI_API_KEY") or None, version)


_OURS = frozenset({"OPTILLM_API_KEY", "OPTILLM_OPTILLM_API_KEY"})


def _upstream(name: str, table: Mapping[str, Any], environ: Mapping[str, str], path: str) -> UpstreamSettings:
    known = {"kind", "base_url", "key", "key_env", "api_version", "model_path", "models"}
    for field_name in table:
        if field_name not in known:
            raise SettingsError(f"{path}: unknown field '{field_name}' of upstream '{name}'")
    kind = table.get("kind", "openai")
    if kind not in ("openai", "azure", "litellm", "llamacpp"):
        raise SettingsError(f"{path}: kind of upstream '{name}' must be openai, azure, litellm or llamacpp")
    if kind in ("openai", "azure") and not table.get("base_url"):
        raise SettingsError(f"{path}: upstream '{name}' needs a base_url")
    key = table.get("key")
    if variable := table.get("key_env"):
        key = environ.get(variable)
        if not key:
            raise SettingsError(f"{path}: upstream '{name}' wants its key in {variable}, which is not set")
    return UpstreamSettings(
        name,
        kind,
        table.get("base_url", ""),
        key,
        table.get("api_version", ""),
        table.get("model_path", ""),
        tuple(table.get("models", ())),
    )


def _key(table: Mapping[str, Any], path: str) -> Key:
    if not isinstance(table.get("tenant"), str) or not ("sha256" in table or "key" in table):
        raise SettingsError(f"{path}: each of [[keys]] needs a tenant, and sha256 or key")
    return Key(table["tenant"], str(table.get("sha256") or sha256(table["key"])).lower())


def _read_config(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config: {path}: {error}") from None


def from_command_line(argv: Sequence[str], registry: Registry) -> Settings:
    """Settings of this process: its flags and its environment."""
    return load(argv, os.environ, registry)


def from_environment(registry: Registry) -> Settings:
    """Settings of a process that has no flags of ours."""
    return load((), os.environ, registry)
