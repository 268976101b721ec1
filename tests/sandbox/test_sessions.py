"""Sessions: blocks in one namespace that may ask the server; and code that abuses the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from optillm.core.tools import CallRefused, Calls, Outcome, Session
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.blocks import MOST_REQUESTS
from optillm.sandbox.namespaces import NamespaceSandbox
from optillm.sandbox.session import MOST_REQUEST
from tests.sandbox.conftest import Bench
from tests.sandbox.processes import descendants, settled

T = TypeVar("T")


class Host:
    """Answers ``echo`` with what it got, refuses ``no``, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    async def __call__(self, name: str, arguments: Any) -> Any:
        self.asked.append((name, arguments))
        await asyncio.sleep(0)
        if name == "no":
            raise CallRefused("not that: é")
        return {"got": arguments}


def using(bench: Bench, work: Callable[[Session], Awaitable[T]], **arguments: Any) -> T:
    async def whole() -> T:
        async with bench.sandbox.session(**arguments) as session:
            return await work(session)

    return bench.do(whole())


def blocks(bench: Bench, *codes: str, calls: Calls | None = None, **arguments: Any) -> list[Outcome]:
    async def one_by_one(session: Session) -> list[Outcome]:
        return [await session.run(code, calls=calls) for code in codes]

    return using(bench, one_by_one, **arguments)


def test_names_stay(bench: Bench) -> None:
    one, two, three = blocks(bench, "x = 5", "def f(): return x + y\ny = 2", "print(f())")
    assert (one.status, one.stdout, one.alive) == ("ok", "", True)
    assert two.ok
    assert (three.stdout, three.stderr) == ("7\n", "")


def test_the_value_at_the_end_is_printed(bench: Bench) -> None:
    out = blocks(bench, "x = [1]; x", "None", "print(2)", "if x:\n    3", "")
    assert [o.stdout for o in out] == ["[1]\n", "", "2\n", "", ""]
    assert all(o.ok for o in out)


def test_files_are_there(bench: Bench) -> None:
    (outcome,) = blocks(bench, "print(open('a/in.txt').read())", files={"a/in.txt": "é".encode()})
    assert outcome.stdout == "é\n"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("1 / 0", "error", "ZeroDivisionError"),
        ("x = (", "error", "SyntaxError"),
        ("x = 1\0", "error", "null bytes"),
        ("import sys; sys.exit(3)", "error", ""),
        ("import sys; sys.exit('words')", "error", "words"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("exit = 1; raise SystemExit", "ok", ""),
        ("x = bytearray(1 << 40)", "memory", "MemoryError"),
        ("print('x' * (3 << 20))", "output", ""),
        ("def f(): f()\nf()", "error", "RecursionError"),
    ],
)
def test_a_failure_is_told_and_the_names_stay(bench: Bench, code: str, status: str, said: str) -> None:
    _, failed, after = blocks(bench, "kept = 6 * 7", code, "kept")
    assert (failed.status, failed.alive) == (status, True), failed.stderr
    assert said in failed.stderr
    assert (after.status, after.stdout) == ("ok", "42\n")


def test_errors_show_the_line_and_no_path_of_the_machine(bench: Bench) -> None:
    host = Host()
    first, second, third = blocks(bench, "x = 1\n1 / 0", "x = (", "ask('no', 1)", calls=host)
    assert first.stderr.startswith(
        'Traceback (most recent call last):\n  File "block-1.py", line 2, in <module>'
    )
    assert second.stderr.startswith('  File "block-2.py", line 1\n')
    assert third.stderr.endswith("RuntimeError: not that: é\n")
    assert '  File "<optillm>/' in third.stderr


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "import time\ntime.sleep(100)", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')"],
)
def test_an_endless_block_is_interrupted(bench: Bench, code: str) -> None:
    _, stopped, after = blocks(bench, "kept = 42", f"print('half')\n{code}", "kept", timeout=0.5)
    assert (stopped.status, stopped.alive, stopped.stdout) == ("timeout", True, "half\n")
    assert "KeyboardInterrupt" in stopped.stderr
    assert after.stdout == "42\n"


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        (
            "import time\nwhile True:\n"
            "    try:\n        while True: time.sleep(9)\n    except BaseException: pass",
            "timeout",
            None,
        ),
        ("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", "timeout", None),
        ("import os\nos._exit(0)", "error", 0),
        ("import os\nos._exit(9)", "error", 9),
        ("import os\nos.abort()", "killed", -6),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed", -9),
    ],
)
def test_after_the_end_of_the_process_there_is_a_fresh_one(
    bench: Bench, code: str, status: str, exit_code: int | None
) -> None:
    before, ended, after = blocks(
        bench,
        "kept = 1",
        code,
        "print('kept' in globals(), open('f').read())",
        timeout=0.5,
        files={"f": b"here"},
    )
    assert before.alive
    assert (ended.status, ended.exit_code, ended.alive) == (status, exit_code, False), ended.stderr
    assert (after.status, after.stdout) == ("ok", "False here\n")


def test_code_asks_and_is_answered(bench: Bench) -> None:
    host = Host()
    value = {"a": [1, 2.5, None, True, "é\U0001f600"], "b": {}}
    first, refused, caught = blocks(
        bench,
        f"answer = ask('echo', {value!r})\nprint(answer['got'] == {value!r})",
        "ask('no', [])",
        "try:\n    ask('no', [])\nexcept RuntimeError as error:\n    print(error)\nask('echo', 1)",
        calls=host,
    )
    assert first.stdout == "True\n", first.stderr
    assert (refused.status, refused.alive) == ("error", True)
    assert caught.stdout == "not that: é\n{'got': 1}\n"
    assert host.asked == [("echo", value), ("no", []), ("no", []), ("echo", 1)]


def test_without_anybody_to_ask_everything_is_refused(bench: Bench) -> None:
    (outcome,) = blocks(bench, "ask('echo', 1)")
    assert "RuntimeError: there is nobody to ask" in outcome.stderr


def test_large_requests_and_answers(bench: Bench) -> None:
    host = Host()
    n = 5 << 20
    (outcome,) = blocks(bench, f"print(len(ask('echo', 'x' * {n})['got']))", calls=host)
    assert outcome.stdout == f"{n}\n", outcome.stderr


def test_threads_ask_one_after_the_other(bench: Bench) -> None:
    host = Host()
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    print(sum(pool.map(lambda i: ask('echo', i)['got'], range(50))))"
    )
    (outcome,) = blocks(bench, code, calls=host)
    assert outcome.stdout == f"{sum(range(50))}\n", outcome.stderr


def test_the_code_stands_still_while_it_is_answered(bench: Bench) -> None:
    """Its clock too: a block may wait for longer than it may run. Its threads count nothing meanwhile."""
    counts: list[int] = []

    async def slow(name: str, arguments: Any) -> Any:
        counts.append(arguments)
        await asyncio.sleep(1.5)
        return None

    code = (
        "import threading\nn = 0\n"
        "def count():\n    global n\n    while not over: n += 1\n"
        "over = False\nthread = threading.Thread(target=count)\nthread.start()\n"
        "import time\ntime.sleep(0.1)\n"
        "before = time.thread_time_ns(), time.process_time()\n"
        "ask('slow', n)\nprint(time.process_time() - before[1] < 0.5)\n"
        "over = True\nthread.join()"
    )
    (outcome,) = blocks(bench, code, calls=slow, timeout=1)
    assert (outcome.status, outcome.stdout) == ("ok", "True\n"), outcome.stderr
    assert outcome.seconds < 1
    assert len(counts) == 1


def test_between_blocks_it_stands_still_too(bench: Bench) -> None:
    async def work(session: Session) -> Outcome:
        await session.run(
            "import threading, time\nover = False\n"
            "def spin():\n    while not over: pass\n"
            "thread = threading.Thread(target=spin)\nthread.start()\nbefore = time.process_time()"
        )
        await asyncio.sleep(1)
        return await session.run("print(time.process_time() - before < 0.5)\nover = True\nthread.join()")

    assert using(bench, work).stdout == "True\n"


# -- hostile use of the channel ------------------------------------------------------------------

FORGED = (
    "import os, struct\ndef say(kind, body, size=None):\n    size = len(body) if size is None else size\n"
)
FORGED += "    os.write(3, struct.pack('!cI', kind, size) + body)\n"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.write(3, b'garbage' * 1000)\nwhile True: pass",
        "import os\nwhile True: os.write(3, b'\\0' * 65536)",
        FORGED + "say(b'X', b'unknown kind')\nwhile True: pass",
        FORGED + "say(b'?', b'', 0)\nwhile True: pass",
        FORGED + f"say(b'?', b'', {MOST_REQUEST + 1})\nwhile True: pass",
        FORGED + "say(b'?', b'', 0xffffffff)\nwhile True: os.write(3, bytes(65536))",
        FORGED + "say(b'.', b'zz')\nwhile True: pass",
        "import os\nos.close(3)\nwhile True: pass",
        "import socket as s\ns.socket(s.AF_UNIX, s.SOCK_STREAM, 0, fileno=3).shutdown(2)\nwhile True: pass",
    ],
)
def test_nonsense_ends_the_process(bench: Bench, code: str) -> None:
    host = Host()
    ended, after = blocks(bench, code, "6 * 7", calls=host, timeout=5)
    assert (ended.status, ended.exit_code, ended.alive) == ("killed", None, False), ended.stderr
    assert after.stdout == "42\n"
    assert host.asked == []


@pytest.mark.parametrize(
    "body",
    ["b'no json'", "b'{}'", "b'[1, 2]'", "b'[\"a\"]'", "b'[' * 1000000", "b'\\xff\\xfe'", "b'[\"a\", NaN]'"],
)
def test_a_request_that_is_none_is_refused(bench: Bench, body: str) -> None:
    host = Host()
    outcome, after = blocks(
        bench, FORGED + f"say(b'?', {body})\nprint(os.read(3, 5)[:1], os.read(3, 100))", "1", calls=host
    )
    assert (outcome.status, outcome.stdout) == ("ok", "b'E' b'a request is a name and JSON'\n")
    assert after.ok
    assert host.asked == []


def test_a_flood_of_requests_is_ended(bench: Bench) -> None:
    host = Host()
    ended, after = blocks(bench, "while True: ask('echo', 1)", "1", calls=host, timeout=30)
    assert (ended.status, ended.alive) == ("killed", False)
    assert len(host.asked) == MOST_REQUESTS
    assert after.ok


def test_a_request_begun_and_never_finished_is_out_of_time(bench: Bench) -> None:
    code = FORGED + "say(b'?', b'[\"echo\"', 100)\nwhile True: pass"
    ended, after = blocks(bench, code, "1", timeout=0.5)
    assert ended.status == "timeout"
    assert after.status in ("ok", "killed")


def test_an_answer_that_is_never_read(bench: Bench) -> None:
    """The supervisor does not wait for it to be read."""
    host = Host()
    code = FORGED + "say(b'?', b'[\"echo\", \"' + b'x' * 1000000 + b'\"]')\nwhile True: pass"
    ended, _ = blocks(bench, code, "1", calls=host, timeout=0.5)
    assert ended.status == "timeout"
    assert len(host.asked) == 1


def test_a_forged_end_deceives_nobody_but_its_own_session(bench: Bench) -> None:
    """The block says that it is done, and goes on: it stands still like any other, and is ended."""
    code = FORGED + "say(b'.', b'o')\nimport threading\nwhile True: pass"

    async def two() -> list[list[Outcome]]:
        async def work(codes: list[str]) -> list[Outcome]:
            async with bench.sandbox.session(timeout=0.5) as session:
                return [await session.run(code) for code in codes]

        return list(await asyncio.gather(work([code, "print(1)"]), work(["x = 5", "x"])))

    forged, honest = bench.do(two())
    assert forged[0].status == "ok"
    assert forged[1].status in ("timeout", "killed", "error")
    assert [o.stdout for o in honest] == ["", "5\n"]


def test_requests_after_time_is_up_are_not_answered(bench: Bench) -> None:
    host = Host()
    code = (
        "import time\nwhile True:\n    try:\n        while True: time.sleep(9)\n"
        "    except BaseException:\n        ask('echo', 'late')\n"
    )
    (ended,) = blocks(bench, code, calls=host, timeout=0.5)
    assert (ended.status, ended.alive) == ("timeout", False)
    assert host.asked == []


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.fork()",
        "import socket\nsocket.create_connection(('127.0.0.1', 80))",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
    ],
)
def test_the_walls_are_the_same(bench: Bench, code: str) -> None:
    failed, after = blocks(bench, code, "1")
    assert failed.status == "error"
    assert any(e in failed.stderr for e in ("PermissionError", "FileNotFoundError", "ProcessLookupError"))
    assert after.ok


# -- many, and the end ---------------------------------------------------------------------------


def test_sessions_do_not_share_names_files_or_answers(bench: Bench) -> None:
    async def one(i: int) -> str:
        async def calls(name: str, arguments: Any) -> Any:
            await asyncio.sleep(0)
            return f"for {i}: {arguments}"

        async with bench.sandbox.session(files={"f": str(i).encode()}) as session:
            await session.run(f"mine = {i}\nopen('g', 'a').write(str(mine))", calls=calls)
            return (
                await session.run(
                    "print(mine, open('f').read(), open('g').read(), ask('a', mine))", calls=calls
                )
            ).stdout

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(i) for i in range(12)))

    assert bench.do(all_of_them()) == [f"{i} {i} {i} for {i}: {i}\n" for i in range(12)]


def test_a_session_that_waits_takes_no_slot() -> None:
    """One slot for all: a session opened while another one waits for its answer."""

    async def nested() -> str:
        sandbox = NamespaceSandbox(runs=1, preload=())

        async def calls(name: str, arguments: Any) -> Any:
            async with sandbox.session() as inner:
                return (await inner.run(f"{arguments} + 1")).stdout

        try:
            async with sandbox.session() as outer:
                return (await outer.run("ask('more', 41)", calls=calls)).stdout
        finally:
            await sandbox.aclose()

    assert asyncio.run(nested()) == "'42\\n'\n"


def test_what_the_host_raises_ends_the_block_and_comes_out(bench: Bench) -> None:
    class Broken(Exception):
        pass

    async def calls(name: str, arguments: Any) -> Any:
        raise Broken

    async def work(session: Session) -> Outcome:
        with pytest.raises(Broken):
            await session.run("ask('a', 1)", calls=calls)
        return await session.run("1 + 1")

    assert using(bench, work).stdout == "2\n"


@pytest.mark.parametrize("code", ["while True: pass", "ask('slow', 1)"])
def test_cancelling_leaves_no_process(bench: Bench, code: str) -> None:
    async def calls(name: str, arguments: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()

    async def cancel(session: Session) -> None:
        task = asyncio.ensure_future(session.run(code, calls=calls))
        if "ask" in code:
            await begun.wait()
        else:
            await asyncio.wait([task], timeout=0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert settled() == bench.idle

    using(bench, cancel, timeout=300)


def test_a_warm_process_that_was_killed() -> None:
    async def kill() -> tuple[Outcome, str]:
        sandbox = NamespaceSandbox(preload=())
        try:
            async with sandbox.session() as session:
                await session.run("x = 1")
                for pid in descendants() - before:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                ended = await session.run("x")
                return ended, (await session.run("print('x' in globals())")).stdout
        finally:
            await sandbox.aclose()

    before = descendants()
    ended, after = asyncio.run(kill())
    assert (ended.status, ended.alive) == ("killed", False)
    assert after == "False\n"
    assert settled(until=lambda now: now == before) == before


def test_arguments_out_of_range(bench: Bench) -> None:
    for arguments in (
        {"timeout": 0},
        {"memory_mb": 1},
        {"files": {"/etc/x": b""}},
        {"files": {"a": b"", "a/b": b""}},
    ):
        with pytest.raises(ValueError, match=r"timeout|memory_mb|files"):
            blocks(bench, "1", **arguments)


def test_a_closed_sandbox_has_no_session() -> None:
    async def closed() -> None:
        sandbox = NamespaceSandbox(preload=())
        await sandbox.aclose()
        with pytest.raises(SandboxUnavailable, match="closed"):
            async with sandbox.session():
                pass

    asyncio.run(closed())
