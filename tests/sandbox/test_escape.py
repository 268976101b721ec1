"""Code that wants out: every way is closed, the attempt is reported, and the server does not notice."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.sandbox.conftest import Bench, Run

# Prints what an attempt ended with: the kind of error, or what it got.
ATTEMPT = """
def attempt(what, *arguments, **options):
    try:
        print("GOT", repr(what(*arguments, **options))[:200])
    except BaseException as error:
        print(type(error).__name__)
"""
LIBC = (
    ATTEMPT
    + """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*arguments)
    print(name, result, os.strerror(ctypes.get_errno()))
"""
)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/shadow",
        "/proc/1/environ",
        "/proc/self/environ",
        "/proc/self/maps",
        "/proc/self/root/etc/passwd",
        "/sys/kernel",
        "/dev/mem",
        "/dev/kmsg",
        "/usr/bin/env",
        "/bin/sh",
        "/scratch/../etc/passwd",
    ],
)
def test_files_of_the_host_are_not_there(run: Run, path: str) -> None:
    outcome = run(f"open({path!r}).read()")
    assert outcome.status == "error"
    assert outcome.exit_code == 1
    assert outcome.stderr.splitlines()[-1].startswith("FileNotFoundError")
    assert outcome.stdout == ""


def test_a_file_that_the_server_can_read_is_not_there(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key")
    assert run(f"open({str(secret)!r}).read()").status == "error"
    code = "import os\nprint([folder for folder, _, names in os.walk('/') if 'secret' in names])"
    listed = run(code)
    assert (listed.status, listed.stdout) == ("ok", "[]\n")


def test_only_the_packages_meant_are_there(run: Run) -> None:
    code = """
    import importlib, importlib.util
    for name in ("z3", "sympy", "numpy", "mpmath"):
        importlib.import_module(name)
    print([n for n in ("aiohttp", "msgspec", "pytest", "pip", "openai") if importlib.util.find_spec(n)])
    """
    outcome = run("if True:\n" + code)
    assert (outcome.status, outcome.stdout) == ("ok", "[]\n"), outcome.stderr


def test_the_servers_environment_is_not_inherited(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    outcome = run(
        "import os, ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.getenv.restype = ctypes.c_char_p\n"
        "print(sorted(os.environ), libc.getenv(b'OPENAI_API_KEY'))"
    )
    assert outcome.stdout == (
        "['HOME', 'LANG', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PATH', 'TMPDIR', 'TZ'] None\n"
    )


def test_the_servers_environment_is_not_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox started while the secret is in the environment has nothing of it in any object."""
    import asyncio

    from optillm.sandbox.namespaces import NamespaceSandbox

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    async def look() -> str:
        sandbox = NamespaceSandbox(preload=())
        try:
            # Put together at run time, so that the code itself does not hold it.
            code = (
                "import gc\n"
                "secret = '-'.join(('sk', 'secret'))\n"
                "held = (o for box in gc.get_objects() for o in gc.get_referents(box))\n"
                "print([o for o in held if isinstance(o, str) and secret in o and o is not secret])"
            )
            return (await sandbox.run(code)).stdout
        finally:
            await sandbox.aclose()

    assert asyncio.run(look()) == "[]\n"


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        "socket.create_server(('127.0.0.1', 0))",
        "socket.create_connection(('127.0.0.1', PORT))",
        "urllib.request.urlopen('http://127.0.0.1:' + str(PORT))",
    ],
)
def test_there_is_no_network(run: Run, attempt: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        code = f"import socket, urllib.request\nPORT = {server.getsockname()[1]}\n{attempt}"
        outcome = run(code)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert outcome.status == "error"
    assert "PermissionError" in outcome.stderr or "URLError" in outcome.stderr


def test_there_are_no_abstract_sockets(run: Run) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0optillm-test-" + str(os.getpid()))
        server.listen()
        outcome = run(
            "import socket, array\n"
            "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            f"a.sendto(b'x', '\\0optillm-test-{os.getpid()}')"
        )
    assert outcome.status == "error"


def test_names_are_not_looked_up(run: Run) -> None:
    outcome = run("import socket\nsocket.getaddrinfo('localhost', 80)\nsocket.getaddrinfo('example.com', 80)")
    assert outcome.status == "error"
    assert "gaierror" in outcome.stderr


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "/dev/x",
        "/usr/lib/x",
        "/root/x",
        "/tmp/x",
        "STDLIB/x.py",
        "STDLIB/os.py",
        "SITE/numpy/__init__.py",
    ],
)
def test_nothing_is_written_outside_the_scratch_folder(run: Run, path: str) -> None:
    outcome = run(
        "import os, numpy\n"
        f"path = {path!r}.replace('STDLIB', os.path.dirname(os.__file__))\n"
        "path = path.replace('SITE', os.path.dirname(os.path.dirname(numpy.__file__)))\n"
        "open(path, 'a').write('x')"
    )
    assert outcome.status == "error"
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith(("OSError: [Errno 30]", "PermissionError", "FileNotFoundError")), last


def test_links_lead_nowhere_and_are_not_handed_back(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key")
    outcome = run(
        "import os\n"
        f"os.symlink({str(secret)!r}, 'link')\n"
        "os.symlink('/', 'root')\n"
        "os.symlink('/etc', 'etc')\n"
        "open('real', 'w').write('mine')\n"
        "os.mkfifo('pipe') if False else None\n"
        "print(os.path.exists('link'), os.path.exists('etc/passwd'))",
        keep_files=True,
    )
    assert (outcome.status, outcome.stdout) == ("ok", "False False\n"), outcome.stderr
    assert dict(outcome.files) == {"real": b"mine"}


@pytest.mark.parametrize(
    "call",
    [
        "'ptrace', 16, 1, 0, 0",
        "'mount', b'proc', b'/scratch', b'proc', 0, 0",
        "'umount2', b'/scratch', 2",
        "'unshare', 0x10000000",
        "'setns', 0, 0",
        "'chroot', b'/scratch'",
        "'setuid', 0",
        "'setgid', 0",
        "'fork'",
        "'vfork'",
        "'execl', b'/usr/bin/env', b'env', 0",
        "'sethostname', b'x', 1",
        "'reboot', 0x1234567",
        "'swapon', b'/scratch/x', 0",
        "'init_module', 0, 0, b''",
        "'acct', b'/scratch/x'",
        "'memfd_create', b'x', 0",
        "'shmget', 1, 4096, 0o1777",
        "'inotify_init'",
        "'process_vm_readv', 1, 0, 0, 0, 0, 0",
        "'syscall', 425, 1, 0",  # io_uring_setup
        "'syscall', 321, 0, 0, 0",  # bpf
        "'syscall', 298, 0, 0, 0, 0, 0",  # perf_event_open
        "'syscall', 323, 0",  # userfaultfd
        "'syscall', 248, b'user', b'x', b'y', 1, -3",  # add_key
        "'syscall', 0x40000000 + 39",  # getpid of another ABI
    ],
)
def test_system_calls_that_could_harm_are_refused(run: Run, call: str) -> None:
    outcome = run(LIBC + f"call({call})")
    assert outcome.status == "ok", outcome.stderr
    name, result, reason = outcome.stdout.strip().split(" ", 2)
    assert result == "-1"
    assert reason in ("Operation not permitted", "Function not implemented"), (name, reason)


def test_32_bit_system_calls_end_the_run(run: Run) -> None:
    """`int 0x80` counts calls differently; the filter knows only one way."""
    if os.uname().machine != "x86_64":
        outcome = run("import os, signal\nos.kill(os.getpid(), signal.SIGSYS)")
    else:
        outcome = run(
            "import ctypes, mmap\n"
            "page = mmap.mmap(-1, 4096, prot=7)\n"
            "page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"  # mov eax, 20; int 0x80; ret
            "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
            "print(ctypes.CFUNCTYPE(ctypes.c_int)(at)())"
        )
    assert outcome.status == "killed"
    assert outcome.stdout == ""


def test_there_are_no_privileges(run: Run) -> None:
    outcome = run(
        "import os, ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(os.getresuid(), os.getresgid(), [libc.prctl(39), libc.prctl(23, 21)])\n"
        "os.setuid(0)"
    )
    assert outcome.stdout.startswith("(1000, 1000, 1000) (1000, 1000, 1000)")
    assert outcome.stderr.splitlines()[-1].startswith("PermissionError")


@pytest.mark.parametrize(
    "kill",
    [
        "os.kill(os.getppid(), signal.SIGKILL)",
        "os.kill(0, signal.SIGKILL)",
        "os.killpg(os.getpgrp(), signal.SIGKILL)",
        "os.kill(-1, signal.SIGKILL)",
        "os.kill(1, signal.SIGKILL)",
        "os.kill(1, signal.SIGINT)",
        "os.kill(SERVER, signal.SIGKILL)",
        "os.kill(ABOVE_IT, signal.SIGTERM)",
        "[os.kill(pid, signal.SIGKILL) for pid in range(3, 400) if pid != os.getpid()]",
    ],
)
def test_signals_reach_nobody_else(bench: Bench, kill: str) -> None:
    """Another run at the same time, the supervisor and the server all live on."""
    import asyncio

    kill = kill.replace("SERVER", str(os.getpid())).replace("ABOVE_IT", str(os.getppid()))

    async def both() -> tuple[str, str]:
        other = asyncio.ensure_future(bench.sandbox.run("input()\nimport time\ntime.sleep(0.3)", stdin="x\n"))
        outcome = await bench.sandbox.run(f"import os, signal\n{kill}\nprint('still here')")
        return outcome.status, (await other).status

    first, second = bench.do(both())
    assert first in ("ok", "error", "killed")
    assert second == "ok"


def test_processes_cannot_be_started(run: Run) -> None:
    outcome = run(
        ATTEMPT
        + "import os, subprocess, multiprocessing\n"
        + "attempt(os.fork)\n"
        + "attempt(subprocess.run, ['/usr/bin/env'])\n"
        + "attempt(os.execv, '/usr/bin/env', ['env'])\n"
        + "attempt(os.posix_spawn, '/usr/bin/env', ['env'], {})\n"
        + "attempt(os.system, 'true')\n"
        + "attempt(multiprocessing.get_context('fork').Process(target=print).start)\n"
    )
    assert outcome.status == "ok", outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0] == "PermissionError"
    # What system() says when there is no shell that it could start.
    assert lines[4] in ("GOT -1", "GOT 32512")
    assert {*lines[:4], *lines[5:]} <= {"PermissionError", "FileNotFoundError"}


def test_a_fork_bomb_is_one_process(run: Run) -> None:
    outcome = run("import os\nwhile True:\n    os.fork()")
    assert outcome.status == "error"
    assert "PermissionError" in outcome.stderr


def test_no_daemon_is_left(bench: Bench) -> None:
    """Double fork fails; a daemon thread ends with its process."""
    outcome = bench.run(
        "import os, threading, time\n"
        "try:\n"
        "    os.fork()\n"
        "except PermissionError:\n"
        "    print('no')\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
    )
    assert (outcome.status, outcome.stdout) == ("ok", "no\n")


def test_no_file_descriptor_is_inherited(run: Run) -> None:
    outcome = run(
        "import os\n"
        "found = []\n"
        "for fd in range(1 << 16):\n"
        "    try:\n"
        "        os.fstat(fd)\n"
        "        found.append(fd)\n"
        "    except OSError:\n"
        "        pass\n"
        "print(found)"
    )
    # Its three streams, and the pipe that says "out of memory".
    assert outcome.stdout == "[0, 1, 2, 3]\n"


def test_a_run_sees_nothing_of_the_one_before(run: Run) -> None:
    first = run(
        "import builtins, math, os, sys\n"
        "open('left', 'w').write('secret'); os.environ['LEFT'] = 'x'\n"
        "builtins.left = 1; math.pi = 3; sys.modules['left'] = math\n"
        "print(os.listdir('.'))"
    )
    second = run(
        "import builtins, math, os, sys\n"
        "print(os.listdir('.'), 'LEFT' in os.environ, hasattr(builtins, 'left'),"
        " math.pi == 3, 'left' in sys.modules)"
    )
    assert first.stdout == "['left']\n"
    assert second.stdout == "[] False False False False\n"


def test_each_run_draws_its_own_random_numbers(run: Run) -> None:
    code = "import random, numpy\nprint(random.random(), numpy.random.rand())"
    assert len({part for _ in range(3) for part in run(code).stdout.split()}) == 6


def test_errors_show_no_path_of_this_machine(run: Run) -> None:
    import sys

    text = "".join(
        run(f"import json, sympy\n{call}").stderr for call in ("json.loads('{')", "sympy.sympify('1 +')")
    )
    assert text.count('File "main.py", line 2') == 2
    assert 'File "<python>/json/__init__.py"' in text
    assert 'File "<packages>/sympy/core/sympify.py"' in text
    for path in (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])):
        assert path not in text
