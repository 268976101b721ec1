"""Finds shared state and hidden inputs in source code, by walking its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Calls whose results cannot change, or are not state.
HARMLESS = frozenset(
    {
        "re.compile", "frozenset", "tuple", "MappingProxyType", "types.MappingProxyType", "TypeVar",
        "NewType", "ContextVar", "Path", "msgspec.json.Decoder", "msgspec.json.Encoder",
        "logging.getLogger", "field", "dataclass_field", "attribute", "Option", "Order", "Unit", "object",
        "aiohttp.ClientTimeout", "approach", "dataclass", "dataclass_transform", "Meta", "range",
        "property", "cached_property", "staticmethod", "classmethod",
    }
)  # fmt: skip
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
CACHES = frozenset({"lru_cache", "cache", "functools.lru_cache", "functools.cache"})
ENVIRONMENT = frozenset({"os.environ", "os.getenv", "os.putenv", "os.environb"})
HIDDEN = frozenset(
    {
        "time.time", "time.monotonic", "time.perf_counter", "time.sleep", "datetime.now", "datetime.utcnow",
        "datetime.datetime.now", "random.random", "random.choice", "random.shuffle", "random.randint",
        "random.uniform", "random.seed", "random.sample", "secrets.token_hex", "uuid.uuid4", "os.urandom",
    }
)  # fmt: skip


def problems(source: str, *, settings: bool = False, pure: bool = False) -> list[str]:
    """What is wrong in a module, one line each.

    Args:
        source: Python text.
        settings: the module may read the environment.
        pure: the module must not read clocks or random numbers of its own.
    """
    tree = ast.parse(source)
    found = [*_state(tree.body, "module"), *_everywhere(tree)]
    names = [(n, _name(n)) for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Name)]
    if not settings:
        found += [f"{n.lineno}: reads the environment" for n, name in names if name in ENVIRONMENT]
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "os"]
        found += [
            f"{n.lineno}: reads the environment"
            for n in imports
            if any(a.name in ("environ", "getenv") for a in n.names)
        ]
    if pure:
        found += [f"{n.lineno}: hidden time or randomness: {name}" for n, name in names if name in HIDDEN]
    return found


def _state(body: list[ast.stmt], where: str) -> Iterator[str]:
    """Mutable values bound at module or class level."""
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _state(statement.body, f"class {statement.name}")
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            yield from _state(statement.body, where)
            yield from _state(getattr(statement, "orelse", []), where)
        elif isinstance(statement, ast.AugAssign):
            yield f"{statement.lineno}: {where} changes a name after it was bound"
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
                continue
            if any(isinstance(t, ast.Attribute | ast.Subscript) for t in targets):
                yield f"{statement.lineno}: {where} writes into something else"
            # An empty default of a msgspec.Struct is copied for each instance.
            empty = isinstance(statement.value, ast.Dict | ast.List) and not _inside(statement.value)
            if not (where.startswith("class") and isinstance(statement, ast.AnnAssign) and empty):
                yield from _mutable(statement.value, where)


def _inside(value: ast.Dict | ast.List) -> list[ast.expr]:
    return value.elts if isinstance(value, ast.List) else list(value.values)


def _mutable(value: ast.expr, where: str) -> Iterator[str]:
    if isinstance(value, MUTABLE):
        yield f"{value.lineno}: {where} holds mutable state"
    elif isinstance(value, ast.Call):
        if _name(value.func) not in HARMLESS:
            yield f"{value.lineno}: {where} holds the result of {_name(value.func)}()"
    elif isinstance(value, ast.Tuple):
        for item in value.elts:
            yield from _mutable(item, where)


def _everywhere(tree: ast.Module) -> Iterator[str]:
    imported = {
        (a.asname or a.name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import)
        for a in n.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global statement"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
            yield from (f"{d.lineno}: mutable default" for d in defaults if isinstance(d, MUTABLE))
            for decorator in node.decorator_list:
                plain = decorator.func if isinstance(decorator, ast.Call) else decorator
                if _name(plain) in CACHES:
                    yield f"{decorator.lineno}: a cache shared by all callers"
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and _name(target.value) in imported:
                    yield f"{node.lineno}: writes into a module"


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return ""
