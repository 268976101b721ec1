"""Settings from flags, environment and the config file they name."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optillm.core.params import Param, spread
from optillm.core.plan import parse_spec
from optillm.core.registry import Registry
from optillm.protocol.errors import InvalidRequest
from optillm.settings import cepo_file, files, providers
from optillm.settings.model import Settings, SettingsError, UpstreamSettings
from optillm.settings.options import (
    OPTIONS,
    CommandLine,
    Option,
    flags_of,
    param_key,
    parser,
)

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy")


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    registry: Registry,
    has: Callable[[str], bool] = providers.installed,
) -> Settings:
    """Settings of a command line and an environment.

    Args:
        argv: the flags.
        environ: the variables.
        registry: the approaches, whose parameters are settings too.
        has: what is installed.

    Raises:
        SettingsError: a bad value; one sentence naming it and what is allowed.
        SystemExit: --help or --version.
    """
    return _resolve(flags_of(parser(registry), argv), environ, registry, has)


def from_command_line(argv: Sequence[str], registry: Registry) -> Settings:
    """Settings of this process: its flags and its environment."""
    return load(argv, os.environ, registry)


def from_flags(flags: Mapping[str, Any], registry: Registry) -> Settings:
    """Settings of this process, whose flags have been parsed already."""
    return _resolve(flags, os.environ, registry, providers.installed)


def from_environment(registry: Registry) -> Settings:
    """Settings of a process that has no flags of ours."""
    return load((), os.environ, registry)


def plugins_of(argv: Sequence[str]) -> tuple[str, bool]:
    """The plugin folder and whether plugins may override, before anything else is read.

    Plugins declare parameters, and those are flags: so they are loaded before flags are parsed.
    """
    values = _early(argv, ("plugins_dir", "allow_override"))
    return str(values["plugins_dir"] or ""), bool(values["allow_override"])


def store_of(argv: Sequence[str]) -> str:
    """The store's URL, for commands that need nothing else; empty if none is set.

    Raises:
        SettingsError: it is no URL of a store, or the config file cannot be read.
    """
    return str(_early(argv, ("store",))["store"] or "")


def _early(argv: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Some settings of this process, whatever else is on its command line."""
    early = CommandLine(add_help=False, allow_abbrev=False)
    needed = {o.name: o for o in OPTIONS if o.name in ("config", *names)}
    for option in needed.values():
        option.add_to(early)
    flags = vars(early.parse_known_args(list(argv))[0])
    path, config = _config(flags, os.environ)
    return {o.name: _value(o, flags, os.environ, config, path) for o in needed.values()}


def _resolve(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    registry: Registry,
    has: Callable[[str], bool],
) -> Settings:
    path, config = _config(flags, environ)
    values = {o.name: _value(o, flags, environ, config, path) for o in OPTIONS}
    given = {name: value for name, value in values.items() if value is not None}
    settings = Settings(
        **given,
        params=_params(registry, flags, environ, _filed(registry, config, path, values)),
        upstreams=_upstreams(config, given.get("base_url", ""), environ, path, has),
        keys=files.keys(config, path),
        prices=files.prices(config, path),
        proxied=any(environ.get(name) or environ.get(name.upper()) for name in _PROXIES),
    )
    _check(settings, registry)
    return settings


def _config(flags: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    path = flags.get("config") or environ.get("OPTILLM_CONFIG") or ""
    return path, files.read(path)


def _value(
    option: Option,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config: Mapping[str, Any],
    path: str,
) -> Any:
    """The checked value of an option, or None if nobody sets it. An empty variable sets nothing."""
    if flags.get(option.name) is not None:
        return option.parse(flags[option.name], option.flag_names[0])
    if environ.get(option.env_name):
        return option.parse(environ[option.env_name], option.env_name)
    if option.name in config:
        return option.check(config[option.name], f"{path}: {option.name}")
    return None


def _filed(
    registry: Registry, config: Mapping[str, Any], path: str, values: Mapping[str, Any]
) -> Mapping[str, Mapping[str, tuple[str, Any]]]:
    """Parameters in files, not checked yet: by slug and short name, where it stands and its value."""
    out: dict[str, dict[str, tuple[str, Any]]] = {
        slug: {name: (f"{path}: approaches.{slug}.{name}", value) for name, value in table.items()}
        for slug, table in files.params(config, registry, path).items()
    }
    if values["cepo_config_file"]:
        out.setdefault("cepo", {}).update(cepo_file.read(values["cepo_config_file"], registry))
    return out


def _params(
    registry: Registry,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    filed: Mapping[str, Mapping[str, tuple[str, Any]]],
) -> Mapping[str, Mapping[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for approach in registry:
        for param in approach.params:
            source = _param(param, flags, environ, filed.get(approach.slug, {}))
            if source is not None:
                out.setdefault(approach.slug, {})[param.name] = source[0]
    return MappingProxyType(
        {slug: MappingProxyType(spread(registry[slug].params, values)) for slug, values in out.items()}
    )


def _param(
    param: Param,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    filed: Mapping[str, tuple[str, Any]],
) -> tuple[Any] | None:
    """The checked value of a parameter (which may be None), or None if nobody sets it."""
    flag = flags.get(param_key(param))
    variable = next((name for name in param.env_names if environ.get(name)), None)
    try:
        if flag is not None:
            where = param.flag_names[0]
            return (param.parse(flag),)
        if variable is not None:
            where = variable
            return (param.parse(environ[variable]),)
        if param.name in filed:
            where, value = filed[param.name]
            return (param.check(value),)
    except (ValueError, InvalidRequest) as error:
        raise SettingsError(f"{where}: {error}") from None
    return None


def _upstreams(
    config: Mapping[str, Any],
    base_url: str,
    environ: Mapping[str, str],
    path: str,
    has: Callable[[str], bool],
) -> tuple[UpstreamSettings, ...]:
    """The upstreams of the config file; before them the one of a base URL, or of a provider's key."""
    configured = files.upstreams(config, environ, path)
    if configured and not base_url:
        return configured
    first = providers.select(base_url, environ, has)
    if any(u.name == first.name for u in configured):
        raise SettingsError(f"{path}: upstreams.{first.name}: the name is that of --base-url's upstream")
    return (first, *configured)


def _check(settings: Settings, registry: Registry) -> None:
    """What depends on more than one setting, or on files."""
    if settings.ssl_cert_path:
        _check_bundle(settings.ssl_cert_path)
    if settings.plugins_dir and not Path(settings.plugins_dir).expanduser().is_dir():
        raise SettingsError(f"--plugins-dir: there is no folder {settings.plugins_dir}")
    if settings.approach != "auto":
        try:
            parse_spec(settings.approach, registry, "--approach")
        except InvalidRequest as error:
            raise SettingsError(f"--approach: {error.message}") from None
    if settings.guarded and settings.forwards_bearer:
        # Elsewhere a stranger's token would be let in to use what the server pays for.
        closed = [u.name for u in settings.upstreams if u.kind not in ("openai", "litellm")]
        if closed:
            raise SettingsError(
                f"--forward-bearer together with keys needs upstreams that take a client's own token; "
                f"{', '.join(closed)} does not"
            )


def _check_bundle(path: str) -> None:
    if not Path(path).is_file():
        raise SettingsError(f"--ssl-cert-path: there is no file {path}")
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(f"--ssl-cert-path: {path} is not a CA bundle: {error}") from None
