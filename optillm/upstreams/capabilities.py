"""What was learned about each model of each upstream: whether it honours ``n``, what it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from optillm.core.run import Route

_RENAMES = MappingProxyType({"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"})
# A field that is refused as such; not one whose value is out of the model's range ("supports at most").
_REFUSAL = re.compile(
    r"unsupported|(?:not|n't) (?:support|permitted|allowed)|deprecated|unrecogni[sz]ed|unknown|unexpected"
    r"|extra (?:fields?|inputs?)|only the default|\binstead\b",
    re.I,
)
_DROPPABLE = ("temperature", "stream_options", "seed", "top_p", "reasoning_effort")


class Capabilities:
    """A process's memory of refusals; keyed by upstream and model, holds no request's data.

    Args:
        n_mode: ``auto``, ``native`` or ``fanout``: how k samples of one prompt are asked for.
    """

    def __init__(self, n_mode: str = "auto") -> None:
        self._n_mode = n_mode
        self._fanout: set[tuple[str, str]] = set()
        self._refused: dict[tuple[str, str], frozenset[str]] = {}

    def n_mode(self, route: Route) -> str:
        """``native``, ``fanout`` or ``auto`` (not known yet)."""
        if self._n_mode == "auto" and _key(route) in self._fanout:
            return "fanout"
        return self._n_mode

    def learn_fanout(self, route: Route) -> None:
        """This model does not honour ``n``."""
        self._fanout.add(_key(route))

    def adapt(self, route: Route, body: dict[str, Any]) -> dict[str, Any]:
        """The body with the fields dropped or renamed that this model refuses."""
        refused = self._refused.get(_key(route))
        if not refused:
            return body
        out: dict[str, Any] = {}
        for name, value in body.items():
            if name not in refused:
                out[name] = value
            elif name in _RENAMES:
                out[_RENAMES[name]] = value
        return out

    def learn_refusal(self, route: Route, body: Mapping[str, Any], message: str) -> bool:
        """Learn from a 400 which field is refused; False if it concerns none that can go."""
        if not _REFUSAL.search(message):
            return False
        key = _key(route)
        known = self._refused.get(key, frozenset())
        for name in (*_RENAMES, *_DROPPABLE):
            named = re.search(rf"\b{name}\b", message) is not None
            if named and name in body and _RENAMES.get(name) not in known:
                self._refused[key] = known | {name}
                return True
        return False


def _key(route: Route) -> tuple[str, str]:
    return route.upstream.name, route.model
