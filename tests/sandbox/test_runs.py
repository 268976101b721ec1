"""What a run is: its outcome, its files, its end, alone and among others."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.namespaces import NamespaceSandbox
from tests.sandbox.conftest import Bench, Run
from tests.sandbox.processes import descendants, settled


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("", "ok", 0),
        ("raise SystemExit", "ok", 0),
        ("import sys\nsys.exit(0)", "ok", 0),
        ("import sys\nsys.exit(7)", "error", 7),
        ("import sys\nsys.exit(256)", "ok", 0),
        ("import sys\nsys.exit(-1)", "error", 255),
        ("import sys\nsys.exit('words')", "error", 1),
        ("import os\nos._exit(9)", "error", 9),
        ("1 / 0", "error", 1),
        ("def (:", "error", 1),
        ("raise KeyboardInterrupt", "error", 1),
        ("def f(): f()\nf()", "error", 1),
        ("import os\nos.abort()", "killed", -signal.SIGABRT),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", "killed", -signal.SIGTERM),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed", -signal.SIGKILL),
        ("import ctypes\nctypes.string_at(0)", "killed", -signal.SIGSEGV),
        ("raise MemoryError", "memory", 1),
        ("try:\n    raise MemoryError\nexcept MemoryError:\n    pass", "ok", 0),
        ("print('Traceback (most recent call last):\\nMemoryError: error timeout')", "ok", 0),
        ("import sys\nprint('all good, exit 0')\nsys.exit(1)", "error", 1),
        ("import sys\nsys.stdout.close()", "ok", 0),
        ("import sys\nsys.stderr.close()\n1/0", "error", 1),
        ("import os\nos.close(1)\nprint('lost')", "error", 120),
        ("x = 1\0", "error", 1),
        ("print('\\ud800')", "ok", 0),
        ("'\ud800'", "error", 1),
        ("# coding: latin-1\nprint('é')", "ok", 0),
    ],
)
def test_the_outcome_is_how_it_ended(run: Run, code: str, status: str, exit_code: int) -> None:
    outcome = run(code)
    assert (outcome.status, outcome.exit_code) == (status, exit_code), outcome.stderr
    assert outcome.ok == (status == "ok")


def test_exit_words_go_to_stderr(run: Run) -> None:
    assert run("import sys\nsys.exit('words')").stderr == "words\n"


def test_code_is_main_with_one_namespace(run: Run) -> None:
    outcome = run(
        "from __future__ import annotations\n"
        "import inspect, sys, dataclasses, pickle, typing\n"
        "limit = 3\n"
        "def even(n): return n == 0 or odd(n - 1)\n"
        "def odd(n): return n != 0 and even(n - 1)\n"
        "@dataclasses.dataclass\n"
        "class Point:\n"
        "    x: int\n"
        "print(__name__, __file__, [n for n in range(5) if n < limit and even(n)], locals() is globals())\n"
        "print(pickle.loads(pickle.dumps(Point(1))), typing.get_type_hints(Point),"
        " sys.modules['__main__'].limit)\n"
        "print(inspect.getsource(even).strip())\n"
    )
    assert outcome.status == "ok", outcome.stderr
    assert outcome.stdout == (
        "__main__ main.py [0, 2] True\nPoint(x=1) {'x': <class 'int'>} 3\n"
        "def even(n): return n == 0 or odd(n - 1)\n"
    )


def test_the_names_of_the_sandbox_are_not_the_codes(run: Run) -> None:
    outcome = run("print(sorted(n for n in globals() if not n.startswith('__')))")
    assert outcome.stdout == "[]\n"


def test_errors_point_to_the_line(run: Run) -> None:
    outcome = run("def f(x):\n    return 1 / x\n\nf(0)\n")
    assert outcome.stderr.splitlines()[:4] == [
        "Traceback (most recent call last):",
        '  File "main.py", line 4, in <module>',
        "    f(0)",
        '  File "main.py", line 2, in f',
    ]


def test_the_libraries_work(run: Run) -> None:
    outcome = run(
        "import z3, sympy, numpy, math, fractions, itertools\n"
        "x, y = z3.Ints('x y')\n"
        "solver = z3.Solver(); solver.add(x + y == 10, x - y == 4)\n"
        "print(solver.check(), solver.model()[x], solver.model()[y])\n"
        "s = sympy.Symbol('s'); print(sympy.solve(s ** 2 - 2), sympy.integrate(sympy.sin(s), s))\n"
        "a = numpy.array([[2.0, 0], [0, 4]]); print(numpy.linalg.inv(a).tolist())\n"
        "print(math.comb(5, 2), fractions.Fraction(1, 3) + 1, list(itertools.permutations('ab')))\n"
    )
    assert outcome.status == "ok", outcome.stderr
    assert outcome.stdout.splitlines() == [
        "sat 7 3",
        "[-sqrt(2), sqrt(2)] -cos(s)",
        "[[0.5, 0.0], [0.0, 0.25]]",
        "10 4/3 [('a', 'b'), ('b', 'a')]",
    ]


def test_threads_and_asyncio_work(run: Run) -> None:
    outcome = run(
        "import asyncio, concurrent.futures, atexit, threading, time\n"
        "async def one(n):\n    await asyncio.sleep(0.01)\n    return n\n"
        "async def main():\n    return await asyncio.gather(*(one(n) for n in range(3)))\n"
        "print(asyncio.run(main()))\n"
        "with concurrent.futures.ThreadPoolExecutor(4) as pool: print(list(pool.map(abs, (-1, -2))))\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\n"
    )
    assert (outcome.status, outcome.stdout) == ("ok", "[0, 1, 2]\n[1, 2]\nthread\nat exit\n"), outcome.stderr


def test_input_can_be_read(run: Run) -> None:
    text = "3\nä 🎉\n" + "x" * 300_000
    outcome = run("n = int(input())\nprint(n, input(), len(input()))", stdin=text)
    assert outcome.stdout == "3 ä 🎉 300000\n"
    assert run("input()").stderr.endswith("EOFError: EOF when reading a line\n")
    refused = run("import os\nos.write(0, b'x' * 100)", stdin="abc")
    assert refused.status == "error"


def test_files_go_in_and_come_out(run: Run) -> None:
    outcome = run(
        "import os, pathlib, lib.helper\n"
        "print(open('data/in.bin', 'rb').read(), lib.helper.x, os.getcwd())\n"
        "os.makedirs('out/deep'); pathlib.Path('out/deep/r.txt').write_bytes(b'\\x00\\xff')\n"
        "pathlib.Path('locked').write_text('x'); os.chmod('locked', 0); os.chmod('out', 0)\n"
        "os.remove('data/in.bin')\n",
        files={"data/in.bin": b"\x00\x01", "lib/helper.py": b"x = 5"},
        keep_files=True,
    )
    assert (outcome.status, outcome.stdout) == ("ok", "b'\\x00\\x01' 5 /scratch\n"), outcome.stderr
    assert outcome.files == {"out/deep/r.txt": b"\x00\xff", "locked": b"x", "lib/helper.py": b"x = 5"}


def test_files_come_out_of_a_run_that_failed(run: Run) -> None:
    outcome = run("open('a', 'w').write('x')\nwhile True: pass", timeout=0.5, keep_files=True)
    assert (outcome.status, dict(outcome.files)) == ("timeout", {"a": b"x"})
    assert run("open('a', 'w').write('x')").files == {}


def test_odd_files_do_not_trouble_the_supervisor(run: Run) -> None:
    outcome = run(
        "import os\n"
        "os.chdir('/scratch')\n"
        "open(b'\\xff\\xfe', 'w').write('odd')\n"
        "for i in range(200):\n    os.mkdir('d'); os.chdir('d')\n"
        "open('deep', 'w').write('x')\n",
        keep_files=True,
    )
    assert (outcome.status, dict(outcome.files)) == ("ok", {"\ufffd\ufffd": b"odd"}), outcome.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": 1e9},
        {"memory_mb": 1},
        {"memory_mb": 1 << 20},
        {"files": {"/etc/passwd": b""}},
        {"files": {"../x": b""}},
        {"files": {"a/../../x": b""}},
        {"files": {"": b""}},
        {"files": {".": b""}},
        {"files": {"a\0b": b""}},
        {"files": {"big": b"x" * (65 << 20)}},
    ],
)
def test_arguments_out_of_range_are_named(run: Run, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        run("", **arguments)


def test_files_that_contradict_each_other_are_a_plain_error(run: Run) -> None:
    with pytest.raises(ValueError, match="files"):
        run("", files={"a": b"", "a/b": b""})
    with pytest.raises(ValueError, match="files"):
        run("", files={"x" * 300: b""})


def test_twenty_at_once_do_not_mix(bench: Bench) -> None:
    async def all_of_them() -> list[str]:
        code = (
            "import os, sys, time\n"
            "me = input()\n"
            "open('me', 'w').write(me)\n"
            "time.sleep(0.1)\n"
            "print(me, open('me').read(), os.listdir('.'), os.getpid())\n"
            "sys.exit(int(me) % 2)"
        )
        outcomes = await asyncio.gather(*(bench.sandbox.run(code, stdin=str(i)) for i in range(20)))
        assert [o.exit_code for o in outcomes] == [i % 2 for i in range(20)]
        return [o.stdout for o in outcomes]

    assert bench.do(all_of_them()) == [f"{i} {i} ['me'] 2\n" for i in range(20)]


def test_the_pool_is_bounded() -> None:
    """With two places, the third run starts when one of the first two has ended."""

    async def busy() -> int:
        sandbox = NamespaceSandbox(runs=2, preload=())
        try:
            await sandbox.start()
            idle = len(descendants())
            tasks = [asyncio.ensure_future(sandbox.run("while True: pass", timeout=1)) for _ in range(6)]
            most = 0
            while not all(task.done() for task in tasks):
                most = max(most, len(descendants()) - idle)
                await asyncio.wait(tasks, timeout=0.02)
            assert all(task.result().status == "timeout" for task in tasks)
            return most
        finally:
            await sandbox.aclose()

    # A supervisor, process 1 and the code for each of the two.
    assert 3 <= asyncio.run(busy()) <= 6


def test_cancelling_leaves_no_process(bench: Bench) -> None:
    async def cancel() -> None:
        task = asyncio.ensure_future(
            bench.sandbox.run(
                "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", timeout=300
            )
        )
        while len(descendants() - bench.idle) < 3:
            await asyncio.wait([task], timeout=0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert settled() == bench.idle

    bench.do(cancel())


def test_cancelling_at_any_moment_leaves_no_process(bench: Bench) -> None:
    async def cancel_all() -> None:
        for steps in range(12):
            task = asyncio.ensure_future(bench.sandbox.run("while True: pass", timeout=300))
            for _ in range(steps):
                await asyncio.wait([task], timeout=0.003)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert settled() == bench.idle

    bench.do(cancel_all())


def test_closing_ends_everything() -> None:
    async def close() -> None:
        before = descendants()
        sandbox = NamespaceSandbox(preload=())
        task = asyncio.ensure_future(sandbox.run("while True: pass", timeout=300))
        while len(descendants() - before) < 5:
            await asyncio.wait([task], timeout=0.01)
        await sandbox.aclose()
        assert (await task).status == "killed"
        assert settled(until=lambda now: now == before) == before
        with pytest.raises(SandboxUnavailable, match="closed"):
            await sandbox.run("")
        await sandbox.aclose()

    asyncio.run(close())


def test_a_sandbox_that_was_killed_starts_again() -> None:
    async def kill() -> None:
        before = descendants()
        sandbox = NamespaceSandbox(preload=())
        await sandbox.start()
        task = asyncio.ensure_future(sandbox.run("while True: pass", timeout=300))
        while len(descendants() - before) < 5:
            await asyncio.wait([task], timeout=0.01)
        for pid in descendants() - before:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        outcome = await task
        assert (outcome.status, outcome.exit_code) == ("killed", None)
        assert (await sandbox.run("print(1)")).stdout == "1\n"
        await sandbox.aclose()
        assert settled(until=lambda now: now == before) == before

    asyncio.run(kill())


def test_it_ends_with_the_server() -> None:
    """When the server is killed, its control socket closes, and nothing survives."""
    import subprocess
    import sys

    script = (
        "import asyncio\n"
        "from optillm.sandbox.namespaces import NamespaceSandbox\n"
        "async def main():\n"
        "    sandbox = NamespaceSandbox(preload=())\n"
        "    await sandbox.start()\n"
        "    print('ready', flush=True)\n"
        "    await sandbox.run('while True: pass', timeout=300)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        # The launcher, the zygote, the supervisor, process 1 and the code.
        started = settled(until=lambda now: len(descendants(server.pid)) >= 5) and descendants(server.pid)
        assert len(started) >= 5
        server.kill()
    end = settled(until=lambda _: not any(os.path.exists(f"/proc/{pid}") for pid in started))
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")], end
