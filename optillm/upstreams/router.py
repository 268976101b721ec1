"""The upstreams of a process: built from settings, routed by model, listed together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from optillm.core.run import Route
from optillm.core.upstream import Upstream
from optillm.core.usage import Price
from optillm.protocol.errors import OptiError

LISTED_FOR = 60.0
"""Seconds that a model list stays fresh."""
FAILED_FOR = 2.0
"""Seconds until an upstream that did not list its models is asked again."""
NOT_ASKED = "not asked yet"


@dataclass(frozen=True)
class Named:
    """An upstream with the model names (or patterns with ``*``) that are routed to it."""

    upstream: Upstream
    models: tuple[str, ...] = ()


@dataclass
class _Listing:
    models: tuple[Mapping[str, Any], ...] = ()
    at: float = -math.inf
    error: str | None = NOT_ASKED
    asking: asyncio.Task[None] | None = None

    def fresh(self, now: float) -> bool:
        # A failure is asked about again sooner, so that an upstream that is back is seen.
        return now - self.at < (LISTED_FOR if self.error is None else FAILED_FOR)


class Router:
    """Finds the upstream of a model, and lists the models of all of them.

    Args:
        upstreams: in order; the first serves what no other claims.
        prices: by model name.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        upstreams: Sequence[Named],
        prices: Mapping[str, Price] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.upstreams = tuple(upstreams)
        self._prices = dict(prices or {})
        self._clock = clock or asyncio.get_running_loop().time
        self._listings = {named.upstream.name: _Listing() for named in upstreams}

    def resolve(self, model: str) -> Route:
        """The route of a model: by the closest pattern, by what upstreams list, else the first upstream."""
        if len(self.upstreams) == 1:
            return Route(self.upstreams[0].upstream, model, self._prices.get(model))
        matches = [
            (pattern == model, len(pattern), -i)
            for i, named in enumerate(self.upstreams)
            for pattern in named.models
            if pattern == model or fnmatchcase(model, pattern)
        ]
        if matches:
            return Route(self.upstreams[-max(matches)[2]].upstream, model, self._prices.get(model))
        for named in self.upstreams:
            if any(m["id"] == model for m in self._listings[named.upstream.name].models):
                return Route(named.upstream, model, self._prices.get(model))
        return Route(self.upstreams[0].upstream, model, self._prices.get(model))

    async def learn(self, model: str) -> None:
        """See to it that what upstreams list is known, if the model's route depends on it."""
        if len(self.upstreams) == 1:
            return
        if not any(fnmatchcase(model, p) for named in self.upstreams for p in named.models):
            await self._refresh(patient=False)

    async def models(self) -> list[Mapping[str, Any]]:
        """The models of all upstreams, each name once; a dead upstream's are left out."""
        await self._refresh(patient=False)
        merged: dict[str, Mapping[str, Any]] = {}
        for listing in self._listings.values():
            for model in listing.models:
                merged.setdefault(str(model["id"]), model)
        return list(merged.values())

    async def lists(self, model: str) -> bool:
        """Whether an upstream has a model of exactly this name."""
        if any(model in named.models for named in self.upstreams):
            return True
        return any(m["id"] == model for m in await self.models())

    async def window(self, model: str) -> int | None:
        """The tokens of a model's context window, if its upstream's list tells."""
        await self._refresh(patient=False)
        listing = self._listings[self.resolve(model).upstream.name]
        return next((context_window(m) for m in listing.models if m["id"] == model), None)

    async def reasons_not_ready(self) -> dict[str, str]:
        """Why each upstream that does not answer does not; empty when all do."""
        await self._refresh(patient=True)
        return {name: listing.error for name, listing in self._listings.items() if listing.error}

    @property
    def ready(self) -> bool:
        """Whether an upstream answered when last asked."""
        return any(listing.error is None for listing in self._listings.values())

    async def aclose(self) -> None:
        """Close all upstreams."""
        asking = [listing.asking for listing in self._listings.values() if listing.asking]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for named in self.upstreams:
            await named.upstream.aclose()

    async def _refresh(self, *, patient: bool) -> None:
        """Ask again what is stale; the patient wait even for upstreams that failed the last time."""
        waited: list[asyncio.Task[None]] = []
        for named in self.upstreams:
            listing = self._listings[named.upstream.name]
            if listing.asking is None and not listing.fresh(self._clock()):
                listing.asking = asyncio.create_task(self._list(named.upstream, listing))
            # Or each request would wait for the time-out of one that is dead.
            if listing.asking and (patient or listing.error in (None, NOT_ASKED)):
                waited.append(listing.asking)
        if waited:
            await asyncio.wait(waited)

    async def _list(self, upstream: Upstream, listing: _Listing) -> None:
        try:
            listing.models = tuple(await upstream.models())
            listing.error = None
        except OptiError as error:
            listing.error = error.message
        finally:
            listing.at = self._clock()
            listing.asking = None


_WINDOW_FIELDS = (
    "max_model_len",  # vLLM, SGLang
    "loaded_context_length",  # LM Studio: what the model was loaded with
    "context_length",  # OpenRouter, Together
    "context_window",  # Groq
    "max_context_length",
    "max_input_tokens",
    "n_ctx",
    "n_ctx_train",  # llama.cpp; may be more than what is served, and is asked for last
)


def context_window(model: Mapping[str, Any]) -> int | None:
    """The window in tokens that a model object of ``/v1/models`` tells of, under any of the usual names."""
    meta = model.get("meta")
    both = {**(meta if isinstance(meta, Mapping) else {}), **model}
    told = (both.get(name) for name in _WINDOW_FIELDS)
    return next((n for n in told if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)
