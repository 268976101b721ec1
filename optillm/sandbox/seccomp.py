"""The system calls that untrusted code may make: a list of what is allowed, as a BPF program.

The code computes, reads, writes its scratch folder, starts threads and waits. It has no use for new
processes, programs, sockets, namespaces, mounts, keys, tracing or devices, so none of those calls is on
the list. Everything else fails with EPERM, which the code sees as an ordinary OSError.

The program is classic BPF over ``struct seccomp_data``; see seccomp(2) and the kernel's
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Name, number on x86_64, number on aarch64 (-1: that machine has no such call).
# fmt: off
ALLOWED = (
    ("read", 0, 63), ("write", 1, 64), ("readv", 19, 65), ("writev", 20, 66), ("pread64", 17, 67),
    ("pwrite64", 18, 68), ("preadv", 295, 69), ("pwritev", 296, 70), ("lseek", 8, 62), ("close", 3, 57),
    ("close_range", 436, 436), ("dup", 32, 23), ("dup2", 33, -1), ("dup3", 292, 24), ("open", 2, -1),
    ("openat", 257, 56), ("stat", 4, -1), ("fstat", 5, 80), ("lstat", 6, -1), ("newfstatat", 262, 79),
    ("statx", 332, 291), ("access", 21, -1), ("faccessat", 269, 48), ("faccessat2", 439, 439),
    ("readlink", 89, -1), ("readlinkat", 267, 78), ("getcwd", 79, 17), ("chdir", 80, 49),
    ("fchdir", 81, 50), ("mkdir", 83, -1), ("mkdirat", 258, 34), ("rmdir", 84, -1), ("unlink", 87, -1),
    ("unlinkat", 263, 35), ("rename", 82, -1), ("renameat", 264, 38), ("renameat2", 316, 276),
    ("link", 86, -1), ("linkat", 265, 37), ("symlink", 88, -1), ("symlinkat", 266, 36),
    ("chmod", 90, -1), ("fchmod", 91, 52), ("fchmodat", 268, 53), ("truncate", 76, 45),
    ("ftruncate", 77, 46), ("fallocate", 285, 47), ("fsync", 74, 82), ("fdatasync", 75, 83),
    ("getdents", 78, -1), ("getdents64", 217, 61), ("utimensat", 280, 88), ("umask", 95, 166),
    ("statfs", 137, 43), ("fstatfs", 138, 44), ("fadvise64", 221, 223), ("copy_file_range", 326, 285),
    ("sendfile", 40, 71), ("flock", 73, 32), ("pipe", 22, -1), ("pipe2", 293, 59), ("poll", 7, -1),
    ("ppoll", 271, 73), ("select", 23, -1), ("pselect6", 270, 72), ("epoll_create", 213, -1),
    ("epoll_create1", 291, 20), ("epoll_ctl", 233, 21), ("epoll_wait", 232, -1),
    ("epoll_pwait", 281, 22), ("eventfd2", 290, 19), ("fcntl", 72, 25), ("mmap", 9, 222),
    ("munmap", 11, 215), ("mprotect", 10, 226), ("mremap", 25, 216), ("madvise", 28, 233),
    ("brk", 12, 214), ("msync", 26, 227), ("mincore", 27, 232), ("membarrier", 324, 283),
    ("futex", 202, 98), ("set_robust_list", 273, 99), ("get_robust_list", 274, 100), ("rseq", 334, 293),
    ("set_tid_address", 218, 96), ("restart_syscall", 219, 128), ("sched_yield", 24, 124),
    ("sched_getaffinity", 204, 123), ("sched_getparam", 143, 121), ("sched_getscheduler", 145, 120),
    ("sched_get_priority_max", 146, 125), ("sched_get_priority_min", 147, 126), ("getcpu", 309, 168),
    ("exit", 60, 93), ("exit_group", 231, 94), ("gettid", 186, 178), ("getpid", 39, 172),
    ("getppid", 110, 173), ("getuid", 102, 174), ("geteuid", 107, 175), ("getgid", 104, 176),
    ("getegid", 108, 177), ("getresuid", 118, 148), ("getresgid", 120, 150), ("getgroups", 115, 158),
    ("getpgrp", 111, -1), ("getpgid", 121, 155), ("getsid", 124, 156), ("kill", 62, 129),
    ("tgkill", 234, 131), ("rt_sigaction", 13, 134), ("rt_sigprocmask", 14, 135),
    ("rt_sigreturn", 15, 139), ("rt_sigpending", 127, 136), ("rt_sigsuspend", 130, 133),
    ("rt_sigtimedwait", 128, 137), ("sigaltstack", 131, 132), ("pause", 34, -1), ("alarm", 37, -1),
    ("setitimer", 38, 103), ("getitimer", 36, 102), ("timer_create", 222, 107),
    ("timer_settime", 223, 110), ("timer_gettime", 224, 108), ("timer_getoverrun", 225, 109),
    ("timer_delete", 226, 111), ("nanosleep", 35, 101), ("clock_nanosleep", 230, 115),
    ("clock_gettime", 228, 113), ("clock_getres", 229, 114), ("gettimeofday", 96, 169),
    ("time", 201, -1), ("times", 100, 153), ("getrusage", 98, 165), ("getrlimit", 97, 163),
    ("setrlimit", 160, 164), ("prlimit64", 302, 261), ("sysinfo", 99, 179), ("uname", 63, 160),
    ("getrandom", 318, 278), ("arch_prctl", 158, -1), ("socketpair", 53, 199), ("sendto", 44, 206),
    ("recvfrom", 45, 207), ("sendmsg", 46, 211), ("recvmsg", 47, 212), ("shutdown", 48, 210),
    ("wait4", 61, 260), ("waitid", 247, 95),
)
# fmt: on

_DATA_NR, _DATA_ARCH, _DATA_ARG0, _DATA_ARG1 = 0, 4, 16, 24
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CLONE_THREAD = 0x00010000
# Terminal size and kind, non-blocking, close-on-exec, bytes waiting.
_IOCTLS = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451, 0x541B)
# The name of a thread, and of anonymous memory.
_PRCTLS = (15, 16, 0x53564D41)


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between processors.

    Args:
        name: as ``os.uname().machine`` says.
        column: of :data:`ALLOWED`.
        audit: the kernel's AUDIT_ARCH constant.
        clone, clone3, ioctl, prctl: numbers of the calls whose arguments are looked at.
        pivot_root, capset: numbers of calls without a function in the C library.
    """

    name: str
    column: int
    audit: int
    clone: int
    clone3: int
    ioctl: int
    prctl: int
    pivot_root: int
    capset: int


MACHINES = (
    Machine("x86_64", 1, 0xC000003E, 56, 435, 16, 157, 155, 126),
    Machine("aarch64", 2, 0xC00000B7, 220, 435, 29, 167, 41, 91),
)


def machine(name: str) -> Machine | None:
    """The machine of that name, or None if its system calls are not known here."""
    return next((m for m in MACHINES if m.name == name), None)


def program(m: Machine) -> bytes:
    """The filter for a machine, as an array of ``struct sock_filter``."""
    return b"".join(_instructions(m))


def _instructions(m: Machine) -> Iterator[bytes]:
    yield _op(_LOAD, _DATA_ARCH)
    yield _op(_EQUAL, m.audit, 1, 0)
    yield _op(_RETURN, _KILL)
    yield _op(_LOAD, _DATA_NR)
    for entry in ALLOWED:
        number = int(entry[m.column])
        if number >= 0:
            yield _op(_EQUAL, number, 0, 1)
            yield _op(_RETURN, _ALLOW)
    # The C library falls back to clone, whose flags can be seen.
    yield _op(_EQUAL, m.clone3, 0, 1)
    yield _op(_RETURN, _ERRNO | errno.ENOSYS)
    # Threads, but no processes: they share the limits of the one that starts them.
    yield _op(_EQUAL, m.clone, 0, 4)
    yield _op(_LOAD, _DATA_ARG0)
    yield _op(_ANY_BIT, _CLONE_THREAD, 0, 1)
    yield _op(_RETURN, _ALLOW)
    yield _op(_RETURN, _ERRNO | errno.EPERM)
    yield from _one_of(m.ioctl, _DATA_ARG1, _IOCTLS)
    yield from _one_of(m.prctl, _DATA_ARG0, _PRCTLS)
    yield _op(_RETURN, _ERRNO | errno.EPERM)


def _one_of(number: int, argument: int, values: tuple[int, ...]) -> Iterator[bytes]:
    """Allow a call if an argument's low half is one of the values, else refuse it."""
    yield _op(_EQUAL, number, 0, 2 * len(values) + 2)
    yield _op(_LOAD, argument)
    for value in values:
        yield _op(_EQUAL, value, 0, 1)
        yield _op(_RETURN, _ALLOW)
    yield _op(_RETURN, _ERRNO | errno.EPERM)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
