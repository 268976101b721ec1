"""Finds shared state and hidden inputs in source code, by walking its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

# Calls whose results cannot change, or are not state.
HARMLESS = frozenset(
    {
        "re.compile", "frozenset", "tuple", "MappingProxyType", "types.MappingProxyType", "TypeVar",
        "NewType", "ContextVar", "Path", "msgspec.json.Decoder", "msgspec.json.Encoder",
        "logging.getLogger", "field", "dataclass_field", "attribute", "Option", "Order", "Unit", "object",
        "timedelta", "approach", "dataclass", "dataclass_transform", "Meta", "range",
        "struct.Struct", "Machine",
        "property", "cached_property", "staticmethod", "classmethod", "namedtuple",
    }
)  # fmt: skip
# Of these, what is given may be a display: they copy it, or make it read-only.
FREEZING = frozenset({"frozenset", "tuple", "MappingProxyType", "types.MappingProxyType", "namedtuple"})
DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
STRUCTS = frozenset({"Struct", "msgspec.Struct"})
CACHES = frozenset({"functools.lru_cache", "functools.cache"})
ENVIRONMENT = frozenset({"os.environ", "os.getenv", "os.putenv", "os.unsetenv", "os.environb", "os.getenvb"})
CLOCKS = frozenset(
    {
        "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter",
        "time.perf_counter_ns", "time.process_time", "time.localtime", "time.gmtime", "time.sleep",
        "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today",
        "datetime.date.today",
    }
)  # fmt: skip
SYSTEM_RANDOM = frozenset({"random.SystemRandom", "os.urandom", "os.getrandom"})
RANDOM_MODULES = ("random.", "secrets.", "uuid.uuid")


def problems(
    source: str,
    *,
    settings: bool = False,
    pure: bool = False,
    draws_seeds: bool = False,
    own_process: bool = False,
) -> list[str]:
    """What is wrong in a module, one line each.

    Args:
        source: Python text.
        settings: the module may read the environment.
        pure: the module must not read clocks or random numbers of its own.
        draws_seeds: though pure, it may ask the system for the seed of a run.
        own_process: it runs in a process made for it alone, whose interpreter it may set up.
    """
    tree = ast.parse(source)
    return [*_Checker(tree, settings, pure, draws_seeds, own_process).problems()]


class _Checker:
    def __init__(
        self, tree: ast.Module, settings: bool, pure: bool, draws_seeds: bool, own_process: bool
    ) -> None:
        self.tree, self.settings, self.pure, self.draws_seeds = tree, settings, pure, draws_seeds
        self.own_process = own_process
        self.imported = _imported(tree)
        self.shared = {n.name for n in tree.body if isinstance(n, _DEFINITIONS)} | set(self.imported)
        self.structs = _structs(tree)

    def problems(self) -> Iterator[str]:
        yield from self._block(self.tree.body, "module", False)
        for node in ast.walk(self.tree):
            yield from (f"{getattr(node, 'lineno', 1)}: {what}" for what in self._anywhere(node))

    # -- what is bound at module and class level ---------------------------------------------

    def _block(self, body: Iterable[ast.AST], where: str, struct: bool) -> Iterator[str]:
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                inside = f"class {statement.name}"
                yield from self._block(statement.body, inside, statement.name in self.structs)
            elif isinstance(statement, ast.AugAssign):
                yield f"{statement.lineno}: {where} changes a name after it was bound"
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                yield from self._binding(statement, where, struct)
            elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                for block in BLOCKS:
                    yield from self._block(getattr(statement, block, ()), where, struct)
                for node in ast.walk(statement):
                    if isinstance(node, ast.NamedExpr):
                        yield from _mutable(node.value, where)

    def _binding(self, statement: ast.Assign | ast.AnnAssign, where: str, struct: bool) -> Iterator[str]:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [t.id for t in targets if isinstance(t, ast.Name)]
        if statement.value is None or names == ["__all__"]:
            return
        if any(isinstance(t, ast.Attribute | ast.Subscript) for t in targets):
            yield f"{statement.lineno}: {where} writes into something else"
        # An empty default of a msgspec.Struct is copied for each instance.
        if not (struct and isinstance(statement, ast.AnnAssign) and _empty(statement.value)):
            yield from _mutable(statement.value, where)

    # -- what is wrong wherever it stands ----------------------------------------------------

    def _anywhere(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Global):
            yield "global statement"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
            yield from ("mutable default" for d in defaults if any(_mutable(d, "default")))
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            yield from self._read(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Assign | ast.Delete):
            yield from (w for target in node.targets for w in self._write(target))
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            yield from self._write(node.target)

    def _read(self, node: ast.Attribute | ast.Name) -> Iterator[str]:
        name = self._full(node)
        if name in CACHES:
            yield "a cache shared by all callers"
        if name in ENVIRONMENT and not self.settings:
            yield "reads the environment"
        if self.pure and name in CLOCKS:
            yield f"hidden time: {name}"
        drawn = name in SYSTEM_RANDOM or (name.startswith(RANDOM_MODULES) and name != "random.Random")
        if self.pure and drawn and not (self.draws_seeds and _under(name, SYSTEM_RANDOM)):
            yield f"hidden randomness: {name}"

    def _call(self, node: ast.Call) -> Iterator[str]:
        name = self._full(node.func)
        if name == "globals":
            yield "reaches for the module's names"
        if name == "setattr" and node.args and self._is_shared(node.args[0]):
            yield "writes into a module or class"
        if self.pure and name == "random.Random" and not node.args:
            yield "hidden randomness: a generator without a seed"

    def _write(self, target: ast.expr) -> Iterator[str]:
        while isinstance(target, ast.Subscript):
            target = target.value
        sets_up = self.own_process and self._full(target).partition(".")[0] in ("sys", "linecache")
        if isinstance(target, ast.Attribute) and self._is_shared(target.value) and not sets_up:
            yield "writes into a module or class"

    def _is_shared(self, node: ast.expr) -> bool:
        """Whether it is a module, a class or a function, or an attribute of one."""
        if isinstance(node, ast.Call):
            return _name(node.func) == "type"
        if isinstance(node, ast.Attribute):
            return node.attr == "__class__" or self._is_shared(node.value)
        return isinstance(node, ast.Name) and (node.id == "cls" or node.id in self.shared)

    def _full(self, node: ast.AST) -> str:
        """A dotted name, by the module that it comes from."""
        first, dot, rest = _name(node).partition(".")
        return self.imported.get(first, first) + dot + rest


_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _imported(tree: ast.Module) -> Mapping[str, str]:
    """The names that imports bind, and what they stand for."""
    out: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                first = a.name.partition(".")[0]
                out[a.asname or first] = a.name if a.asname else first
        elif isinstance(node, ast.ImportFrom):
            out.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return out


def _structs(tree: ast.Module) -> set[str]:
    """The classes of a module that are msgspec structs, directly or by a class before them."""
    out: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(_name(b) in STRUCTS | out for b in node.bases):
            out.add(node.name)
    return out


def _empty(value: ast.expr) -> bool:
    return isinstance(value, ast.List | ast.Dict) and not _items(value)


def _mutable(value: ast.expr, where: str) -> Iterator[str]:
    """What in a value can change."""
    if isinstance(value, DISPLAYS):
        yield f"{value.lineno}: {where} holds mutable state"
    elif isinstance(value, ast.Call):
        name = _name(value.func)
        if name not in HARMLESS:
            yield f"{value.lineno}: {where} holds the result of {name}()"
            return
        for argument in (*value.args, *(k.value for k in value.keywords)):
            if name in FREEZING and isinstance(argument, DISPLAYS):
                yield from (p for item in _items(argument) for p in _mutable(item, where))
            elif isinstance(argument, DISPLAYS):
                yield from _mutable(argument, where)
    elif isinstance(value, ast.Tuple | ast.BoolOp | ast.IfExp | ast.NamedExpr | ast.Starred):
        yield from (p for item in _items(value) for p in _mutable(item, where))


def _items(value: ast.expr) -> list[ast.expr]:
    """The parts of a value that it holds."""
    if isinstance(value, ast.Dict):
        return value.values
    if isinstance(value, ast.DictComp | ast.NamedExpr | ast.Starred):
        return [value.value]
    if isinstance(value, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        return [value.elt]
    if isinstance(value, ast.IfExp):
        return [value.body, value.orelse]
    if isinstance(value, ast.BoolOp):
        return value.values
    return value.elts if isinstance(value, ast.List | ast.Set | ast.Tuple) else []


def _under(name: str, roots: Iterable[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return ""
