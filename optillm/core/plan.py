"""The language in which approaches are chosen and composed.

::

    spec    := chain
    chain   := reduced ('&' reduced)*
    reduced := par ['>' slug [args]]
    par     := unit ('|' unit)*
    unit    := slug [args] | '(' spec ')'
    args    := '(' name '=' value (',' name '=' value)* ')'
    value   := number | true | false | bare word | "quoted"
    model   := spec '-' name

``|`` binds tightest, then ``>``, then ``&``. What a plan prints is read back as the same plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from optillm.core.params import find
from optillm.core.registry import Registry
from optillm.protocol.errors import InvalidRequest, near_names

MAX_UNITS = 64
"""Approaches in one composition."""
MAX_DEPTH = 16
"""Compositions inside one another."""
_MAX_PARENTHESES = 64

_SLUG = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_WORD = re.compile(r"[A-Za-z0-9_./:@+-]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Unit:
    """One approach with the parameters written beside its name (by short name, checked)."""

    slug: str
    args: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if not self.args:
            return self.slug
        return f"{self.slug}({','.join(f'{k}={_literal(v)}' for k, v in self.args)})"


@dataclass(frozen=True)
class Par:
    """Approaches side by side: their answers are the choices."""

    branches: tuple[Plan, ...]

    def __str__(self) -> str:
        return "|".join(str(b) if isinstance(b, Unit) else f"({b})" for b in self.branches)


@dataclass(frozen=True)
class Reduce:
    """The answers of a plan are candidates, of which an approach makes one."""

    par: Plan
    reducer: Unit

    def __str__(self) -> str:
        par = str(self.par) if isinstance(self.par, Unit) else f"({self.par})"
        return f"{par}>{self.reducer}"


@dataclass(frozen=True)
class Chain:
    """Approaches one after another, each improving on what came before."""

    steps: tuple[Plan, ...]

    def __str__(self) -> str:
        return "&".join(f"({s})" if isinstance(s, Chain | Par) else str(s) for s in self.steps)


Plan = Unit | Par | Reduce | Chain
NONE = Unit("none")
ROUTER = Unit("router")
AUTO = "auto"
"""Another name of the router."""


def parts(plan: Plan) -> tuple[Plan, ...]:
    """The plans that a plan is composed of, in the order written; none for a unit."""
    if isinstance(plan, Unit):
        return ()
    if isinstance(plan, Reduce):
        return (plan.par, plan.reducer)
    return plan.branches if isinstance(plan, Par) else plan.steps


def units(plan: Plan) -> Iterator[Unit]:
    """All units of a plan, in the order written."""
    if isinstance(plan, Unit):
        yield plan
    for part in parts(plan):
        yield from units(part)


def replacing(plan: Plan, change: Callable[[Unit], Plan]) -> Plan:
    """The plan with each unit, but for reducers, replaced by what a function gives for it."""
    if isinstance(plan, Unit):
        return change(plan)
    if isinstance(plan, Reduce):
        return Reduce(replacing(plan.par, change), plan.reducer)
    inner = tuple(replacing(p, change) for p in parts(plan))
    return Par(inner) if isinstance(plan, Par) else Chain(inner)


def width(plan: Plan) -> int:
    """How many choices a plan makes where one approach makes one."""
    if isinstance(plan, Par):
        return sum(width(b) for b in plan.branches)
    return width(plan.steps[-1]) if isinstance(plan, Chain) else 1


def pipelines(plan: Plan) -> int:
    """How many approaches of a plan may run at the same time."""
    inner = [pipelines(p) for p in parts(plan)]
    return sum(inner) if isinstance(plan, Par) else max(inner, default=1)


def parse_spec(text: str, registry: Registry, where: str = "optillm_approach") -> Plan:
    """Read a whole composition, as in a request body or a tag.

    Raises:
        InvalidRequest: not a composition, an unknown slug or a bad parameter; tells the position.
    """
    parser = _Parser(text, registry, where)
    plan = parser.whole()
    parser.space()
    if parser.at < len(text):
        raise parser.error("expected '&', '|', '>' or the end")
    return plan


def split_model(name: str, registry: Registry) -> tuple[Plan | None, str]:
    """Split ``spec-name`` into the plan and the upstream's model; no plan if it has no prefix.

    Raises:
        InvalidRequest: it begins like a composition, but is none.
    """
    if not begins_with_approach(name, registry):
        return None, name
    parser = _Parser(name, registry, "model")
    plan = parser.whole()
    rest = name[parser.at :]
    if len(rest) < 2 or rest[0] != "-":
        if isinstance(plan, Unit) and not plan.args:
            return None, name
        raise parser.error("expected '-' and the name of a model")
    return plan, rest[1:]


def begins_with_approach(name: str, registry: Registry) -> bool:
    """Whether a model name may have a prefix: it begins with a slug, or like a composition."""
    slug = _SLUG.match(name)
    if slug is None:
        return name.startswith("(")
    return _known(slug.group(), registry) is not None or _composed(name, slug.end())


def check_unambiguous(plan: Plan, model: str, registry: Registry) -> None:
    """Refuse ``moa-bon-x``: did it mean a chain, or side by side?"""
    try:
        second, rest = split_model(model, registry)
    except InvalidRequest:
        second, rest = None, model
    if second is not None:
        raise InvalidRequest(
            f"'{plan}-{model}' has two readings: write '{Chain((plan, second))}-{rest}' to run one after "
            f"the other, or '{Par((plan, second))}-{rest}' to run both",
            param="model",
            code="ambiguous_approach",
        )


def _known(name: str, registry: Registry) -> str | None:
    """The slug of a name, or None if there is no such approach."""
    slug = ROUTER.slug if name == AUTO else name
    return slug if slug in registry else None


def _composed(name: str, end: int) -> bool:
    """Whether a name with an unknown first slug still is meant as a composition."""
    rest = name[end:].lstrip()
    if rest[:1] in ("&", "|", ">"):
        return True
    return rest[:1] == "(" and ")" in rest and "=" in rest


def _depth(plan: Plan) -> int:
    return 1 + max((_depth(p) for p in parts(plan)), default=-1)


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    def __init__(self, text: str, registry: Registry, where: str) -> None:
        self.text, self.registry, self.where = text, registry, where
        self.at = 0
        self.units = 0
        self.open = 0
        self.deepest = (0, 0)
        """How many parentheses were open at once, and where the last of them stands."""
        self.none: int | None = None

    def whole(self) -> Plan:
        """A spec, and what holds for it as a whole."""
        plan = self.spec()
        if _depth(plan) > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} compositions inside one another", self.deepest[1])
        if self.none is not None and not isinstance(plan, Unit):
            raise self.error("'none' cannot be part of a composition", self.none)
        return plan

    def spec(self) -> Plan:
        steps = [self.reduced()]
        while self.take("&"):
            steps.append(self.reduced())
        return steps[0] if len(steps) == 1 else Chain(tuple(steps))

    def reduced(self) -> Plan:
        par = self.par()
        if not self.take(">"):
            return par
        self.space()
        start = self.at
        if self.text.startswith("(", start):
            raise self.error("expected the name of one approach that reduces")
        reducer = self.named()
        if not self.registry[reducer.slug].reduces:
            able = ", ".join(a.slug for a in self.registry if a.reduces) or "none"
            what = f"'{reducer.slug}' cannot reduce several answers to one. These can: {able}."
            raise self.error(what, start, code="cannot_reduce")
        self.space()
        if self.text.startswith((">", "|"), self.at):
            raise self.error("a group ends with its reducer: put what stands before into parentheses")
        return Reduce(par, reducer)

    def par(self) -> Plan:
        branches = [self.unit()]
        while self.take("|"):
            branches.append(self.unit())
        return branches[0] if len(branches) == 1 else Par(tuple(branches))

    def unit(self) -> Plan:
        if not self.take("("):
            return self.named()
        self.open += 1
        self.deepest = max(self.deepest, (self.open, self.at - 1))
        if self.open > _MAX_PARENTHESES:
            raise self.error("too many open parentheses", self.at - 1)
        plan = self.spec()
        if not self.take(")"):
            raise self.error("expected ')'")
        self.open -= 1
        return plan

    def named(self) -> Unit:
        self.space()
        start = self.at
        match = _SLUG.match(self.text, start)
        if match is None:
            raise self.error("expected the name of an approach")
        slug = _known(match.group(), self.registry)
        if slug is None:
            near = near_names(match.group(), (a.slug for a in self.registry))
            raise self.error(f"unknown approach '{match.group()[:60]}'.{near}", code="unknown_approach")
        self.units += 1
        if self.units > MAX_UNITS:
            raise self.error(f"more than {MAX_UNITS} approaches")
        if slug == NONE.slug and self.none is None:
            self.none = start
        self.at = match.end()
        return Unit(slug, self.args(slug) if self.take("(") else ())

    def args(self, slug: str) -> tuple[tuple[str, Any], ...]:
        out: dict[str, Any] = {}
        while True:
            self.space()
            start = self.at
            name = _SLUG.match(self.text, start)
            if name is None:
                raise self.error("expected the name of a parameter")
            try:
                param = find(self.registry[slug].params, name.group()[:60], slug)
            except InvalidRequest as error:
                raise self.located(error, start) from None
            if param.name in out:
                raise self.error(f"'{param.name}' given twice")
            self.at = name.end()
            if not self.take("="):
                raise self.error("expected '='")
            self.space()
            start = self.at
            try:
                out[param.name] = param.check(self.value())
            except InvalidRequest as error:
                raise self.located(error, start) from None
            if self.take(")"):
                return tuple(out.items())
            if not self.take(","):
                raise self.error("expected ',' or ')'")

    def value(self) -> Any:
        if match := _QUOTED.match(self.text, self.at):
            self.at = match.end()
            return re.sub(r"\\(.)", r"\1", match.group(1), flags=re.S)
        if match := _WORD.match(self.text, self.at):
            self.at = match.end()
            return _word(match.group())
        raise self.error("expected a value")

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def take(self, char: str) -> bool:
        """Whether the next thing is this sign; if so, it is taken."""
        before = self.at
        self.space()
        if self.text.startswith(char, self.at):
            self.at += len(char)
            return True
        self.at = before
        return False

    def error(self, what: str, at: int | None = None, code: str = "invalid_approach") -> _SyntaxError:
        """The error, with its position and a mark in the text around it."""
        at = self.at if at is None else at
        before, after = self.text[:at], self.text[at:]
        shown = f"{'…' * (at > 40)}{before[-40:]}^{after[:40]}{'…' * (len(after) > 40)}"
        return _SyntaxError(f"position {at + 1} of '{shown}': {what}", param=self.where, code=code)

    def located(self, error: InvalidRequest, at: int) -> InvalidRequest:
        """An error about a parameter, with its position; it still names the parameter."""
        if isinstance(error, _SyntaxError):
            return error
        located = self.error(error.message, at, error.code or "invalid_parameter")
        located.param = error.param
        return located


class _SyntaxError(InvalidRequest):
    """An InvalidRequest that already tells its position."""


def _word(text: str) -> Any:
    """What a bare word means: true, false, a number, or itself."""
    if not _NUMBER.fullmatch(text):
        return {"true": True, "false": False}.get(text.lower(), text)
    if len(text) > 32:
        return float(text)
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def _literal(value: Any) -> str:
    """The text that is read back as this value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not (_WORD.fullmatch(value) and isinstance(_word(value), str)):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
