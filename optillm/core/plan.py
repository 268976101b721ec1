"""The language in which approaches are chosen and composed.

::

    spec  := chain ; chain := par ('&' par)* ; par := unit ('|' unit)*
    unit  := slug [ '(' name '=' value (',' name '=' value)* ')' ] | '(' spec ')'
    model := spec '-' name
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optillm.core.params import find
from optillm.core.registry import Registry
from optillm.protocol.errors import InvalidRequest, near_names

_SLUG = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?(?![A-Za-z0-9_.])")
_WORD = re.compile(r"[A-Za-z0-9_./:@+-]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
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
        return "|".join(f"({b})" if isinstance(b, Chain | Par) else str(b) for b in self.branches)


@dataclass(frozen=True)
class Chain:
    """Approaches one after another, each improving on what came before."""

    steps: tuple[Plan, ...]

    def __str__(self) -> str:
        return "&".join(f"({s})" if isinstance(s, Chain) else str(s) for s in self.steps)


Plan = Unit | Par | Chain
NONE = Unit("none")


def units(plan: Plan) -> Iterator[Unit]:
    """All units of a plan, in the order written."""
    if isinstance(plan, Unit):
        yield plan
    else:
        for part in plan.branches if isinstance(plan, Par) else plan.steps:
            yield from units(part)


def parse_spec(text: str, registry: Registry, where: str = "optillm_approach") -> Plan:
    """Read a whole composition, as in a request body or a tag.

    Raises:
        InvalidRequest: not a composition, an unknown slug or a bad parameter.
    """
    parser = _Parser(text, registry, where)
    plan = parser.spec()
    parser.space()
    if parser.at < len(text):
        raise parser.error("expected '&', '|' or the end")
    return _checked(plan, where)


def split_model(name: str, registry: Registry) -> tuple[Plan | None, str]:
    """Split ``spec-name`` into the plan and the upstream's model; no plan if it has no prefix.

    Raises:
        InvalidRequest: it begins like a composition, but is none; or it has two readings.
    """
    slug = _SLUG.match(name)
    if slug is None and not name.startswith("("):
        return None, name
    if slug is not None and slug.group() not in registry and not _composed(name, slug.end(), registry):
        return None, name
    parser = _Parser(name, registry, "model")
    plan = parser.spec()
    rest = name[parser.at :]
    if len(rest) < 2 or rest[0] != "-":
        if isinstance(plan, Unit) and not plan.args:
            return None, name
        raise parser.error("expected '-' and the name of a model")
    return _checked(plan, "model"), rest[1:]


def check_unambiguous(plan: Plan, model: str, registry: Registry) -> None:
    """Refuse ``moa-bon-x``: did it mean a chain, or side by side?"""
    try:
        second, rest = split_model(model, registry)
    except InvalidRequest:
        second, rest = None, model
    if second is not None:
        raise InvalidRequest(
            f"'{plan}-{model}' has two readings: write '{plan}&{second}-{rest}' to run one after the "
            f"other, or '{plan}|{second}-{rest}' to run both",
            param="model",
            code="ambiguous_approach",
        )


def _composed(name: str, end: int, registry: Registry) -> bool:
    """Whether a name with an unknown first slug still is meant as a composition."""
    rest = name[end:].lstrip()
    if rest[:1] in ("&", "|"):
        return True
    return rest[:1] == "(" and ")" in rest and "=" in rest


def _checked(plan: Plan, where: str) -> Plan:
    if not isinstance(plan, Unit) and any(u.slug == "none" for u in units(plan)):
        raise InvalidRequest("'none' cannot be part of a composition", param=where)
    return plan


class _Parser:
    def __init__(self, text: str, registry: Registry, where: str) -> None:
        self.text, self.registry, self.where = text, registry, where
        self.at = 0
        self.depth = 0

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def error(self, what: str) -> InvalidRequest:
        found = repr(self.text[self.at : self.at + 12]) if self.at < len(self.text) else "the end"
        message = f"{what} at position {self.at + 1} of '{self.text[:200]}', found {found}"
        return InvalidRequest(message, param=self.where, code="invalid_approach")

    def peek(self, char: str) -> bool:
        """Whether the next thing is this operator; it is taken if so."""
        before = self.at
        self.space()
        if self.text.startswith(char, self.at):
            self.at += len(char)
            return True
        self.at = before
        return False

    def spec(self) -> Plan:
        steps = [self.par()]
        while self.peek("&"):
            steps.append(self.par())
        return steps[0] if len(steps) == 1 else Chain(tuple(steps))

    def par(self) -> Plan:
        branches = [self.unit()]
        while self.peek("|"):
            branches.append(self.unit())
        return branches[0] if len(branches) == 1 else Par(tuple(branches))

    def unit(self) -> Plan:
        if self.peek("("):
            self.depth += 1
            if self.depth > 16:
                raise self.error("too deeply nested")
            plan = self.spec()
            if not self.peek(")"):
                raise self.error("expected ')'")
            self.depth -= 1
            return plan
        self.space()
        match = _SLUG.match(self.text, self.at)
        if match is None:
            raise self.error("expected the name of an approach")
        slug = match.group()
        if slug not in self.registry:
            near = near_names(slug, (a.slug for a in self.registry))
            message = f"unknown approach '{slug}' at position {self.at + 1} of '{self.text[:200]}'.{near}"
            raise InvalidRequest(message, param=self.where, code="unknown_approach")
        self.at = match.end()
        return Unit(slug, self.args(slug) if self.peek("(") else ())

    def args(self, slug: str) -> tuple[tuple[str, Any], ...]:
        params = self.registry[slug].params
        out: dict[str, Any] = {}
        while True:
            self.space()
            name = _SLUG.match(self.text, self.at)
            if name is None:
                raise self.error("expected the name of a parameter")
            param = find(params, name.group(), slug)
            self.at = name.end()
            if param.name in out:
                raise self.error(f"'{param.name}' given twice")
            if not self.peek("="):
                raise self.error("expected '='")
            out[param.name] = param.check(self.value())
            if self.peek(")"):
                return tuple(out.items())
            if not self.peek(","):
                raise self.error("expected ',' or ')'")

    def value(self) -> Any:
        self.space()
        if match := _QUOTED.match(self.text, self.at):
            self.at = match.end()
            return re.sub(r"\\(.)", r"\1", match.group(1))
        if match := _NUMBER.match(self.text, self.at):
            self.at = match.end()
            return _number(match.group())
        if match := _WORD.match(self.text, self.at):
            self.at = match.end()
            word = match.group()
            return {"true": True, "false": False}.get(word.lower(), word)
        raise self.error("expected a value")


def _number(text: str) -> int | float:
    if len(text) > 32:
        return float(text)
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not (_WORD.fullmatch(value) and not _NUMBER.fullmatch(value)):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
