"""Code that takes too much: it is ended, the reason is told, the machine does not suffer."""

from __future__ import annotations

import pytest

from tests.sandbox.conftest import Run


def test_a_memory_bomb_is_reported_as_memory(run: Run) -> None:
    outcome = run("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", memory_mb=128)
    assert (outcome.status, outcome.exit_code) == ("memory", 1)
    assert "MemoryError" in outcome.stderr


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(4 << 30)",
        "import mmap\nx = mmap.mmap(-1, 4 << 30)",
        "import numpy\nx = numpy.ones(1 << 30)",
        "x = ['a' * 1000] * (1 << 30)",
    ],
)
def test_one_great_allocation_fails(run: Run, code: str) -> None:
    outcome = run(code, memory_mb=256)
    assert outcome.status in ("memory", "error")
    assert outcome.exit_code == 1


def test_a_program_that_copes_with_too_little_memory_is_ok(run: Run) -> None:
    outcome = run("try:\n    bytearray(4 << 30)\nexcept MemoryError:\n    print('none left')", memory_mb=64)
    assert (outcome.status, outcome.stdout) == ("ok", "none left\n")


def test_memory_that_was_asked_for_is_there(run: Run) -> None:
    assert run("x = bytearray(200 << 20)\nprint(len(x))", memory_mb=300).status == "ok"
    assert run("x = bytearray(400 << 20)\nprint(len(x))", memory_mb=300).status == "memory"


def test_files_do_not_get_around_the_memory_limit(run: Run) -> None:
    """The scratch folder is memory as well, of a size of its own."""
    outcome = run(
        "data = b'x' * (1 << 20)\n"
        "for i in range(1000):\n"
        "    with open(f'f{i}', 'wb') as f:\n"
        "        f.write(data)"
    )
    assert outcome.status == "error"
    assert "No space left on device" in outcome.stderr


def test_one_file_is_limited(run: Run) -> None:
    outcome = run("import signal\nf = open('f', 'wb')\nf.truncate(1 << 40)")
    assert outcome.status in ("error", "killed")


def test_the_number_of_files_is_limited(run: Run) -> None:
    outcome = run("import os\nfor i in range(100_000):\n    os.mkdir(f'd{i}')")
    assert outcome.status == "error"
    assert "No space left on device" in outcome.stderr


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import signal\nfor s in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nsignal.pause()",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import threading\nthreading.Thread(target=threading.Event().wait).start()",
        "import atexit, time\natexit.register(time.sleep, 1000)",
        "input()",
        "9 ** 9 ** 9 ** 9",
        "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')",
        "import os\nr, w = os.pipe()\nos.read(r, 1)",
        "import sys, os\nsys.stdout.close(); sys.stderr.close()\nos.close(1); os.close(2)\nwhile True: pass",
    ],
)
def test_what_does_not_end_is_ended(run: Run, code: str) -> None:
    stdin = "" if code != "input()" else "x"
    if code == "input()":
        code = "input()\nwhile True: pass"
    outcome = run(code, timeout=0.7, stdin=stdin)
    assert (outcome.status, outcome.exit_code) == ("timeout", None)


def test_cpu_time_of_all_threads_counts(run: Run) -> None:
    """Four threads outside the interpreter's lock use up the CPU seconds before the wall seconds."""
    code = (
        "import hashlib, threading\n"
        "def burn():\n"
        "    while True: hashlib.sha256(bytes(1 << 24))\n"
        "for _ in range(4): threading.Thread(target=burn).start()"
    )
    outcome = run(code, timeout=3)
    assert outcome.status == "timeout"


def test_what_was_printed_before_the_end_is_kept(run: Run) -> None:
    outcome = run("print('half', flush=True)\nwhile True: pass", timeout=0.5)
    assert (outcome.status, outcome.stdout) == ("timeout", "half\n")


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(1, b'\\xff' * 65536)",
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        "import sys\nsys.stdout.write('x' * (64 << 20))",
    ],
)
def test_output_without_end_is_cut(run: Run, code: str) -> None:
    outcome = run(code, timeout=20)
    assert (outcome.status, outcome.exit_code) == ("output", None)
    assert len(outcome.stdout) <= 1 << 20
    assert len(outcome.stderr) <= 16 << 10


def test_output_up_to_the_cap_is_whole(run: Run) -> None:
    outcome = run("import sys\nsys.stdout.write('x' * (1 << 20))")
    assert (outcome.status, len(outcome.stdout)) == ("ok", 1 << 20)
    assert run("import sys\nsys.stdout.write('x' * ((1 << 20) + 1))").status == "output"


def test_of_long_errors_the_end_is_kept(run: Run) -> None:
    outcome = run("import sys\nsys.stderr.write('x' * 500_000 + 'the end')\nsys.exit(3)")
    assert (outcome.status, outcome.exit_code) == ("error", 3)
    assert outcome.stderr.endswith("xthe end")
    assert len(outcome.stderr) == 16 << 10


def test_output_that_is_no_text_is_replaced(run: Run) -> None:
    outcome = run("import os\nos.write(1, b'a\\xff\\x00b')\nos.write(2, bytes(range(256)))")
    assert (outcome.status, outcome.stdout) == ("ok", "a\ufffd\0b")


def test_file_descriptors_run_out(run: Run) -> None:
    outcome = run("x = []\nwhile True: x.append(open('/dev/null'))")
    assert outcome.status == "error"
    assert "Too many open files" in outcome.stderr


def test_threads_run_out(run: Run) -> None:
    outcome = run(
        "import threading\n"
        "threading.stack_size(64 << 10)\n"
        "stop = threading.Event()\n"
        "n = 0\n"
        "try:\n"
        "    while n < 10_000:\n"
        "        threading.Thread(target=stop.wait, daemon=True).start(); n += 1\n"
        "except RuntimeError as error:\n"
        "    print(n, error)"
    )
    assert outcome.status == "ok", outcome.stderr
    started, _, reason = outcome.stdout.partition(" ")
    assert 8 <= int(started) < 64
    assert "can't start new thread" in reason


def test_locked_memory_and_real_time_are_refused(run: Run) -> None:
    outcome = run(
        "import os, ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "print(libc.mlockall(3))\n"
        "try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))\n"
        "except PermissionError: print('no')\n"
        "try: os.nice(-5)\n"
        "except PermissionError: print('no')\n"
    )
    assert outcome.stdout == "-1\nno\nno\n"


def test_limits_cannot_be_raised(run: Run) -> None:
    outcome = run(
        "import resource\n"
        "for name in ('AS', 'CPU', 'NPROC', 'NOFILE'):\n"
        "    try: resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (1 << 40, 1 << 40))\n"
        "    except (ValueError, PermissionError): print('no')\n"
    )
    assert outcome.stdout == "no\n" * 4


def test_a_great_many_files_are_not_handed_back(run: Run) -> None:
    """Sparse files take no space; what is read of them would."""
    outcome = run(
        "for i in range(100):\n    with open(f'f{i}', 'wb') as f: f.truncate(40 << 20)", keep_files=True
    )
    assert outcome.status == "output"
    assert sum(map(len, outcome.files.values())) <= 64 << 20
