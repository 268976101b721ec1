"""A question's own tests, run in the sandbox."""

from __future__ import annotations

import pytest

from optillm.core.public_tests import Check, Pair, PublicTests, passed, program
from tests.sandbox.conftest import Run

MARK = "5ca1ab1e5ca1ab1e"
CHECKS = PublicTests(checks=(Check("f(1)", "1"), Check("assert f(2) == 4"), Check("f(3)", "9")))
PAIRS = PublicTests(pairs=(Pair("2 3\n", "5"), Pair("4 5\n", "9")))


@pytest.mark.parametrize(
    ("code", "tests", "rate"),
    [
        ("def f(x): return x * x", CHECKS, 1),
        ("def f(x): return 1", CHECKS, 1 / 3),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", PAIRS, 1),
        ("print(5)", PAIRS, 0.5),
        ("open('/etc/passwd').read()\ndef f(x): return x * x", CHECKS, 0),
        ("import sys, os\nprint(sys.argv, os.environ, os.listdir('.'))\ndef f(x): return 0", CHECKS, 0),
    ],
)
def test_rates(run: Run, code: str, tests: PublicTests, rate: float) -> None:
    assert passed(run(program(code, tests, MARK)).stdout, MARK) == pytest.approx(rate)


def test_a_candidate_that_never_ends_keeps_what_it_passed(run: Run) -> None:
    code = "def f(x):\n    while x == 3: pass\n    return x * x"
    outcome = run(program(code, CHECKS, MARK), timeout=1.0)
    assert outcome.status == "timeout"
    assert passed(outcome.stdout, MARK) == pytest.approx(2 / 3)


def test_a_candidate_that_eats_memory_fails_its_test_alone(run: Run) -> None:
    code = "def f(x):\n    if x == 2: bytearray(1 << 40)\n    return x * x"
    assert passed(run(program(code, CHECKS, MARK), memory_mb=256).stdout, MARK) == pytest.approx(2 / 3)
