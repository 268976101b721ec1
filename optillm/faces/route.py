"""Routers of a plan are replaced by what they choose, before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from optillm.core.execute import Job, check_tools
from optillm.core.plan import NONE, Plan, Unit, parse_spec, replacing, units
from optillm.core.registry import Registry, Sigma
from optillm.core.routing.model import RoutingModel
from optillm.core.routing.scene import Decision, Scene
from optillm.core.task import Task
from optillm.core.tools import Tools
from optillm.protocol.errors import InvalidRequest, NotConfigured

Params = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Routed:
    """A plan whose routers have decided.

    Args:
        written: the plan as it was asked for.
        plan: what runs in its place.
        decisions: what each router says about its choice, in the order written.
        params: of the routers, by name as it is shown.
    """

    written: Plan
    plan: Plan
    decisions: tuple[Mapping[str, Any], ...]
    params: Params


@dataclass(frozen=True)
class Situation:
    """What a request may take.

    Args:
        tools: what the server has.
        n: choices that the client wants.
        sigma: calls that k samples cost.
        limit: upstream calls that a request may take at most.
        budget: upstream calls after which this one is ended.
    """

    tools: Tools
    n: int
    sigma: Sigma
    limit: int
    budget: int


def routes(plan: Plan, registry: Registry) -> bool:
    """Whether anything in a plan chooses a technique."""
    return any(registry[unit.slug].route for unit in units(plan))


def candidates(model: RoutingModel, registry: Registry) -> dict[str, Plan | str]:
    """What the model knows, as plans; or why it is none here."""
    out: dict[str, Plan | str] = {}
    for approach in model.approaches:
        try:
            plan = parse_spec(approach, registry, "router")
        except InvalidRequest as error:
            out[approach] = error.message
        else:
            out[approach] = "it routes itself" if routes(plan, registry) else plan
    return out


def route(
    plan: Plan, task: Task, model: RoutingModel, job: Job, given: Params, situation: Situation
) -> Routed:
    """Let every router of a plan choose.

    Args:
        plan: with routers.
        task: the client's question, which decides for all of them.
        model: what is expected of whom.
        job: registry and parameters, also of what may be chosen.
        given: parameters that the request itself gives; they beat those of a candidate's spelling.
        situation: what may run.

    Raises:
        InvalidRequest: there is no candidate, or parameters contradict each other.
    """
    scene, named = _scene(plan, model, job, given, situation)
    decisions: list[Decision] = []

    def decided(unit: Unit) -> Plan:
        decide = job.registry[unit.slug].route
        if decide is None:
            return unit
        decisions.append(decide(task, job.params_of(unit), scene))
        return named[decisions[-1].approach]

    chosen = replacing(plan, decided)
    shown = Job(plan, job.registry, job.params).described
    routers = {name for u in units(plan) if job.registry[u.slug].route for name in (str(u), u.slug)}
    params = {name: values for name, values in shown.items() if name in routers}
    return Routed(plan, chosen, tuple(d.why for d in decisions), params)


def _scene(
    plan: Plan, model: RoutingModel, job: Job, given: Params, s: Situation
) -> tuple[Scene, dict[str, Plan]]:
    """Who can run in the place of a plan's routers, and as what."""
    named: dict[str, Plan] = {}
    closed: dict[str, str] = {}
    dear: dict[str, str] = {}
    for name, found in candidates(model, job.registry).items():
        if isinstance(found, str):
            closed[name] = found
            continue
        named[name] = candidate = _given(found, given)
        if reason := _closed(replace(job, plan=candidate), isinstance(plan, Unit), s.tools):
            closed[name] = reason
            continue
        worst = replace(job, plan=_routed(plan, candidate, job.registry)).worst(s.n, s.sigma)
        for limit, where in ((s.limit, closed), (s.budget, dear)):
            if worst is not None and worst > limit:
                where[name] = f"it can take {worst} upstream calls, and {limit} are allowed"
    return Scene(model, MappingProxyType(closed), MappingProxyType(dear)), named


def _routed(plan: Plan, candidate: Plan, registry: Registry) -> Plan:
    """The plan with a candidate in the place of every router."""
    return replacing(plan, lambda unit: candidate if registry[unit.slug].route else unit)


def _given(plan: Plan, given: Params) -> Plan:
    """A candidate without the arguments that the request gives otherwise."""

    def without(unit: Unit) -> Unit:
        theirs = given.get(unit.slug, {})
        return Unit(unit.slug, tuple((k, v) for k, v in unit.args if k not in theirs))

    return replacing(plan, without)


def _closed(job: Job, whole: bool, tools: Tools) -> str:
    """Why a candidate cannot run here at all; empty if it can."""
    if job.plan == NONE and not whole:
        return "plain pass-through cannot be part of a composition"
    try:
        check_tools(job, tools)
    except NotConfigured as error:
        return error.message
    return ""
