"""Uses the sandbox as a user without privileges; started as root by a test, in a process of its own.

The interpreter may live where only root can go. So the process makes a view of the file system for itself
in which its folders can be walked through, before it becomes the user.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from optillm.core.tools import Outcome
from optillm.protocol.errors import SandboxUnavailable
from optillm.sandbox.choose import FirstAvailable
from optillm.sandbox.linux import CLONE_NEWNS, CLONE_NEWUSER, MS_BIND, MS_PRIVATE, MS_REC, Kernel
from optillm.sandbox.namespaces import NamespaceSandbox
from optillm.sandbox.wasm import WasmSandbox

USER = 12345


def open_the_way(kernel: Kernel) -> None:
    """Where root's home is closed, put one in its place that holds the interpreter and is open."""
    home = Path("/root")
    prefix = Path(sys.base_prefix)
    if not prefix.is_relative_to(home) or home.stat().st_mode & 0o005:
        return
    kernel.unshare(CLONE_NEWNS)
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    kernel.mount(str(prefix), "/mnt", None, MS_BIND | MS_REC)
    kernel.mount("tmpfs", str(home), "tmpfs", 0, "mode=0755")
    prefix.mkdir(parents=True)
    kernel.mount("/mnt", str(prefix), None, MS_BIND | MS_REC)


async def run(code: str) -> Outcome:
    sandbox = NamespaceSandbox(preload=("z3",))
    try:
        return await sandbox.run(code)
    finally:
        await sandbox.aclose()


def walls() -> str:
    outcome = asyncio.run(
        run(
            "import os, z3, socket\n"
            "def refused(what, *arguments):\n"
            "    try:\n"
            "        what(*arguments)\n"
            "        return False\n"
            "    except OSError:\n"
            "        return True\n"
            "print(os.getresuid(), os.listdir('.'), z3.simplify(z3.IntVal(1) + 1))\n"
            "print(refused(open, '/etc/passwd'), refused(socket.socket), end=' ')\n"
            "print(refused(os.fork), refused(os.setuid, 0))\n"
            "print(*(refused(open, p, 'w') for p in ('/x', '/dev/x', z3.__file__, os.__file__)))\n"
            f"print(refused(os.kill, {os.getpid()}, 9), os.kill(0, 0))\n"
        )
    )
    expected = "(1000, 1000, 1000) [] 2\nTrue True True True\nTrue True True True\nTrue None\n"
    return "ok" if (outcome.status, outcome.stdout) == ("ok", expected) else repr(outcome)


async def refuse(folder: Path) -> str:
    """Neither wall is to be had: namespaces are forbidden, the other one is not installed."""
    sandbox = FirstAvailable((NamespaceSandbox(), WasmSandbox(folder=folder)))
    mark = folder / "ran"
    for _ in range(2):
        try:
            return repr(await sandbox.run(f"open({str(mark)!r}, 'w')"))
        except SandboxUnavailable as error:
            if not ("user namespaces" in error.message and "optillm[wasm]" in error.message):
                return error.message
    await sandbox.aclose()
    return "it ran" if mark.exists() else "refused, nothing ran"


def forbidden() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(refuse(Path(folder)))


def main() -> None:
    kernel = Kernel()
    open_the_way(kernel)
    if sys.argv[1] == "forbidden":
        # A namespace whose limit of further ones is none: what a hardened machine looks like.
        kernel.unshare(CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{USER} 0 1")
        Path("/proc/self/gid_map").write_text(f"{USER} 0 1")
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    else:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    print(walls() if sys.argv[1] == "walls" else forbidden())


main()
