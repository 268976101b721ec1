"""Deep immutability for JSON values, so that nothing of a request can be changed by a technique."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, NoReturn

import msgspec

# Most of what there is; told apart by exact type, which is much quicker than asking for an interface.
_SCALARS = frozenset({str, int, float, bool, NoneType})


class Frozen(dict[str, Any]):
    """A JSON object that cannot be changed. A ``dict``, so that encoders and libraries take it as it is."""

    __slots__ = ()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a frozen object cannot be changed; make a new one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def empty() -> Mapping[str, Any]:
    """An empty read-only mapping, as a default of frozen classes."""
    return Frozen()


def freeze(value: Any) -> Any:
    """A read-only copy of a JSON value: objects become :class:`Frozen`, arrays tuples."""
    kind = type(value)
    if kind in _SCALARS or kind is Frozen:
        return value
    if kind is dict or isinstance(value, Mapping):
        return Frozen({key: freeze(item) for key, item in value.items()})
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
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
