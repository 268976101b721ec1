"""Approaches, and the frozen table of all of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar, get_type_hints

from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, Param, params_of
from optillm.core.reply import Answer, Reply
from optillm.core.routing.scene import Decision, Scene
from optillm.core.task import Task
from optillm.protocol.errors import InvalidRequest, near_names

P = TypeVar("P", bound=ApproachParams)
Sigma = Callable[[int], int]
"""σ(k): upstream calls that k samples of one prompt cost."""


@dataclass(frozen=True)
class Approach:
    """One technique.

    Args:
        slug: its name in requests.
        family: its folder: prompting, sampling, search…
        title: one line for people.
        paper: where it comes from.
        calls, depth: the formulas of upstream calls and of their longest chain, as text.
        run: the algorithm.
        params_class: its parameters.
        worst: the most calls that parameters can cost, given σ; None when it cannot be told.
        handles_n: it returns the client's n choices itself; else it is run n times. May depend on the
            parameters.
        rewrite: for approaches that change the question: the enriched task to hand on in a chain.
        enrich: for approaches that need a model or the store to change the question: the enriched task to
            hand on in a chain, as ``async (task, llm, params) -> Task``.
        worst_enrich: the most calls of ``enrich``; None when it cannot be told.
        reduce: for approaches that can make one answer of several candidates: what they do after
            sampling, as ``async (task, llm, params, candidates) -> Answer``.
        worst_reduce: the most calls of ``reduce`` on so many candidates, two or more; None when it
            cannot be told.
        route: for approaches that choose another one: the decision, made before anything runs.
        about: what it does, in some paragraphs: its module's docstring.
    """

    slug: str
    family: str
    title: str
    paper: str
    calls: str
    depth: str
    run: Callable[[Task, LLM, Any], Awaitable[Answer]]
    params_class: type[ApproachParams]
    worst: Callable[[Any, Sigma], int] | None = None
    handles_n: bool | Callable[[Any], bool] = False
    rewrite: Callable[[Task, Any], Task] | None = None
    enrich: Callable[[Task, LLM, Any], Awaitable[Task]] | None = None
    worst_enrich: Callable[[Any], int] | None = None
    reduce: Callable[[Task, LLM, Any, Sequence[Reply]], Awaitable[Answer]] | None = None
    worst_reduce: Callable[[Any, int], int] | None = None
    route: Callable[[Task, Any, Scene], Decision] | None = None
    about: str = ""

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """Its parameters with all their names."""
        return params_of(self.slug, self.params_class)

    @property
    def produces(self) -> str:
        """What it hands on in a chain: an enriched ``task`` or an ``answer``."""
        return "task" if self.rewrite or self.enrich else "answer"

    @property
    def reduces(self) -> bool:
        """Whether it can stand after ``>``."""
        return self.reduce is not None

    def describe(self) -> dict[str, Any]:
        """JSON for ``/v1/approaches``."""
        properties = {p.request_name: {**p.schema(), "x-name": p.name} for p in self.params}
        return {
            "id": self.slug,
            "object": "approach",
            "title": self.title,
            "family": self.family,
            "paper": self.paper,
            "calls": self.calls,
            "depth": self.depth,
            "produces": self.produces,
            "reduces": self.reduces,
            "description": self.about,
            "parameters": {"type": "object", "properties": properties, "additionalProperties": False},
        }


def approach(
    slug: str,
    *,
    family: str,
    title: str,
    paper: str = "",
    calls: str,
    depth: str,
    worst: Callable[[Any, Sigma], int] | None = None,
    handles_n: bool | Callable[[Any], bool] = False,
    rewrite: Callable[[Task, Any], Task] | None = None,
    enrich: Callable[[Task, LLM, P], Awaitable[Task]] | None = None,
    worst_enrich: Callable[[Any], int] | None = None,
    reduce: Callable[[Task, LLM, P, Sequence[Reply]], Awaitable[Answer]] | None = None,
    worst_reduce: Callable[[Any, int], int] | None = None,
) -> Callable[[Callable[[Task, LLM, P], Awaitable[Answer]]], Approach]:
    """Make an approach of ``async def name(task, llm, p: Params) -> Answer``; see :class:`Approach`."""

    def wrap(function: Callable[[Task, LLM, P], Awaitable[Answer]]) -> Approach:
        hints = get_type_hints(function)
        cls = next(h for h in hints.values() if isinstance(h, type) and issubclass(h, ApproachParams))
        return Approach(
            slug=slug,
            family=family,
            title=title,
            paper=paper,
            calls=calls,
            depth=depth,
            run=function,
            params_class=cls,
            worst=worst,
            handles_n=handles_n,
            rewrite=rewrite,
            enrich=enrich,
            worst_enrich=worst_enrich,
            reduce=reduce,
            worst_reduce=worst_reduce,
            about=inspect.cleandoc(function.__globals__.get("__doc__") or ""),
        )

    return wrap


def routing(
    slug: str, *, family: str, title: str, paper: str = "", calls: str, depth: str
) -> Callable[[Callable[[Task, P, Scene], Decision]], Approach]:
    """Make an approach of ``def name(task, p: Params, scene) -> Decision`` that chooses another one."""

    async def run(task: Task, llm: LLM, p: Any) -> Answer:
        raise RuntimeError(f"'{slug}' is replaced by what it chooses before a run begins")

    def wrap(function: Callable[[Task, P, Scene], Decision]) -> Approach:
        hints = get_type_hints(function)
        return Approach(
            slug=slug,
            family=family,
            title=title,
            paper=paper,
            calls=calls,
            depth=depth,
            run=run,
            params_class=next(
                h for h in hints.values() if isinstance(h, type) and issubclass(h, ApproachParams)
            ),
            route=function,
            about=inspect.cleandoc(function.__globals__.get("__doc__") or ""),
        )

    return wrap


class Registry:
    """The approaches of a server, by slug. Built once, never changed."""

    def __init__(self, approaches: Iterable[Approach], overrides: Iterable[Approach] = ()) -> None:
        table: dict[str, Approach] = {}
        for item in approaches:
            if item.slug in table:
                raise ValueError(f"two approaches are called '{item.slug}'")
            table[item.slug] = item
        table.update({item.slug: item for item in overrides})
        self._table: Mapping[str, Approach] = MappingProxyType(dict(sorted(table.items())))

    def __iter__(self) -> Iterator[Approach]:
        return iter(self._table.values())

    def __contains__(self, slug: object) -> bool:
        return slug in self._table

    def __getitem__(self, slug: str) -> Approach:
        """The approach of that name; raises InvalidRequest listing near names."""
        if slug not in self._table:
            raise InvalidRequest(
                f"unknown approach '{slug}'.{near_names(slug, self._table)}",
                param="optillm_approach",
                code="unknown_approach",
            )
        return self._table[slug]

    @cached_property
    def request_names(self) -> Mapping[str, tuple[tuple[str, Param], ...]]:
        """Body fields that are parameters, with the approaches whose they are."""
        out: dict[str, tuple[tuple[str, Param], ...]] = {}
        for item in self:
            for param in item.params:
                out[param.request_name] = (*out.get(param.request_name, ()), (item.slug, param))
        return MappingProxyType(out)


def approaches_in(package: ModuleType) -> list[Approach]:
    """All approaches defined in the modules of a package."""
    found: list[Approach] = []
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        found += [item for item in vars(module).values() if isinstance(item, Approach)]
    return list({id(item): item for item in found}.values())
