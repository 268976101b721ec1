"""From a request body to a run: what HTTP and the library have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import msgspec

from optillm.core.budget import Limits
from optillm.core.execute import Job, Outcome, check_tools, check_worst, execute
from optillm.core.frozen import Frozen, empty, freeze
from optillm.core.plan import AUTO, NONE, ROUTER, Plan, begins_with_approach, parse_spec, units
from optillm.core.registry import Registry, Sigma
from optillm.core.routing.model import ModelFile, ModelFileError
from optillm.core.run import Caps, Learned, Route, Run, Sink
from optillm.core.task import Message, Options, Task
from optillm.core.tools import Tools
from optillm.faces.afterwards import Afterwards
from optillm.faces.choose import choose, take_params, take_tags
from optillm.faces.route import Routed, Situation, candidates, route, routes
from optillm.protocol.chat import Budget, ChatRequest, Nested
from optillm.protocol.errors import InvalidRequest

# Body fields that are for the proxy, or that a run sets itself.
_OURS = frozenset(
    {
        "messages", "model", "n", "stream",
        "optillm", "optillm_approach", "optillm_budget", "optillm_progress",
    }
)  # fmt: skip


class Models(Protocol):
    """Finds routes, and knows which models there are."""

    def resolve(self, model: str) -> Route:
        """The route of a model."""
        ...

    async def learn(self, model: str) -> None:
        """See to it that the model's route can be found."""
        ...

    async def lists(self, model: str) -> bool:
        """Whether an upstream has a model of exactly this name."""
        ...

    async def window(self, model: str) -> int | None:
        """The tokens of a model's context window, if its upstream tells."""
        ...


class Prepared(msgspec.Struct, frozen=True, dict=True):
    """A request, understood: everything that a run needs, frozen.

    Args:
        job: the plan with its parameters.
        task: what was asked.
        asked_model: the model as the client wrote it.
        model: the upstream's model.
        limits: the budget.
        stream, include_usage, progress: how the client wants its answer.
        warnings: what was ignored.
        routed: what routers chose, if there are any; then the job is what they chose.
    """

    job: Job
    task: Task
    asked_model: str
    model: str
    limits: Limits
    stream: bool
    include_usage: bool
    progress: str
    warnings: tuple[str, ...]
    routed: Routed | None = None

    @cached_property
    def approach(self) -> str:
        """The plan, as it is written in requests; if it routes, before anything was chosen."""
        return str(self.routed.written if self.routed else self.job.plan)

    @property
    def routed_to(self) -> str | None:
        """The plan that runs, if a router chose it."""
        return str(self.job.plan) if self.routed else None

    @property
    def params(self) -> Mapping[str, Any]:
        """Every parameter in force, by approach, for the response."""
        described = self.job.described
        return Frozen({**described, **self.routed.params}) if self.routed else described


@dataclass(frozen=True)
class Service:
    """What all requests of a process share; holds nothing of any of them.

    Args:
        registry: the approaches.
        models: finds upstreams.
        learned: what is known of the upstreams.
        caps, deadline, max_calls: limits on every run; seconds and calls.
        approach, model, n: defaults of requests that do not say.
        params: parameters set for the server, by slug and short name.
        progress: how streaming clients see progress.
        tools: services that techniques may use besides the model.
        afterwards: does what runs leave until their answer has been delivered.
        now: what time it is, in seconds since 1970, UTC.
        routing: the model that routers decide with.
    """

    registry: Registry
    models: Models
    learned: Learned
    caps: Caps = field(default_factory=Caps)
    deadline: float | None = None
    max_calls: int = 256
    approach: str = "auto"
    model: str = "gpt-4o-mini"
    n: int = 1
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=empty)
    progress: str = "reasoning"
    tools: Tools = field(default_factory=Tools)
    afterwards: Afterwards = field(default_factory=Afterwards)
    now: Callable[[], float] = time.time
    routing: ModelFile = field(default_factory=ModelFile)

    async def prepare(self, raw: Mapping[str, Any], request: ChatRequest, body: bytes = b"\\u") -> Prepared:
        """Understand a request; makes no upstream call but the list of models, if it must.

        Args:
            raw: the body as sent; nobody else may hold it.
            request: its typed view.
            body: its text; without one, every request is looked at in full.

        Raises:
            InvalidRequest: it breaks a rule.
        """
        if self._is_plain(raw, request, body):
            return await self._plain(raw, request)
        nested = request.optillm if isinstance(request.optillm, Nested) else Nested()
        messages, tag = take_tags(raw["messages"])
        asked_model = request.model or self.model
        choice = await choose(
            tag=tag,
            body=request.optillm_approach or nested.approach,
            server=self.approach,
            model=asked_model,
            registry=self.registry,
            lists=self.models.lists,
        )
        fields = {k: v for k, v in raw.items() if k not in _OURS}
        routing = routes(choice.plan, self.registry)
        running = self._may_run(choice.plan) if routing else frozenset(u.slug for u in units(choice.plan))
        taken, warnings = take_params(fields, nested.params or {}, running, self.registry)
        params = {slug: Frozen({**self.params.get(slug, {}), **taken.get(slug, {})}) for slug in running}
        n = request.n if request.n is not None else self.n
        job = Job(choice.plan, self.registry, Frozen(params))
        await self.models.learn(choice.model)
        limits = self._limits(request.optillm_budget or nested.budget)
        routed = None
        if routing:
            task = Task.of(messages, Options(freeze(fields)))
            routed, problem = self._route(job, task, taken, self._situation(choice.model, n, limits))
            warnings += _unused(taken, routed) + problem
            job = replace(job, plan=routed.plan)
        if job.plan != NONE:
            fields.pop("stream_options", None)
            if fields.get("max_completion_tokens") is not None:
                fields.pop("max_tokens", None)
            check_tools(job, self.tools)
            check_worst(job, n, self._sigma(choice.model), self.max_calls)
        if limits.max_cost is not None and self.models.resolve(choice.model).price is None:
            raise InvalidRequest(
                f"max_cost needs the price of '{choice.model}', and none is configured ([prices])",
                param="optillm_budget.max_cost",
            )
        return Prepared(
            job,
            Task.of(messages, Options(freeze(fields), n, request.n is not None)),
            asked_model,
            choice.model,
            limits,
            bool(request.stream),
            bool(request.stream_options and request.stream_options.include_usage),
            request.optillm_progress or self.progress,
            tuple(warnings),
            routed,
        )

    def _is_plain(self, raw: Mapping[str, Any], request: ChatRequest, body: bytes) -> bool:
        """Whether nothing in the request or the settings can ask for anything but to pass it on.

        Tags, fields and parameters for us all have names that JSON writes as they are, unless it
        escapes characters that need no escape.
        """
        return (
            self.n == 1
            and self.registry.request_names.keys().isdisjoint(raw)
            and self.approach.strip() in ("", AUTO, NONE.slug)
            and not begins_with_approach(request.model or self.model, self.registry)
            and b"optillm" not in body
            and b"\\u" not in body
        )

    async def _plain(self, raw: Mapping[str, Any], request: ChatRequest) -> Prepared:
        """The short way of requests that are only passed on; the long way comes to the same."""
        model = request.model or self.model
        await self.models.learn(model)
        fields = {k: v for k, v in raw.items() if k not in _OURS}
        # No technique sees what is not frozen here.
        task = Task(
            tuple([Message(m) for m in raw["messages"]]), Options(fields, request.n or 1, bool(request.n))
        )
        usage = bool(request.stream_options and request.stream_options.include_usage)
        return Prepared(
            self._nothing, task, model, model, self._no_limits, bool(request.stream), usage, self.progress, ()
        )

    @cached_property
    def _nothing(self) -> Job:
        return Job(NONE, self.registry, empty())

    @cached_property
    def _no_limits(self) -> Limits:
        return self._limits(None)

    def _limits(self, budget: Budget | None) -> Limits:
        return Limits(
            max_calls=min(budget.max_calls or self.max_calls, self.max_calls) if budget else self.max_calls,
            max_tokens=budget.max_tokens if budget else None,
            max_seconds=budget.max_seconds if budget else None,
            max_cost=budget.max_cost if budget else None,
            deadline=self.deadline,
            server_calls=self.max_calls,
        )

    def _sigma(self, model: str) -> Sigma:
        native = self.learned.n_mode(self.models.resolve(model)) == "native"
        return (lambda k: 1) if native else (lambda k: k)

    def _situation(self, model: str, n: int, limits: Limits) -> Situation:
        budget = limits.max_calls or self.max_calls
        return Situation(self.tools, n, self._sigma(model), self.max_calls, budget)

    def _may_run(self, plan: Plan) -> frozenset[str]:
        """The slugs that a plan with routers may come to."""
        model = self.routing.loaded
        plans = [plan, self._default]
        if not isinstance(model, ModelFileError):
            plans += [p for p in candidates(model, self.registry).values() if not isinstance(p, str)]
        return frozenset(unit.slug for p in plans for unit in units(p))

    @cached_property
    def _default(self) -> Plan:
        """What runs in the place of routers that cannot decide: the server's approach, or none."""
        plan = NONE if self.approach.strip() == AUTO else parse_spec(self.approach, self.registry)
        return NONE if routes(plan, self.registry) else plan

    def _route(
        self, job: Job, task: Task, given: Mapping[str, Any], situation: Situation
    ) -> tuple[Routed, list[str]]:
        """What the routers of a plan choose, and a warning if they cannot."""
        model = self.routing.loaded
        if isinstance(model, ModelFileError):
            plan = self._default
            why = {"choice": str(plan), "reason": str(model)}
            return Routed(job.plan, plan, (why,), {}), [f"not routed, '{plan}' instead: {model}"]
        return route(job.plan, task, model, job, given, situation), []

    def start(
        self,
        prepared: Prepared,
        *,
        run_id: str,
        tenant: str,
        sink: Sink | None = None,
        bearer: str | None = None,
    ) -> Run:
        """The run of a prepared request; nothing has been called yet."""
        return Run(
            id=run_id,
            tenant=tenant,
            model=prepared.model,
            resolve=self.models.resolve,
            learned=self.learned,
            caps=self.caps,
            limits=prepared.limits,
            seed=prepared.task.options.seed,
            sink=sink,
            bearer=bearer,
            tools=self.tools,
            now=self.now,
            window=self.models.window,
        )

    async def run(self, prepared: Prepared, run: Run) -> Outcome:
        """Run it.

        Raises:
            OptiError: there is no answer.
        """
        for decision in prepared.routed.decisions if prepared.routed else ():
            note = run.trace.note("router.choice", ROUTER.slug, decision)
            for observer in run.observers:
                observer(note)
        return await execute(prepared.job, prepared.task, run)

    def delivered(self, run: Run, outcome: Outcome) -> None:
        """The client has its answer: what the run has left until then is done now, in its tenant's queue."""
        limits = Limits(max_calls=self.max_calls, deadline=self.deadline)
        self.afterwards.put(run, outcome.replies, limits)


def new_run_id() -> str:
    """A fresh id of a run and its response."""
    return f"chatcmpl-{os.urandom(16).hex()}"


def _unused(taken: Mapping[str, Mapping[str, Any]], routed: Routed) -> list[str]:
    """Warnings about parameters of what was not chosen."""
    runs = {unit.slug for plan in (routed.written, routed.plan) for unit in units(plan)}
    return [
        f"parameters of {slug} ignored ({', '.join(values)}): routed to {routed.plan}"
        for slug, values in taken.items()
        if slug not in runs
    ]
