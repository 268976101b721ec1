"""Deep immutability for JSON values, so that nothing of a request can be changed by a technique."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import Any

import msgspec

# Most of what there is; told apart by exact type, which is much quicker than asking for an interface.
_SCALARS = frozenset({str, int, float, bool, NoneType})


def empty() -> Mapping[str, Any]:
    """An empty read-only mapping, as a default of frozen classes."""
    return MappingProxyType({})


def freeze(value: Any) -> Any:
    """A read-only copy of a JSON value: objects become mapping proxies, arrays tuples."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict or isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    if kind is list or isinstance(value, list | tuple):
        return tuple([freeze(item) for item in value])
    return value


def thaw(value: Any) -> Any:
    """A private, plain (dict and list) copy of a JSON value, frozen or not."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


def to_json(value: Any) -> bytes:
    """JSON bytes of a value, frozen or not."""
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if type(value) is MappingProxyType or isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
