"""The YAML file with the configuration of ``cepo``: every key known, every value in its range."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optillm.core.params import Param, build
from optillm.core.registry import Registry
from optillm.protocol.errors import InvalidRequest
from optillm.settings.model import SettingsError

FLAG = "--cepo-config-file"


def read(path: str, registry: Registry) -> Mapping[str, tuple[str, Any]]:
    """By the short name of each parameter in the file, where it stands and its value.

    The keys are the parameters' names, with or without ``cepo_``.

    Raises:
        SettingsError: it cannot be read, is not YAML, has an unknown key, or a value that is of a wrong type,
            out of range or at odds with another; names the file, the key, and what is allowed.
    """
    if "cepo" not in registry:
        raise SettingsError(f"{FLAG}: this server has no technique 'cepo'")
    approach = registry["cepo"]
    names: dict[str, Param] = {}
    for param in approach.params:
        names |= {param.name: param, param.request_name: param}
    out: dict[str, tuple[str, Any]] = {}
    values: dict[str, Any] = {}
    for key, value in _content(path).items():
        if key not in names:
            allowed = ", ".join(param.name for param in approach.params)
            raise SettingsError(f"{path}: unknown key {key!r}; allowed: {allowed}")
        param, where = names[key], f"{path}: {key}"
        if param.name in out:
            raise SettingsError(f"{where}: '{param.name}' is there twice, with and without 'cepo_'")
        try:
            values[param.name] = param.check(value, key)
        except InvalidRequest as error:
            raise SettingsError(f"{where}: {error.message}") from None
        out[param.name] = (where, value)
    try:
        build(approach.params_class, approach.params, values)
    except InvalidRequest as error:
        raise SettingsError(f"{path}: {error.message}") from None
    return out


def _content(path: str) -> Mapping[Any, Any]:
    # Few servers have such a file.
    import yaml

    try:
        content = yaml.safe_load(Path(path).expanduser().read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{FLAG}: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{FLAG}: {path} is not YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must be a mapping of parameters to values, not a {_kind(content)}")
    return content


def _kind(content: Any) -> str:
    return "list" if isinstance(content, list) else "single value"
