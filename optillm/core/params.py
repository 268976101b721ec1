"""Typed parameters of approaches, declared once.

From one declaration come the request fields, the name syntax ``slug(name=value)``, flags,
environment variables, JSON Schema, help text and the docs table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from dataclasses import field as dataclass_field
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, dataclass_transform, get_args, get_origin, get_type_hints

from optillm.protocol.errors import InvalidRequest, near_names


@dataclass(frozen=True)
class Rule:
    """What a parameter accepts, beside its type.

    Args:
        help: one line for people.
        ge, le: the range of a number, both ends included; of a list, its length.
        alias: the name in a request body; None means ``<slug>_<name>``.
        flags, env: old names on the command line and in the environment, beside the generated ones.
    """

    help: str
    ge: float | None = None
    le: float | None = None
    alias: str | None = None
    flags: tuple[str, ...] = ()
    env: str | None = None


def field(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    alias: str | None = None,
    flags: tuple[str, ...] = (),
    env: str | None = None,
) -> Any:
    """Declare a parameter: its default, one line of help, its range and its other names."""
    return dataclass_field(default=default, metadata={"rule": Rule(help, ge, le, alias, flags, env)})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class ApproachParams:
    """Base of every approach's ``Params``: a subclass is a frozen dataclass of ``field(...)``."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @property
    def needs(self) -> frozenset[str]:
        """Which of :class:`optillm.core.tools.Tools` it cannot do without, with these values."""
        return frozenset()

    def contradictions(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together: the short name of a parameter, and what is wrong with it."""
        return ()


class FullResponseParams(ApproachParams):
    """For techniques that can show how they came to their answer."""

    return_full_response: bool = field(
        False,
        "return how the answer was found along with it",
        alias="return_full_response",
        env="OPTILLM_RETURN_FULL_RESPONSE",
    )


@dataclass(frozen=True)
class Param:
    """One parameter of one approach, with all its names.

    One whose kind is a mapping is a group: an object that holds any of the others by name.
    """

    slug: str
    name: str
    kind: Any
    default: Any
    rule: Rule
    members: tuple[Param, ...] = ()
    """Of a group: the parameters that may stand in it."""

    @property
    def is_group(self) -> bool:
        """Whether it is another place to write the approach's other parameters."""
        return get_origin(_unwrap(self.kind)[0]) is Mapping

    @property
    def request_name(self) -> str:
        """Its field in a request body."""
        return self.rule.alias or f"{self.slug}_{self.name}"

    @property
    def flag_names(self) -> tuple[str, ...]:
        """Its flags, generated one first."""
        generated = f"--{self.slug}-{self.name}".replace("_", "-")
        from_request = "--" + self.request_name.replace("_", "-")
        underscored = "--" + self.request_name
        return tuple(dict.fromkeys((generated, from_request, underscored, *self.rule.flags)))

    @property
    def env_names(self) -> tuple[str, ...]:
        """Its environment variables, generated one first."""
        generated = f"OPTILLM_{self.slug}_{self.name}".upper()
        return (generated, self.rule.env) if self.rule.env else (generated,)

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false (or null), so that its flag needs no value."""
        return _unwrap(self.kind)[0] is bool

    @property
    def accepts(self) -> str:
        """In words: type and range."""
        base, optional = _unwrap(self.kind)
        words = _type_words(base)
        if self.rule.ge is not None or self.rule.le is not None:
            low = "" if self.rule.ge is None else f"{self.rule.ge:g}"
            high = "" if self.rule.le is None else f"{self.rule.le:g}"
            span = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
            sized = get_origin(base) is tuple
            if sized and low == high:
                span = low
            words += (" of length " if sized else " from " if low and high else " ") + span
        return words + (" or null" if optional else "")

    def check(self, value: Any, where: str | None = None) -> Any:
        """The value, checked; lists become tuples.

        Raises:
            InvalidRequest: wrong type, not finite, or out of range; names the field and what it takes.
        """
        name = where or self.request_name
        base, optional = _unwrap(self.kind)
        if value is None and optional:
            return None
        checked = _typed(value, base)
        if checked is _WRONG or not self._in_range(checked):
            message = f"'{name}' must be {self.accepts}, not {_show(value)}"
            raise InvalidRequest(message, param=name, code="invalid_parameter")
        return self._grouped(checked, name) if self.is_group else checked

    def parse(self, text: str) -> Any:
        """The value of a flag or variable, checked; raises ValueError with one sentence."""
        base, _ = _unwrap(self.kind)
        try:
            return self.check(_from_text(text, base))
        except InvalidRequest as error:
            raise ValueError(error.message) from None

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the parameter."""
        base, optional = _unwrap(self.kind)
        out = _schema_type(base)
        if self.is_group:
            properties = {member.name: member.schema() for member in self.members}
            out = {**out, "properties": properties, "additionalProperties": False}
        sized = ("minItems", "maxItems") if get_origin(base) is tuple else ("minimum", "maximum")
        for key, bound in zip(sized, (self.rule.ge, self.rule.le), strict=True):
            if bound is not None:
                out[key] = bound
        if optional:
            out = {"anyOf": [out, {"type": "null"}]}
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        return {**out, "default": default, "description": self.rule.help}

    def _grouped(self, values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The members of a group by short name, checked."""
        out: dict[str, Any] = {}
        for name, value in values.items():
            member = next((m for m in self.members if name in (m.name, m.request_name)), None)
            if member is None:
                allowed = ", ".join(m.name for m in self.members)
                message = f"'{where}' has no field '{str(name)[:100]}'; allowed: {allowed}"
                raise InvalidRequest(message, param=f"{where}.{str(name)[:100]}", code="unknown_parameter")
            out[member.name] = member.check(value, f"{where}.{name}")
        return MappingProxyType(out)

    def _in_range(self, value: Any) -> bool:
        size = len(value) if isinstance(value, tuple) else value
        if not isinstance(size, int | float) or isinstance(size, bool):
            return True
        low, high = self.rule.ge, self.rule.le
        return (low is None or size >= low) and (high is None or size <= high)


def params_of(slug: str, cls: type[ApproachParams]) -> tuple[Param, ...]:
    """The parameters that a Params class declares."""
    hints = get_type_hints(cls)
    every = [Param(slug, f.name, hints[f.name], f.default, f.metadata["rule"]) for f in fields(cls)]  # type: ignore[arg-type]
    single = tuple(p for p in every if not p.is_group)
    return tuple(replace(p, members=single) if p.is_group else p for p in every)


def spread(params: tuple[Param, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked values by short name, with the members of each group as if given by themselves.

    What is given by itself too beats the group.
    """
    groups = [p.name for p in params if p.is_group]
    out: dict[str, Any] = {}
    for name in groups:
        out.update(values.get(name) or {})
    out.update({name: value for name, value in values.items() if name not in groups})
    return out


def build(cls: type[ApproachParams], params: tuple[Param, ...], values: Mapping[str, Any]) -> ApproachParams:
    """A frozen Params object from checked values by short name; the rest takes its default.

    Raises:
        InvalidRequest: the values contradict each other.
    """
    values = spread(params, values)
    built = cls(**{p.name: values[p.name] for p in params if p.name in values})
    for name, problem in built.contradictions():
        field_name = next(p.request_name for p in params if p.name == name)
        raise InvalidRequest(f"'{field_name}' {problem}", param=field_name, code="contradictory_parameters")
    return built


def find(params: tuple[Param, ...], name: str, slug: str) -> Param:
    """The parameter called by its short or its request name.

    Raises:
        InvalidRequest: there is none; lists near names.
    """
    for param in params:
        if name in (param.name, param.request_name):
            return param
    near = near_names(name, [p.name for p in params]) if params else f" '{slug}' takes no parameters."
    raise InvalidRequest(f"'{slug}' has no parameter '{name}'.{near}", param=name, code="unknown_parameter")


_WRONG = object()


def _unwrap(kind: Any) -> tuple[Any, bool]:
    if get_origin(kind) in (Union, UnionType):
        rest = [k for k in get_args(kind) if k is not NoneType]
        return rest[0], True
    return kind, False


def _typed(value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else _WRONG
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list | tuple):
            return _WRONG
        items = tuple(_typed(v, item) for v in value)
        return _WRONG if any(i is _WRONG for i in items) else items
    if get_origin(kind) is Mapping:
        return value if isinstance(value, Mapping) else _WRONG
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # An int too long for a float is out of every range.
        return float(value) if number and abs(value) < 1e308 and math.isfinite(value) else _WRONG
    if kind is int and isinstance(value, bool):
        return _WRONG
    return value if isinstance(value, kind) else _WRONG


def _from_text(text: str, kind: Any) -> Any:
    if kind is bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
        return known.get(text.strip().lower(), text)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return tuple(_from_text(t.strip(), item) for t in text.split(",") if t.strip())
    if kind in (int, float) or get_origin(kind) is Mapping:
        try:
            return json.loads(text) if get_origin(kind) is Mapping else kind(text)
        except ValueError:
            return text
    return text


def _type_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f"'{a}'" for a in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of " + _type_words(get_args(kind)[0]).removeprefix("a ").removeprefix("an ") + "s"
    if get_origin(kind) is Mapping:
        return "an object of other parameters"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def _schema_type(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"type": "string", "enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema_type(get_args(kind)[0])}
    if get_origin(kind) is Mapping:
        return {"type": "object"}
    return {"type": {int: "integer", float: "number", bool: "boolean", str: "string"}[kind]}


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
