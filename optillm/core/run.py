"""Everything that lives for one request, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import msgspec

from optillm.core.budget import Budget, Limits
from optillm.core.reply import Reply
from optillm.core.tools import Tools
from optillm.core.trace import DEPTH, Trace
from optillm.core.upstream import Upstream
from optillm.core.usage import Price


class Route(msgspec.Struct, frozen=True):
    """Where calls for a model go: the upstream, its own name of the model, the price if known."""

    upstream: Upstream
    model: str
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Caps:
    """The server's limits on calls.

    Args:
        default_max_tokens: limit sent when the client gave none; 0 sends none.
        helper_max_tokens: limit of judges and critics.
        intermediate_max_tokens: limit of plans and steps.
        max_concurrency: calls of one run in flight at once.
    """

    default_max_tokens: int = 4096
    helper_max_tokens: int = 2048
    intermediate_max_tokens: int = 4096
    max_concurrency: int = 16


class Sink(Protocol):
    """Where a streaming run puts what its client may see already."""

    async def delta(self, choice: int, delta: Mapping[str, Any], logprobs: Any = None) -> None:
        """Part of choice number ``choice``: an OpenAI delta object."""
        ...

    async def progress(self, line: str) -> None:
        """One line of what the technique is doing."""
        ...

    async def raw(self, payload: bytes, finished: bool) -> None:
        """An upstream's own SSE payload, untouched; ``finished`` on the one that ends the last choice."""
        ...


class Learned(Protocol):
    """What has been learned about a model of an upstream; holds no request's data."""

    def n_mode(self, route: Route) -> str:
        """``native``, ``fanout`` or ``auto`` (not known yet)."""
        ...

    def learn_fanout(self, route: Route) -> None:
        """This model does not honour ``n``."""
        ...

    def adapt(self, route: Route, body: dict[str, Any]) -> dict[str, Any]:
        """The body with the fields dropped or renamed that this model refuses."""
        ...

    def learn_refusal(self, route: Route, body: Mapping[str, Any], message: str) -> bool:
        """Learn from a 400 which field is refused; False if it concerns none that can go."""
        ...


@dataclass(frozen=True)
class Later:
    """Work that an approach leaves until its answer has been delivered.

    Args:
        id: of the run in which it is done.
        name: what it is, a word.
        unit: the approach.
        max_calls: what that run may spend, in upstream calls.
        work: makes its model of that run and what was delivered, and does it.
    """

    id: str
    name: str
    unit: str
    max_calls: int
    work: Callable[[Run, tuple[Reply, ...]], Awaitable[None]]


class Run:
    """One request under way: where its calls go, what it may spend, what it has done.

    Args:
        id: the run's id, also the response's.
        tenant: whose it is.
        model: the model asked for, without prefix.
        resolve: finds the route of a model name.
        learned: what is known of the upstreams.
        caps, limits: what it may use.
        seed: of its random numbers; None draws a fresh one.
        sink: for a streaming client, else None.
        bearer: the client's token, to be passed on.
        tools: services of the process.
        clock: of the trace, in seconds; the event loop's if None.
        now: what time it is, in seconds since 1970, UTC; ``clock`` if None.
        window: tells the tokens of a model's context window, if its upstream does.
    """

    def __init__(
        self,
        *,
        id: str,
        tenant: str,
        model: str,
        resolve: Callable[[str], Route],
        learned: Learned,
        caps: Caps,
        limits: Limits,
        seed: int | None = None,
        sink: Sink | None = None,
        bearer: str | None = None,
        tools: Tools | None = None,
        clock: Callable[[], float] | None = None,
        now: Callable[[], float] | None = None,
        window: Callable[[str], Awaitable[int | None]] | None = None,
    ) -> None:
        self.id = id
        self.tenant = tenant
        self.model = model
        self.resolve = resolve
        self.learned = learned
        self.caps = caps
        self.sink = sink
        self.bearer = bearer
        self.tools = tools or Tools()
        self.window = window
        loop = asyncio.get_running_loop()
        self.trace = Trace(clock or loop.time)
        self.now = now or self.trace.clock
        self.budget = Budget(limits, loop.time(), loop)
        self._seed = seed
        self.observers: list[Callable[[Any], None]] = []
        self.later: list[Later] = []
        """What is to be done once the answer has been delivered; nothing of it if there is none."""
        self.system_fingerprint: str | None = None

    @cached_property
    def slots(self) -> asyncio.Semaphore:
        """Places for its calls in flight."""
        return asyncio.Semaphore(self.caps.max_concurrency)

    @cached_property
    def seed(self) -> int:
        """Of all its random numbers; drawn when first wanted, if none was given."""
        return random.SystemRandom().getrandbits(63) if self._seed is None else self._seed

    @property
    def seed_used(self) -> int | None:
        """The seed, if one was given or anybody has wanted random numbers."""
        return self.__dict__.get("seed", self._seed)

    def rng(self, name: str) -> random.Random:
        """Random numbers of a named part of the run: the same seed and name, the same numbers."""
        return random.Random(f"{self.seed}/{name}")

    def spent(self) -> dict[str, Any]:
        """What it took, and which limit ended it, if one did: JSON for people."""
        out: dict[str, Any] = {
            "calls": self.budget.calls,
            "depth": self.trace.depth,
            "seconds": round(self.trace.seconds, 6),
        }
        if self.budget.usage.cost is not None:
            out["cost"] = self.budget.usage.cost
        if self.budget.usage.estimated:
            out["usage_estimated"] = True
        if self.budget.cut_short:
            out["cut_short"] = self.budget.cut_short
        return out

    def child(self, id: str, limits: Limits) -> Run:
        """A run of the same tenant, model and token that no client waits for.

        It has its own budget, which begins now, its own trace and its own usage.
        """
        return Run(
            id=id,
            tenant=self.tenant,
            model=self.model,
            resolve=self.resolve,
            learned=self.learned,
            caps=self.caps,
            limits=limits,
            seed=self._seed,
            bearer=self.bearer,
            tools=self.tools,
            clock=self.trace.clock,
            now=self.now,
        )

    def under_way(self) -> AbstractContextManager[None]:
        """Around all of its work: watches its clock, and ends its trace."""
        return _UnderWay(self)


class _UnderWay:
    __slots__ = ("_before", "_run")

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        # A caller's task may have run something else before: its depth is not ours, nor ours its.
        self._before = DEPTH.set(0)
        self._run.budget.start()

    def __exit__(self, *error: object) -> None:
        self._run.budget.close()
        DEPTH.reset(self._before)
        self._run.trace.ended = self._run.trace.clock()
