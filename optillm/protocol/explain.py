"""Why a request body was refused, in words: the field, what it takes, what it was given."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
from msgspec import inspect

from optillm.protocol.errors import InvalidRequest, near_names

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.S)
_MISSING = re.compile(r"missing required field `(.*)`")
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.S)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def explain_value(error: msgspec.ValidationError, raw: Any, cls: type[msgspec.Struct]) -> InvalidRequest:
    """The error of a body that is JSON, but not of the right shape.

    Args:
        error: what the conversion to ``cls`` said.
        raw: the body.
        cls: what it should have been.
    """
    match = _PATH.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    steps = [name or index for name, index in _STEP.findall(path)]
    kind, value = _at(inspect.type_info(cls), raw, steps)
    if missing := _MISSING.search(what):
        message = f"'{path}' needs the field '{missing[1]}'"
        if (tag := _tags(kind)) and missing[1] == tag[0]:
            message += f": one of {', '.join(tag[1])}"
    elif unknown := _UNKNOWN.search(what):
        structs = [k for k in _members(kind) if isinstance(k, inspect.StructType)]
        fields = [f.encode_name for k in structs for f in k.fields]
        message = f"'{path}' has no field '{unknown[1][:80]}'.{near_names(unknown[1], fields)}"
    else:
        message = f"'{path}' must be {_words(kind)}, not {_shown(value)}"
    return InvalidRequest(message, param=path or None, code="invalid_value")


def explain_json(error: Exception, body: bytes) -> InvalidRequest:
    """The error of a body that is not JSON.

    What lenient writers let through (NaN, infinity, half of a surrogate pair) is named with its field.
    """
    if not body.strip():
        return InvalidRequest("the body is empty; it must be a JSON object", code="invalid_json")
    message, param = f"the body is not valid JSON: {error}", None
    try:
        found = _not_json(json.loads(body))
    except (ValueError, RecursionError):
        found = None
    if found:
        param, message = found[0] or None, f"the body is not valid JSON: '{found[0]}' {found[1]}"
    return InvalidRequest(message, param=param, code="invalid_json")


def nested_over(value: Any, most: int) -> bool:
    """Whether arrays and objects lie more than ``most`` deep in each other."""
    level = [value]
    for _ in range(most + 1):
        inner = [v for v in level if isinstance(v, dict | list)]
        if not inner:
            return False
        level = [child for v in inner for child in (v.values() if isinstance(v, dict) else v)]
    return True


def _not_json(value: Any) -> tuple[str, str] | None:
    """The path of the first value that only lenient readers accept, and what is wrong with it."""
    stack = [("", value)]
    while stack:
        path, at = stack.pop()
        if isinstance(at, float) and not math.isfinite(at):
            return path, f"must be a finite number, not {'NaN' if at != at else 'infinity'}"
        if isinstance(at, str) and any("\ud800" <= c <= "\udfff" for c in at):
            return path, "contains half of a surrogate pair (a character that was cut in two)"
        if isinstance(at, dict):
            stack += [(f"{path}.{k}" if path else k, v) for k, v in reversed(at.items())]
        elif isinstance(at, list):
            stack += [(f"{path}[{i}]", v) for i, v in reversed(list(enumerate(at)))]
    return None


def _at(kind: Any, value: Any, steps: list[str]) -> tuple[Any, Any]:
    """The type and the value at a path."""
    for step in steps:
        inner: list[Any] = []
        for one in _members(kind):
            if isinstance(one, inspect.StructType) and _fits(one, value):
                inner += [f.type for f in one.fields if f.encode_name == step]
                # The field that tells which of several objects it is.
                inner += [inspect.LiteralType(_tags(kind)[1])] if step == one.tag_field else []
            elif isinstance(one, inspect.ListType | inspect.VarTupleType):
                inner.append(one.item_type)
            elif isinstance(one, inspect.DictType):
                inner.append(one.value_type)
        kind = inner[0] if inner else inspect.AnyType()
        value = _inner(value, step)
    return kind, value


def _fits(kind: inspect.StructType, value: Any) -> bool:
    tag = value.get(kind.tag_field) if kind.tag_field and isinstance(value, dict) else None
    return tag == kind.tag or tag not in _tags(kind)[1]


def _inner(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return next(iter(value.values()), None) if step == "..." else value.get(step)
    if isinstance(value, list) and step.isdigit() and int(step) < len(value):
        return value[int(step)]
    return None


def _members(kind: Any) -> tuple[Any, ...]:
    return tuple(kind.types) if isinstance(kind, inspect.UnionType) else (kind,)


def _tags(kind: Any) -> tuple[str, tuple[Any, ...]]:
    """The field that tells objects of a union apart, and its values."""
    structs = [k for k in _members(kind) if isinstance(k, inspect.StructType) and k.tag_field]
    return (str(structs[0].tag_field), tuple(k.tag for k in structs)) if structs else ("", ())


def _words(kind: Any) -> str:
    """A type in words, with its range or its values; that most fields may be null goes without saying."""
    if isinstance(kind, inspect.UnionType):
        tag, values = _tags(kind)
        plain = [_words(k) for k in kind.types if not isinstance(k, inspect.StructType | inspect.NoneType)]
        if tag:
            plain.append(f"an object whose '{tag}' is one of {', '.join(map(str, values))}")
        elif any(isinstance(k, inspect.StructType) for k in kind.types):
            plain.append("an object")
        return " or ".join(plain)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return ("an integer" if isinstance(kind, inspect.IntType) else "a number") + _range(kind)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return "an array" + _length(kind, "item")
    if isinstance(kind, inspect.StrType):
        return "a string" + _length(kind, "character")
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(map(str, kind.values))
    names = ((inspect.BoolType, "true or false"), (inspect.AnyType, "valid"))
    return next((words for cls, words in names if isinstance(kind, cls)), "an object")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    if kind.ge is not None:
        return f" of at least {kind.ge}"
    return f" above {kind.gt}" if kind.gt is not None else ""


def _length(kind: inspect.ListType | inspect.VarTupleType | inspect.StrType, what: str) -> str:
    """The limits of a length in words."""
    least, most = kind.min_length, kind.max_length
    if most is not None:
        return f" of {least or 0} to {most} {what}s"
    return f" of at least {least} {what}{'s' if least > 1 else ''}" if least else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return ("an " if value else "an empty ") + ("array" if isinstance(value, list) else "object")
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
