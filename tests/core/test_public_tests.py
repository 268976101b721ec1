"""Tests found in questions, and the program that runs a candidate against them, really run."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.public_tests import (
    Check,
    Pair,
    PublicTests,
    candidate_code,
    failures,
    find_tests,
    passed,
    program,
)

HUMAN_EVAL = '''\
from typing import List

def largest(xs: List[int], most: int) -> List[int]:
    """ The largest numbers, in order.
    >>> largest([3, 1, 2], 2)
    [3, 2]
    >>> largest([], 4)

    >>> largest(
    ...     [1], 1)
    [1]
    """
'''
MARK = "5ca1ab1e"


def printed(code: str, tests: PublicTests) -> str:
    """What the program prints in a process of its own (these candidates are our own)."""
    source = program(code, tests, MARK)
    return subprocess.run(
        [sys.executable, "-I", "-c", source], capture_output=True, text=True, timeout=60
    ).stdout


def run(code: str, tests: PublicTests) -> float:
    return passed(printed(code, tests), MARK)


def found(text: str) -> PublicTests:
    tests = find_tests(text)
    assert tests is not None
    return tests


def test_sessions_in_a_docstring() -> None:
    assert found(HUMAN_EVAL).checks == (
        Check("largest([3, 1, 2], 2)", "[3, 2]"),
        Check("largest([], 4)\nlargest(\n    [1], 1)", "[1]"),
    )


def test_a_session_keeps_its_statements_and_its_closing_quotes_do_not_count() -> None:
    text = ">>> s = Stack()\n>>> s.push(1)\n>>> s.pop()\n1\n\n>>> f(2)\n\"two\"\n'''"
    assert found(text).checks == (Check("s = Stack()\ns.push(1)\ns.pop()", "1"), Check("f(2)", '"two"'))
    assert found("    >>> f(3)\n    True'''").checks == (Check("f(3)", "True"),)


def test_a_session_with_comparisons_and_errors() -> None:
    text = ">>> f([1]) == -9\n>>> f([]) == None\n>>> f(0)\nTraceback (most recent call last):\nValueError\n"
    assert found(text).checks == (Check("assert f([1]) == -9"), Check("assert f([]) == None"))


def test_asserts_over_several_lines() -> None:
    text = "Pass these:\nassert add(1, 2) == 3\n  assert add(\n    1,\n    1,\n  ) == 2\nThanks."
    assert found(text).checks == (
        Check("assert add(1, 2) == 3"),
        Check("assert add(\n    1,\n    1,\n  ) == 2"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "assert that the sky is blue",
        "assert x > 0\nassert isinstance(x, int)",
        "What is 2+2?",
        "Input: nums = [2,7], target = 9\nOutput: [0,1]",
        "Output: 3",
        "Input to this function is a string.",
        ">>> not ( python\n3",
        "",
    ],
)
def test_no_tests(text: str) -> None:
    assert find_tests(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Input:\n2 3\nOutput:\n5",
        "Sample Input 1:\n\n2 3\n\nSample Output 1:\n\n5\n\nNote: sums.",
        "### Input\n```\n2 3\n```\n### Output\n```\n5\n```",
        "**Input:** 2 3\n**Output:** 5\nExplanation: 2 + 3",
        "```\nInput:\n2 3\nOutput:\n5\n```",
        "Example 1\nINPUT\n  2 3\nOUTPUT\n  5",
    ],
)
def test_pairs(text: str) -> None:
    assert found(text).pairs == (Pair("2 3\n", "5"),)


def test_several_pairs_and_many_tests() -> None:
    text = "\n".join(f"Input:\n{i}\nOutput:\n{i + 1}\n" for i in range(3))
    assert [p.stdout for p in found(text).pairs] == ["1", "2", "3"]
    assert len(found("\n".join(f"assert f({i})" for i in range(99)))) == 50


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nand\n```py\ny = 2\nz = 3\n```", "y = 2\nz = 3"),
        ("```\ndef f(): pass\n```", "def f(): pass"),
        ("```js\nlet x = 1\n```", None),
        ("```python\nlet x = 1\n```", None),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("<think>def g(): 1</think>print(1)", "print(1)"),
        ("yes", None),
        ("It is 4.", None),
        ("", None),
    ],
)
def test_candidate_code(reply: str, code: str | None) -> None:
    assert candidate_code(reply) == code


def test_an_unclosed_block_counts_unless_it_was_cut_off() -> None:
    assert candidate_code("```python\nx = 1\n") == "x = 1"
    assert candidate_code("```python\nx = 1\n", truncated=True) is None


CHECKS = PublicTests(checks=(Check("f(2)", "4"), Check("assert f(3) == 9"), Check("f(0.5)", "0.25")))


@pytest.mark.parametrize(
    ("code", "rate"),
    [
        ("def f(x): return x * x", 1),
        ("def f(x): return 4", 1 / 3),
        ("def f(x):\n    print('busy')\n    return x ** 2", 1),
        ("def f(x): return x * x + (1e-9 if x < 1 else 0)", 1),
        ("def f(x):\n    if x == 3: raise KeyboardInterrupt\n    return x * x", 2 / 3),
        ("def f(x):\n    if x == 2: raise SystemExit\n    return x * x", 2 / 3),
        ("def f(x): return x * x\nassert f(2) == 5", 1),
        ("def f(x: ", 0),
        ("def g(x): return x", 0),
        ("f = str", 0),
        ("raise SystemExit(1)", 0),
        ("import os\nos._exit(0)", 0),
        (
            "import builtins as b\nb.repr = b.type = None\ndel b.eval\ndef f(x): return x * x",
            1,
        ),
        ("import sys\nsys.stdout = sys.stdin = None\ndef f(x): return x * x", 1),
        ("import sys\ndef f(x):\n    sys.stdout.close()\n    return x * x", 0),
    ],
)
def test_checks(code: str, rate: float) -> None:
    assert run(code, CHECKS) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("value", "want", "good"),
    [
        ("'a'", '"a"', True),
        ("'a b'", "a b", True),
        ("[1, 2]", "[1,2]", True),
        ("(1, 2)", "[1, 2]", False),
        ("None", "None", True),
        ("True", "1", False),
        ("1", "True", False),
        ("{2, 1}", "{1, 2}", True),
        ("0.30000000000000004", "0.3", True),
        ("0.31", "0.3", False),
        ("print(3)", "3", True),
    ],
)
def test_what_counts_as_shown(value: str, want: str, good: bool) -> None:
    assert run(f"def f(): return {value}", PublicTests(checks=(Check("f()", want),))) == good


def test_what_a_test_changes_is_there_in_the_next() -> None:
    tests = found(">>> s = Stack()\n>>> s.push(1)\n>>> s.size()\n1\n>>> s.push(2)\n>>> s.size()\n2\n")
    stack = "class Stack(list):\n    push = list.append\n    def size(self): return len(self)"
    assert run(stack, tests) == 1


PAIRS = PublicTests(pairs=(Pair("2 3\n", "5"), Pair("4 5\n", "9")))


@pytest.mark.parametrize(
    ("code", "rate"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", 1),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", 1),
        ("def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__': main()", 1),
        ("import sys\nsys.stdout.buffer.write(b'5\\n')", 0.5),
        ("print(' 5 ')\nprint()\nexit()", 0.5),
        ("print(5, 'or', 9)", 0),
        ("input(); input()", 0),
        ("print(sum(map(int, input().split())))\nraise ValueError", 0),
    ],
)
def test_pairs_are_run_as_programs(code: str, rate: float) -> None:
    assert run(code, PAIRS) == rate


def test_results_cannot_be_printed_by_the_candidate() -> None:
    forged = "\n".join(f"{word} pass {i}" for word in ("mark", "MARK", "0") for i in range(3))
    code = f"import os\nos.write(1, {forged!r}.encode())\nprint({forged!r})\ndef f(x): return None"
    assert run(code, CHECKS) == 0


def test_results_are_read_as_far_as_they_came() -> None:
    lines = [f"{MARK} tests 4", f"{MARK} pass 0", "noise", f"{MARK} fail 1", f"{MARK} pass 2"]
    assert passed("\n".join(lines), MARK) == 0.5
    assert passed("\n".join([*lines, f"{MARK} pass 2"]), MARK) == 0.5
    assert passed("", MARK) == passed(f"{MARK} tests 0", MARK) == passed(f"{MARK} pass 0", MARK) == 0


@given(st.text(alphabet=">. \n'\"`abcf()=12:InputOs", max_size=200))
def test_any_text_can_be_searched(text: str) -> None:
    tests = find_tests(text)
    assert tests is None or len(tests) > 0
    candidate_code(text)
    passed(text, MARK)


@given(st.text(max_size=60), st.text(max_size=30), st.text(max_size=30))
def test_any_code_and_tests_make_a_program(code: str, source: str, want: str) -> None:
    tests = PublicTests(checks=(Check(source, want),), pairs=(Pair(source, want),))
    compile(program(code, tests, MARK), "program", "exec")


def test_failures_are_told() -> None:
    tests = PublicTests(
        checks=(Check("assert f(1) == 2"), Check("f(2)", "4"), Check("f(3)", "6"), Check("assert f(0)")),
    )
    code = "def f(n):\n    if n == 3: raise KeyError('three\\nlines')\n    return n * 2 if n == 1 else -n"
    out = printed(code, tests)
    assert passed(out, MARK) == 0.25
    assert failures(out, tests, MARK) == [
        "f(2)\n(expected: 4)\n-> it gave -2",
        "f(3)\n(expected: 6)\n-> KeyError: 'three\\nlines'",
        "assert f(0)\n-> AssertionError:",
    ]
    first = PublicTests(checks=(Check("assert f(1) == 2"),))
    assert failures(printed("def f(n): return [n]", first), first, MARK) == [
        "assert f(1) == 2\n-> it gave [1]"
    ]
    broken = failures(printed("import absent\ndef f(n): return 2", first), first, MARK)
    assert broken == [
        "assert f(1) == 2\n-> the program itself ended with ModuleNotFoundError: No module named 'absent'"
    ]


def test_failures_of_whole_programs() -> None:
    tests = PublicTests(pairs=(Pair("2\n", "4"), Pair("x\n", "0")))
    assert failures(printed("print(int(input()) + 1)", tests), tests, MARK) == [
        "input:\n2\n(expected output: 4)\n-> it gave '3\\n'",
        "input:\nx\n(expected output: 0)\n-> ValueError: invalid literal for int() with base 10: 'x'",
    ]


def test_a_test_that_did_not_end_is_a_failure() -> None:
    tests = PublicTests(checks=(Check("f(1)", "1"), Check("f(2)", "2")))
    out = printed("import os\ndef f(n): return n if n == 1 else os._exit(0)", tests)
    assert failures(out, tests, MARK) == ["f(2)\n(expected: 2)\n-> it did not come to an end"]


@pytest.mark.parametrize(
    "body",
    [
        "return type('X', (), {'__repr__': lambda self: 1 / 0})()",
        "raise type('X', (Exception,), {'__str__': lambda self: 1 / 0})",
        "raise ValueError('\\ud800')",
        "raise ValueError('a\\n' * 10000)",
        "return type('X', (str,), {'split': lambda self: [self]})('5ca1ab1e\\n')",
        "raise SystemExit(0)",
        "raise SystemExit(3)",
    ],
)
def test_what_cannot_be_shown_disturbs_nothing(body: str) -> None:
    tests = PublicTests(checks=(Check("f()", "0"), Check("g()", "1")))
    out = printed(f"def g(): return 1\ndef f(): {body}", tests)
    assert passed(out, MARK) == 0.5
    (told,) = failures(out, tests, MARK)
    assert told.startswith("f()\n(expected: 0)\n-> ")
    assert len(told) < 400
