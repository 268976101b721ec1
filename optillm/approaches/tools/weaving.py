"""Programs that are run line by line in the sandbox, and stop where only judgement can go on.

The part of ``coc`` that is no model: the driver that runs around a program inside the sandbox, and the
reading of what it reports.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from optillm.core.answers import fences
from optillm.core.tools import Outcome

SHOWN = 16_000
"""Characters of a result, of the state or of a line that a model sees at most."""
SHOWN_ERROR = 2_000
"""Characters of the end of an error that a model sees."""

Values = Mapping[str, Any]
"""New values by name; JSON."""
Known = Mapping[str, Values]
"""What has been simulated: new values by the line's key."""

# A run that needs a simulation ends there. The next one begins anew, and a line that has been simulated takes
# the values recorded for it. A key is made of the line and of all that it reads, so that it stands for the
# same question in every run, also of a repaired program.
_DRIVER = '''
def _drive(code, known, weaving):
    import ast, builtins, hashlib, io, json, linecache, os, random, sys, traceback

    FILE = "program.py"
    MOST = 8000
    known = json.loads(known)
    # Taken before the program runs, which may put others in their place.
    leave, dumps = os._exit, json.dumps
    lines = code.splitlines()
    table = []
    real, sys.stdout = sys.stdout, io.StringIO()
    printed = sys.stdout
    space = globals()
    del space["_drive"]
    space.update(exit=sys.exit, quit=sys.exit)
    ours = set(space)

    class Unknown(BaseException):
        """A function that is not defined was called in a line."""

    def end(**report):
        """Hand the report over. Nothing runs after it: no handler, no ``finally``."""
        text = dumps({**report, "printed": printed.getvalue()[:64000]}, ensure_ascii=False)
        real.write(text.encode("utf-8", "replace").decode())
        real.flush()
        leave(0)

    def shown(value):
        try:
            return repr(value)
        except Exception:
            return f"<{type(value).__name__}>"

    def short(text, most=1000):
        return text if len(text) <= most else text[:most] + " ..."

    def variables(frame):
        """The program's variables as text, those of the function that is running last."""
        scopes = [space]
        if frame is not None and frame.f_code.co_filename == FILE and frame.f_locals is not space:
            scopes.append(frame.f_locals)
        out = {}
        for scope in scopes:
            for name, value in list(scope.items()):
                hidden = name in ours or name.startswith(("_", "."))
                if not hidden and not callable(value) and not isinstance(value, type(sys)):
                    out[name] = short(shown(value))
        return out

    def simulated(line, number, targets, reads, frame):
        """The new values of a line: those that are known, else the run ends with the question."""
        key = hashlib.sha256(dumps([line, reads]).encode()).hexdigest()
        if key in known:
            # A copy: what the program does to a value must not change what is known.
            return json.loads(dumps(known[key]))
        state, room = {}, MOST
        for name, value in variables(frame).items():
            room -= len(name) + len(value)
            if room > 0:
                state[name] = value
        # A call says which line it is made in; an assignment is that line itself.
        source = lines[number - 1].strip() if frame is not None and number else ""
        end(kind="ask", key=key, line=short(line, MOST), number=number, source=short(source),
            targets=targets, state=state)

    def unknown(*args, **named):
        raise Unknown

    def in_line(function):
        """What stands for a function that an assignment calls: the name may be bound by now."""
        return unknown if any(function is s for s in stubs) else function

    def line(index):
        """Simulate an assignment of the program as a whole."""
        source, number, targets, names = table[index]
        reads = {n: shown(space[n]) for n in names if n in space and not callable(space[n])}
        space.update(simulated(source, number, targets, reads, None))

    def stub(name):
        """Stands for a function that is not defined: each call is simulated as an assignment."""

        def call(*args, **named):
            frame = sys._getframe(1)
            given = [shown(a) for a in args] + [f"{n}={shown(v)}" for n, v in named.items()]
            number = frame.f_lineno if frame.f_code.co_filename == FILE else 0
            said = f"value = {name}({', '.join(given)})"
            return simulated(said, number, ["value"], {}, frame)["value"]

        call.__name__ = name
        return call

    def placeholder(node):
        """Whether a function has only its name and its description."""
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            return False
        for part in node.body:
            raised = getattr(part, "exc", None)
            raised = getattr(raised, "func", raised)
            empty = isinstance(part, ast.Pass) or (
                isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
            )
            if not empty and getattr(raised, "id", None) != "NotImplementedError":
                return False
        return True

    def semantic(tree):
        """The functions that are called and nowhere defined."""
        bound, called = set(dir(builtins)) | ours, set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                bound.add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).partition(".")[0])
            elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
                bound.add(node.name)
            elif isinstance(node, ast.Call):
                given = [k.value for k in node.keywords if k.arg == "key"]
                if getattr(node.func, "id", None) in ("map", "filter"):
                    given += node.args[:1]
                called |= {n.id for n in (node.func, *given) if isinstance(n, ast.Name)}
        return called - bound

    class Weave(ast.NodeTransformer):
        """Puts a way out around each assignment of the program itself that calls a function."""

        def visit_FunctionDef(self, node):
            # Where a call is made from inside a function, the call is what is simulated.
            return node

        visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = visit_FunctionDef

        def visit_Assign(self, node):
            return self.woven(node, node.targets)

        def visit_AnnAssign(self, node):
            return self.woven(node, [node.target])

        visit_AugAssign = visit_AnnAssign

        def woven(self, node, targets):
            names = [n for t in targets for n in (t.elts if isinstance(t, (ast.Tuple, ast.List)) else [t])]
            inner = list(ast.walk(node))
            calls = any(isinstance(n, ast.Call) for n in inner)
            if not calls or not all(isinstance(n, ast.Name) for n in names):
                return self.generic_visit(node)
            named = {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
            if isinstance(node, ast.AugAssign):
                named.add(node.target.id)
            entry = (ast.unparse(node), node.lineno, [n.id for n in names], sorted(named))
            table.append(entry)
            way_out = ast.parse(
                f"try: pass\\nexcept (__unknown_function, NotImplementedError): __line({len(table) - 1})"
            ).body[0]
            way_out.body = [Raising().visit(node)]
            for part in (way_out, *ast.walk(way_out.handlers[0])):
                if hasattr(part, "lineno"):
                    ast.copy_location(part, node)
            return way_out

    class Raising(ast.NodeTransformer):
        """In an assignment the call of an undefined function ends the line."""

        def visit_Lambda(self, node):
            # It may be called elsewhere.
            return node

        def visit_Call(self, node):
            self.generic_visit(node)
            if isinstance(node.func, ast.Name) and node.func.id in undefined:
                given = ast.Call(ast.Name("__in_line", ast.Load()), [node.func], [])
                node.func = ast.fix_missing_locations(ast.copy_location(given, node.func))
            return node

    def result():
        answer = space.get("answer")
        return None if answer is None else str(answer)[:64000]

    linecache.cache[FILE] = (len(code), None, code.splitlines(True), FILE)
    # A run takes the way of the run before it.
    random.seed(0)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(0)
    try:
        tree = ast.parse(code, FILE)
        undefined = set()
        if weaving:
            empty = {n.name for n in tree.body if placeholder(n)}
            tree.body = [n for n in tree.body if not placeholder(n)]
            undefined = semantic(tree) | empty
            tree = ast.fix_missing_locations(Weave().visit(tree))
            named = {name: stub(name) for name in undefined}
            stubs = tuple(named.values())
            space.update(named, __unknown_function=Unknown, __line=line, __in_line=in_line)
            ours |= set(space)
        exec(compile(tree, FILE, "exec", dont_inherit=True), space)
        end(kind="done", answer=result())
    except MemoryError:
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            end(kind="done", answer=result())
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != FILE:
            frames = frames.tb_next
        end(kind="error", error="".join(traceback.format_exception(type(error), error, frames))[-8000:])
'''


def program(code: str, known: Known, *, weaving: bool) -> str:
    """Python that runs the model's code until it ends or has to be asked about.

    Args:
        code: what the model wrote.
        known: what has been simulated so far.
        weaving: whether undefined functions are simulated, or are errors as in Python.
    """
    return f"{_DRIVER}\n_drive({code!r}, {json.dumps(known)!r}, {weaving!r})\n"


@dataclass(frozen=True)
class Done:
    """The program ended.

    Args:
        result: the value of ``answer`` as text, or what was printed if there is none; never empty.
    """

    result: str


@dataclass(frozen=True)
class Ask:
    """A line that has to be simulated.

    Args:
        key: stands for the line and all that it reads.
        line: an assignment: the line of the program, or ``value = f(…)`` for a call elsewhere.
        number: the line's number in the program, from 1; 0 if unknown.
        source: of a call, the line of the program in which it is made.
        targets: the names that it assigns.
        state: the program's variables, as Python text.
    """

    key: str
    line: str
    number: int
    source: str
    targets: tuple[str, ...]
    state: Mapping[str, str]


@dataclass(frozen=True)
class Failed:
    """The program did not work; why, for the model to repair it."""

    problem: str


class _Report(msgspec.Struct):
    """What the driver writes. The program could write it too, so nothing in it is trusted."""

    kind: Literal["done", "ask", "error"]
    printed: str = ""
    answer: str | None = None
    key: str = ""
    line: str = ""
    number: int = 0
    source: str = ""
    targets: tuple[str, ...] = ()
    state: dict[str, str] = {}
    error: str = ""


def read(outcome: Outcome, timeout: float) -> Done | Ask | Failed:
    """What a run of :func:`program` ended with."""
    said = {
        "timeout": f"The program was stopped: it ran longer than {timeout:g} seconds.",
        "memory": "The program ran out of memory.",
        "output": "The program was stopped: it printed too much.",
        "killed": "The program was killed.",
    }
    if outcome.status in said:
        return Failed(said[outcome.status])
    if not outcome.ok:
        ended = f"The program ended with exit status {outcome.exit_code}."
        return Failed(f"{ended}\n{outcome.stderr[-SHOWN_ERROR:]}".strip())
    try:
        report = msgspec.json.decode(outcome.stdout, type=_Report)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Failed("The program ended itself without a result.")
    if report.kind == "error":
        return Failed(report.error[-SHOWN_ERROR:])
    if report.kind == "done":
        result = (report.answer or "").strip() or report.printed.strip()
        return Done(result[:64_000]) if result else Failed("The program did not assign a value to `answer`.")
    if not report.targets or not all(_is_name(name) for name in report.targets):
        return Failed("The program ended itself without a result.")
    return Ask(report.key, report.line, report.number, report.source, report.targets, report.state)


def _is_name(text: str) -> bool:
    return text.isidentifier() and len(text) <= 100


def new_values(text: str, targets: Sequence[str]) -> Values | None:
    """The values that a simulation gives: the last JSON object that has all the targets, or None.

    One target may be given by its bare value. What models write like Python is read, too.
    """
    for piece in _pieces(text):
        value = _value(piece)
        if isinstance(value, dict) and all(name in value for name in targets):
            return {name: value[name] for name in targets}
        if len(targets) == 1 and value is not _NO_VALUE and not isinstance(value, dict):
            return {targets[0]: value}
    return None


_NO_VALUE = object()


def _pieces(text: str) -> Iterator[str]:
    """Where the values may stand, likeliest first: fenced blocks, the last lines, the widest braces."""
    yield from (f.code for f in reversed(fences(text)))
    lines = [line.strip().strip("`") for line in text.strip().splitlines()]
    for line in reversed(lines[-20:]):
        if line.startswith("{") or len(lines) == 1:
            yield line
        elif "{" in line:
            yield line[line.index("{") : line.rfind("}") + 1]
    yield text[text.find("{") : text.rfind("}") + 1]


def _value(text: str) -> Any:
    """A JSON value, or one that JSON can say written like Python; else :data:`_NO_VALUE`."""
    if not text.strip() or len(text) > 4 * SHOWN:
        return _NO_VALUE
    for loads in (json.loads, ast.literal_eval):
        try:
            return json.loads(json.dumps(loads(text.strip())))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return _NO_VALUE
