"""Which approach a request gets, on which model, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optillm.core.params import spread
from optillm.core.plan import AUTO, NONE, ROUTER, Plan, check_unambiguous, parse_spec, split_model
from optillm.core.registry import Registry
from optillm.protocol.errors import InvalidRequest, near_names

_MARK = "<optillm_approach>"
_TAG = re.compile(r"<optillm_approach>(.*?)</optillm_approach>", re.S)

Lists = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True)
class Choice:
    """What runs, and why.

    Args:
        plan: the composition.
        model: the upstream's model.
        source: what decided: tag, body, server, prefix or default.
    """

    plan: Plan
    model: str
    source: str


def take_tags(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Remove approach tags from system and user messages; the last one is returned.

    All other text stays as it is, also inside text parts.
    """
    found: str | None = None
    out: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if message.get("role") in ("system", "developer", "user") and content:
            tags: list[str] = []
            cleaned = _without(content, tags)
            if tags:
                found, message = tags[-1], {**message, "content": cleaned}
        out.append(message)
    return out, found.strip() if found is not None else None


def _without(content: Any, tags: list[str]) -> Any:
    if isinstance(content, str):
        if _MARK not in content:
            return content
        tags += _TAG.findall(content)
        return _TAG.sub("", content)
    return [
        {**part, "text": _without(part["text"], tags)} if part.get("type") == "text" else part
        for part in content
    ]


async def choose(
    *,
    tag: str | None,
    body: str | None,
    server: str,
    model: str,
    registry: Registry,
    lists: Lists,
) -> Choice:
    """Apply the precedence: tag, body, server, model-name prefix, none.

    A request that says ``auto`` leaves the choice to the server and the model's name; if they make none,
    the router does.

    Raises:
        InvalidRequest: an unknown approach, a bad composition or an ambiguous model name.
    """
    named = (
        ("tag", tag, "optillm_approach"),
        ("body", body, "optillm_approach"),
        ("server", server, "--approach"),
    )
    for source, spec, where in named:
        if spec is not None and spec.strip() and spec.strip() != AUTO:
            plan = parse_spec(spec, registry, where)
            return Choice(plan, await _stripped(model, registry, lists), source)
    prefix, rest = await _split(model, registry, lists)
    if prefix is not None:
        return Choice(prefix, rest, "prefix")
    for source, spec, _ in named[:2]:
        if spec is not None and spec.strip() == AUTO and ROUTER.slug in registry:
            return Choice(ROUTER, model, source)
    return Choice(NONE, model, "default")


async def _stripped(model: str, registry: Registry, lists: Lists) -> str:
    """The model of a request whose approach is explicit: its prefix goes, unless it is the name."""
    prefix, rest = await _split(model, registry, lists)
    return model if prefix is None else rest


async def _split(model: str, registry: Registry, lists: Lists) -> tuple[Plan | None, str]:
    """The prefix of a model name and the rest; a name that an upstream lists has none.

    Raises:
        InvalidRequest: it begins like a composition, but is none; or it has two readings.
    """
    try:
        prefix, rest = split_model(model, registry)
    except InvalidRequest:
        if await lists(model):
            return None, model
        raise
    if prefix is None or await lists(model):
        return None, model
    if not await lists(rest):
        check_unambiguous(prefix, rest, registry)
    return prefix, rest


def take_params(
    fields: dict[str, Any], nested: Mapping[str, Any], running: frozenset[str], registry: Registry
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Take all parameters out of a body's fields.

    Args:
        fields: the body's other fields; parameters are removed from it.
        nested: ``optillm.params``: by request name, by short name, or by approach.
        running: the slugs whose parameters have an effect.

    Returns:
        Parameters by slug and short name, checked; and warnings about ignored ones.

    Raises:
        InvalidRequest: wrong type or range; an unknown name in ``nested``.
    """
    taken: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    known = registry.request_names

    def put(name: str, value: Any, where: str) -> None:
        used = False
        for slug, param in known[name]:
            if slug in running:
                taken.setdefault(slug, {})[param.name] = param.check(value, where)
                used = True
        if not used:
            warnings.append(f"{where} ignored: {' and '.join(s for s, _ in known[name])} not running")

    for name in [f for f in fields if f in known]:
        put(name, fields.pop(name), name)
    for name, value in nested.items():
        where = f"optillm.params.{name}"
        if name in known:
            put(name, value, where)
        elif name in registry and isinstance(value, Mapping):
            for short, inner in value.items():
                found = [p for p in registry[name].params if short in (p.name, p.request_name)]
                if not found:
                    near = near_names(short, [p.name for p in registry[name].params] or ["(none)"])
                    raise InvalidRequest(f"'{name}' has no parameter '{short[:100]}'.{near}", param=where)
                if name in running:
                    taken.setdefault(name, {})[found[0].name] = found[0].check(inner, f"{where}.{short}")
                else:
                    warnings.append(f"{where}.{short} ignored: {name} not running")
        else:
            owners = [(s, p) for s in sorted(running) for p in registry[s].params if p.name == name]
            if len(owners) > 1:
                meant = " or ".join(f"'{p.request_name}'" for _, p in owners)
                raise InvalidRequest(f"'{name}' has {len(owners)} meanings here: say {meant}", param=where)
            if not owners:
                names = [*known, *(p.name for s in running for p in registry[s].params)]
                raise InvalidRequest(
                    f"unknown parameter '{name[:100]}'.{near_names(name, names)}", param=where
                )
            slug, param = owners[0]
            taken.setdefault(slug, {})[param.name] = param.check(value, where)
    return {slug: spread(registry[slug].params, values) for slug, values in taken.items()}, warnings
