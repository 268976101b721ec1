"""The system calls that Python 3.11 has no function for."""

from __future__ import annotations

import ctypes
import os
import time

from optillm.sandbox.seccomp import Machine, machine, program

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR = 442
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522


class _Filter(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class Kernel:
    """Linux, by its C library. Every method raises OSError when the kernel refuses.

    Raises:
        OSError: the processor's system calls are not known.
    """

    def __init__(self) -> None:
        name = os.uname().machine
        found = machine(name)
        if found is None:
            raise OSError(f"system calls of {name} processors are not known")
        self._machine: Machine = found
        self._libc = ctypes.CDLL(None, use_errno=True)

    def unshare(self, flags: int) -> None:
        """Leave namespaces for new ones."""
        self._check(self._libc.unshare(ctypes.c_int(flags)), "unshare")

    def mount(self, source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
        """Mount a file system, or bind a path."""
        done = self._libc.mount(
            source.encode(),
            target.encode(),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            options.encode(),
        )
        self._check(done, f"mount {kind or 'bind'}")

    def restrict(self, target: str, attributes: int) -> None:
        """Make a mount and all below it read-only, without devices…: mount_setattr(2), Linux 5.12."""
        attr = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
        done = self._syscall(
            _MOUNT_SETATTR,
            ctypes.c_int(_AT_FDCWD),
            target.encode(),
            ctypes.c_uint(_AT_RECURSIVE),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        )
        self._check(done, "mount_setattr")

    def enter_root(self, folder: str) -> None:
        """Make a mount the root, and let go of the old one."""
        os.chdir(folder)
        self._check(self._syscall(self._machine.pivot_root, b".", b"."), "pivot_root")
        self._check(self._libc.umount2(b".", ctypes.c_int(MNT_DETACH)), "umount")
        os.chdir("/")

    def swap_root(self, folder: str, old: str) -> None:
        """Make a mount the root, with the old root at ``old`` below it."""
        self._check(self._syscall(self._machine.pivot_root, folder.encode(), old.encode()), "pivot_root")
        os.chdir("/")

    def die_with_parent(self) -> None:
        """Be killed when the parent ends."""
        self._prctl(_PR_SET_PDEATHSIG, 9)

    def set_dumpable(self, dumpable: bool) -> None:
        """Whether processes of the same user may look into this one."""
        self._prctl(_PR_SET_DUMPABLE, int(dumpable))

    def drop_privileges(self) -> None:
        """Give up all capabilities, for good."""
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        data = (ctypes.c_uint32 * 6)()
        done = self._syscall(self._machine.capset, ctypes.byref(header), ctypes.byref(data))
        self._check(done, "capset")

    def filter_calls(self) -> None:
        """From now on, only the system calls of :data:`optillm.sandbox.seccomp.ALLOWED`."""
        code = program(self._machine)
        given = _Filter(len(code) // 8, code)
        self._prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(given))

    def cpu_seconds(self, process: int) -> float:
        """CPU time that all threads of a process have used: clock_getcpuclockid(3)."""
        clock = ctypes.c_int()
        code = self._libc.clock_getcpuclockid(ctypes.c_int(process), ctypes.byref(clock))
        if code:
            raise OSError(code, f"clock_getcpuclockid: {os.strerror(code)}")
        return time.clock_gettime(clock.value)

    def _prctl(self, option: int, *arguments: object) -> None:
        padded = [a if not isinstance(a, int) else ctypes.c_ulong(a) for a in arguments]
        padded += [ctypes.c_ulong(0)] * (4 - len(padded))
        self._check(self._libc.prctl(ctypes.c_int(option), *padded), f"prctl {option}")

    def _syscall(self, number: int, *arguments: object) -> int:
        done: int = self._libc.syscall(ctypes.c_long(number), *arguments)
        return done

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")
