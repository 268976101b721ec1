"""The tests that a programming question shows, and a program that runs a candidate's code against them.

Pure: it reads texts and writes a program; who runs that program, and where, is the caller's business.

    tests = find_tests(question)                      # None if the question shows no tests
    source = program(candidate_code(reply), tests, mark)
    rate = passed(outcome.stdout, mark)               # 0 to 1
    wrong = failures(outcome.stdout, tests, mark)     # the tests that failed, in words

``mark`` is a random word that the candidate's author cannot have known: lines without it count for
nothing, so code that prints results of its own gains nothing by it.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass

from optillm.core.answers import fences, strip_think

MOST_TESTS = 50
_LONGEST_ASSERT = 30
_BUILTINS = frozenset(dir(builtins))
_PYTHON = frozenset({"", "py", "python", "python3"})
_PROMPT = re.compile(r"^(?P<indent>\s*)>>> ?(?P<source>.*)$")
_MORE = re.compile(r"^\s*\.\.\.(?: (?P<source>.*))?$")
_ENDS = re.compile(r"^\s*(?:>>>|\"\"\"|'''|```|~~~)|^\s*$")
_CLOSES_DOCSTRING = re.compile(r"\s*(?:\"\"\"|''')\s*$")
_HEADER = re.compile(
    r"^[\s#*_>-]{0,8}(?:(?:sample|example)\s{1,3})?(?P<kind>input|output)s?\s{0,3}#?\d{0,3}"
    r"[\s*_]{0,4}(?::[\s*_]{0,4}(?P<rest>.*))?$",
    re.I,
)
_FENCE_LINE = re.compile(r"^\s*(?:```|~~~)")
_OTHER_HEADER = re.compile(r"^[\s#*_]{0,8}(?:explanation|note|constraints?|(?:sample|example)s?)\b", re.I)
_ASSIGNMENT = re.compile(r"^\s*[A-Za-z_]\w*\s*=")


@dataclass(frozen=True)
class Check:
    """Python to run in the candidate's names.

    Args:
        source: statements; the check fails if they raise.
        want: for an example of an interactive session, what its last expression shows or prints.
    """

    source: str
    want: str | None = None


@dataclass(frozen=True)
class Pair:
    """What a whole program reads, and what it must write."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class PublicTests:
    """The tests of a question: checks of functions, or runs of a whole program."""

    checks: tuple[Check, ...] = ()
    pairs: tuple[Pair, ...] = ()

    def __len__(self) -> int:
        return len(self.checks) + len(self.pairs)


def find_tests(text: str) -> PublicTests | None:
    """The tests in a question, at most 50, or None.

    It knows sessions (``>>> f(2)`` and the expected lines), ``assert`` statements that call something,
    and "Input:" / "Output:" blocks. Functions' tests win over whole programs' ones.
    """
    lines = text.splitlines()
    checks = (*_sessions(lines), *_asserts(lines))[:MOST_TESTS]
    if checks:
        return PublicTests(checks=checks)
    pairs = tuple(_pairs(lines))[:MOST_TESTS]
    return PublicTests(pairs=pairs) if pairs else None


def candidate_code(reply: str, *, truncated: bool = False) -> str | None:
    """The Python of a reply: its longest fenced block, or all of it if that is Python; else None."""
    text = strip_think(reply)
    blocks = fences(text, truncated)
    python = [b.code for b in blocks if _language(b.info) in _PYTHON and _parses(b.code)]
    if python:
        return max(python, key=len)
    return text if not blocks and any(_defines(text)) else None


def program(code: str, tests: PublicTests, mark: str) -> str:
    """A Python program that runs the tests on the code and prints a line for each that begins with the mark.

    A candidate that exits, prints, or redefines built-in names does not disturb the next test; one that
    never ends leaves the results so far.
    """
    checks = [(c.source, c.want) for c in tests.checks]
    pairs = [(p.stdin, p.stdout) for p in tests.pairs]
    return f"{_HARNESS}\n_main({code!r}, {checks!r}, {pairs!r}, {mark!r})\n"


def passed(stdout: str, mark: str) -> float:
    """The share of the tests that were passed, 0 to 1, from what the program printed."""
    marked = _marked(stdout, mark)
    totals = [int(number) for kind, number, _ in marked if kind == "tests" and number.isdecimal()]
    good = {number for kind, number, _ in marked if kind == "pass"}
    return min(1.0, len(good) / totals[0]) if totals and totals[0] else 0.0


def failures(stdout: str, tests: PublicTests, mark: str) -> list[str]:
    """Each test that was not passed, with what happened instead, from what the program printed."""
    marked = _marked(stdout, mark)
    good = {number for kind, number, _ in marked if kind == "pass"}
    why = {number: text for kind, number, text in marked if kind == "fail"}
    shown = [*map(_shown_check, tests.checks), *map(_shown_pair, tests.pairs)]
    return [
        f"{test}\n-> {why.get(str(i), 'it did not come to an end')}"
        for i, test in enumerate(shown)
        if str(i) not in good
    ]


def _marked(stdout: str, mark: str) -> list[tuple[str, str, str]]:
    """The harness's own lines: kind, number and, for a failure, what happened."""
    lines = [line.split(" ", 3) for line in stdout.splitlines()]
    return [
        (words[1], words[2], "".join(words[3:])) for words in lines if len(words) > 2 and words[0] == mark
    ]


def _shown_check(check: Check) -> str:
    return check.source if check.want is None else f"{check.source}\n(expected: {check.want})"


def _shown_pair(pair: Pair) -> str:
    return f"input:\n{pair.stdin.rstrip()}\n(expected output: {pair.stdout})"


def _sessions(lines: list[str]) -> Iterator[Check]:
    """The examples of interactive sessions; statements that show nothing belong to the next one."""
    before: list[str] = []
    at = 0
    while at < len(lines):
        prompt = _PROMPT.match(lines[at])
        at += 1
        if prompt is None:
            continue
        source = [prompt["source"]]
        while at < len(lines) and (more := _MORE.match(lines[at])):
            source.append(more["source"] or "")
            at += 1
        want: list[str] = []
        while at < len(lines) and not _ENDS.match(lines[at]):
            want.append(lines[at].removeprefix(prompt["indent"]))
            at += 1
        statement = "\n".join(source)
        if not _parses(statement):
            continue
        before.append(statement)
        expected = _CLOSES_DOCSTRING.sub("", "\n".join(want)).strip()
        if expected.startswith("Traceback"):
            before.pop()
        elif expected:
            yield Check("\n".join(before), expected)
            before = []
        elif _compares(statement) or statement.startswith("assert"):
            before[-1] = statement if statement.startswith("assert") else f"assert {statement}"
            yield Check("\n".join(before))
            before = []


def _asserts(lines: list[str]) -> Iterator[Check]:
    """Assert statements that call something which is not built in, over as many lines as they take."""
    at = 0
    while at < len(lines):
        first = at
        at += 1
        if not lines[first].lstrip().startswith("assert"):
            continue
        for end in range(first + 1, min(len(lines), first + _LONGEST_ASSERT) + 1):
            source = "\n".join(lines[first:end]).strip()
            if _parses(source):
                if _calls(source):
                    yield Check(source)
                    at = end
                break


def _pairs(lines: list[str]) -> Iterator[Pair]:
    """Blocks under "Input" followed by blocks under "Output"; values with names are no standard input."""
    given: str | None = None
    for kind, text in _blocks(lines):
        if kind == "input":
            given = None if _ASSIGNMENT.match(text) else text
        elif given is not None and text:
            yield Pair(given + "\n", text)
            given = None


def _blocks(lines: list[str]) -> Iterator[tuple[str, str]]:
    """What stands under each "Input" and "Output": the rest of that line, a fenced block, or a paragraph."""
    at = 0
    while at < len(lines):
        header = _HEADER.match(lines[at])
        at += 1
        if header is None:
            continue
        body = [header["rest"]] if (header["rest"] or "").strip() else []
        while not body and at < len(lines) and not lines[at].strip():
            at += 1
        fenced = not body and at < len(lines) and bool(_FENCE_LINE.match(lines[at]))
        at += fenced
        while at < len(lines) and not (_FENCE_LINE.match(lines[at]) if fenced else _stops(lines[at])):
            body.append(lines[at])
            at += 1
        yield header["kind"].lower(), "\n".join(line.strip() for line in body).strip()


def _stops(line: str) -> bool:
    return bool(
        not line.strip() or _HEADER.match(line) or _OTHER_HEADER.match(line) or _FENCE_LINE.match(line)
    )


def _language(info: str) -> str:
    return info.split(maxsplit=1)[0].strip("{}.").lower() if info else ""


def _tree(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parses(source: str) -> bool:
    return _tree(source) is not None


def _defines(text: str) -> Iterator[bool]:
    """Whether there are statements that prose does not have."""
    tree = _tree(text)
    for statement in tree.body if tree else ():
        yield not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Call)


def _calls(source: str) -> bool:
    tree = _tree(source)
    called = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call)) if tree else ()
    return any(isinstance(f, ast.Name) and f.id not in _BUILTINS for f in called)


def _compares(source: str) -> bool:
    tree = _tree(source)
    last = tree.body[-1] if tree and tree.body else None
    return isinstance(last, ast.Expr) and isinstance(last.value, ast.Compare)


_HARNESS = '''\
def _main(code, checks, pairs, mark):
    import ast, builtins, io, os, sys

    # Taken before the candidate's code runs, which may put others in their place.
    write, names = os.write, dict(vars(builtins))
    streams = sys.stdin, sys.stdout, sys.stderr

    def say(kind, value, why=""):
        write(1, f"\\n{mark} {kind} {value} {why}".rstrip().encode("utf-8", "replace") + b"\\n")

    def apart(action, given=""):
        """Run an action with standard streams of its own.

        Returns whether it ended well, its value or the exception that ended it, and its output.
        """
        vars(builtins).update(names)
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
        sys.stdout, sys.stderr = out, io.StringIO()
        good, value = True, None
        try:
            value = action()
        except SystemExit as end:
            good = end.code in (None, 0)
            value = None if good else end
        except BaseException as error:
            good, value = False, error
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams
            vars(builtins).update(names)
        try:
            out.flush()
            return good, value, out.buffer.getvalue().decode("utf-8", "replace")
        except BaseException:
            return False, None, ""

    def shows(source, space):
        """Run statements; the value of the last one if it is an expression."""
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "test", "exec"), space)
        return eval(compile(ast.Expression(last.value), "test", "eval"), space) if last else None

    def meets(value, printed, want):
        if printed.split() == want.split() or repr(value) == want:
            return True
        try:
            wanted = ast.literal_eval(want)
        except BaseException:
            return str(value).split() == want.split()
        if isinstance(value, float) and isinstance(wanted, (int, float)):
            return abs(value - wanted) <= 1e-6 * max(1.0, abs(wanted))
        return type(value) == type(wanted) and bool(value == wanted)

    def told(source, space, good, value, printed):
        """What came of a test that was not passed."""
        last = ast.parse(source).body[-1]
        if isinstance(value, AssertionError) and isinstance(getattr(last, "test", None), ast.Compare):
            left = last.test.left
            good, value = True, eval(compile(ast.Expression(left), "test", "eval"), space)
        if not good:
            return f"{type(value).__name__}: {value}"
        return "it gave " + repr(printed if value is None and printed else value)

    def why(*outcome):
        """The same on one line, of values whose own methods may fail."""
        good, said, _ = apart(lambda: " ".join(str(told(*outcome)).split())[:300])
        return said if good else "it gave what cannot be shown"

    def lines(text):
        return [line.split() for line in text.strip().splitlines()]

    say("tests", len(checks) + len(pairs))
    space = {"__name__": "candidate"}
    loaded = apart(lambda: exec(compile(code, "candidate", "exec"), space)) if checks else (True,)
    for number, (source, want) in enumerate(checks):
        ran, value, printed = apart(lambda: shows(source, space))
        good = ran
        if ran and want is not None:
            good = apart(lambda: meets(value, printed, want))[1] is True
        if good:
            say("pass", number)
        elif not loaded[0]:
            say("fail", number, "the program itself ended with " + why("0", space, *loaded))
        else:
            say("fail", number, why(source, space, ran, value, printed))
    for number, (given, want) in enumerate(pairs):
        fresh = {"__name__": "__main__"}
        good, value, printed = apart(lambda: exec(compile(code, "candidate", "exec"), fresh), given)
        if good and lines(printed) == lines(want):
            say("pass", number)
        else:
            say("fail", number, why("0", {}, good, None if good else value, printed))
'''
