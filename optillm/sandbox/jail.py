"""The walls: what the zygote, and then every run, can reach.

The zygote moves into new namespaces and a root that holds a read-only Python and nothing else. Each run
gets namespaces of its own inside it, with a fresh scratch folder, and loses every privilege.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from optillm.sandbox.linux import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    Kernel,
)

SCRATCH = "/scratch"
DEPTH = 16
"""Folders below the scratch folder that are looked into for files to hand back."""

_NOBODY = 65534
_INSIDE = 1000
_DEVICES = ("null", "zero", "urandom")
_BASE = "/tmp"


def leave_host(kernel: Kernel) -> None:
    """Move this process into namespaces of its own, as their root. Its next child is their process 1."""
    uid, gid = os.geteuid(), os.getegid()
    uids, gids = f"0 {uid} 1\n", f"0 {gid} 1\n"
    if uid == 0:
        # Runs of a root server are nobody on the host, too.
        uids, gids = (f"0 0 1\n{_NOBODY} {_NOBODY} 1\n" for _ in range(2))
    mapped, unshared = os.pipe(), os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        # Only a process outside may write a map of several users.
        try:
            os.close(unshared[1])
            if not os.read(unshared[0], 1):
                os._exit(0)
            if uid != 0:
                _write(f"/proc/{parent}/setgroups", "deny")
            _write(f"/proc/{parent}/uid_map", uids)
            _write(f"/proc/{parent}/gid_map", gids)
            os.write(mapped[1], b"+")
        except OSError as error:
            os.write(mapped[1], str(error).encode())
        finally:
            os._exit(0)
    try:
        kernel.unshare(
            CLONE_NEWUSER
            | CLONE_NEWNS
            | CLONE_NEWPID
            | CLONE_NEWNET
            | CLONE_NEWIPC
            | CLONE_NEWUTS
            | CLONE_NEWCGROUP
        )
        os.write(unshared[1], b"+")
        answer = os.read(mapped[0], 1000)
    finally:
        for fd in (*mapped, *unshared):
            os.close(fd)
        os.waitpid(helper, 0)
    if answer != b"+":
        raise OSError(f"uid_map: {answer.decode()}")


def build_root(kernel: Kernel, paths: Sequence[str], hidden: Sequence[str], shown: Sequence[str]) -> None:
    """Make a root of its own for the zygote and enter it.

    Args:
        kernel: to do it with.
        paths: absolute paths that are there, read-only, under the same name.
        hidden: folders in them that are empty but for what is shown.
        shown: paths that are there after that.
    """
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    plain = MS_NOSUID | MS_NODEV
    # Two steps, so that a path under the place of the first mount can still be bound.
    kernel.mount("tmpfs", _BASE, "tmpfs", plain, "size=1m,mode=0755")
    os.mkdir(_BASE + "/host")
    os.mkdir(_BASE + "/root")
    kernel.swap_root(_BASE, _BASE + "/host")
    kernel.mount("tmpfs", "/root", "tmpfs", plain | MS_NOEXEC, "size=1m,mode=0755")
    for path in paths:
        _bind(kernel, path)
    for path in hidden:
        if os.path.isdir("/root" + path):
            kernel.mount("tmpfs", "/root" + path, "tmpfs", plain | MS_NOEXEC, "size=1m,mode=0755")
    for path in shown:
        _bind(kernel, path)
    os.mkdir("/root" + SCRATCH)
    os.makedirs("/root/dev")
    # Everything is read-only, and a device only where one is meant to be.
    kernel.restrict("/root", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    kernel.mount("tmpfs", "/root/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,mode=0755")
    for name in _DEVICES:
        _write(f"/root/dev/{name}", "")
        kernel.mount(f"/host/dev/{name}", f"/root/dev/{name}", None, MS_BIND)
    kernel.restrict("/root/dev", ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC)
    kernel.enter_root("/root")


def enter_run(kernel: Kernel, proc: int, scratch_mb: int) -> None:
    """Move this process, a child of the zygote, into the namespaces of one run.

    Args:
        kernel: to do it with.
        proc: file descriptor of the host's /proc, which is not to be seen inside.
        scratch_mb: size of the scratch folder in MiB.
    """
    if _NOBODY in _mapped_users(proc):
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        # Else its own files in /proc belong to root.
        kernel.set_dumpable(True)
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)
    _write("self/setgroups", "deny", dir_fd=proc)
    _write("self/uid_map", f"{_INSIDE} {uid} 1\n", dir_fd=proc)
    _write("self/gid_map", f"{_INSIDE} {gid} 1\n", dir_fd=proc)
    options = f"size={scratch_mb}m,nr_inodes=4096,mode=0700,uid={_INSIDE},gid={_INSIDE}"
    kernel.mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    os.chdir(SCRATCH)


def limit(seconds: int, address_space: int, file_size: int) -> None:
    """Set the limits of the process that will run the code.

    Args:
        seconds: CPU time of all its threads.
        address_space: bytes.
        file_size: bytes of the largest file it may write.
    """
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, address_space, address_space),
        (resource.RLIMIT_FSIZE, file_size, file_size),
        (resource.RLIMIT_NPROC, 64, 64),
        (resource.RLIMIT_NOFILE, 128, 128),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 64, 64),
        (resource.RLIMIT_STACK, 8 << 20, 8 << 20),
    ):
        resource.setrlimit(kind, (soft, hard))


def seal(kernel: Kernel) -> None:
    """The last step before the code: no capabilities, and only harmless system calls."""
    kernel.drop_privileges()
    kernel.filter_calls()


def put_files(files: Mapping[str, bytes]) -> None:
    """Write files into the scratch folder, this process's working directory."""
    for name, data in files.items():
        path = PurePosixPath(name)
        if len(path.parts) > 1:
            os.makedirs(path.parent, exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


def take_files(most: int) -> tuple[dict[str, bytes], bool]:
    """The regular files in the scratch folder, after the code has ended.

    Args:
        most: bytes that may be taken.

    Returns:
        The files by relative path, and whether that was all that fits.
    """
    out: dict[str, bytes] = {}
    folders = [(SCRATCH, 0)]
    for folder, depth in folders:
        # The code may have taken away its own right to read.
        os.chmod(folder, 0o700)
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False):
                if depth < DEPTH:
                    folders.append((entry.path, depth + 1))
            elif entry.is_file(follow_symlinks=False):
                data = _read(entry.path, most)
                if data is None:
                    return out, False
                most -= len(data)
                out[os.fsencode(entry.path[len(SCRATCH) + 1 :]).decode(errors="replace")] = data
    return out, True


def _read(path: str, most: int) -> bytes | None:
    os.chmod(path, 0o600)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if os.fstat(fd).st_size > most:
            return None
        return file.read()


def _bind(kernel: Kernel, path: str) -> None:
    source, target = "/host" + path, "/root" + path
    if path.count("/") == 1 and os.path.islink(source):
        # /lib is /usr/lib on most machines: a second way to it would show what is hidden there.
        os.symlink(os.readlink(source), target)
        return
    try:
        # A link would be followed inside the new root; what it leads to is bound in its place.
        source = "/host" + _resolved(path)
        mode = os.stat(source).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _write(target, "")
    kernel.mount(source, target, None, MS_BIND | MS_REC)


def _resolved(path: str) -> str:
    """Where an absolute path of the host leads, while the host's root is at /host."""
    done = ""
    left = [p for p in path.split("/") if p]
    for _ in range(1000):
        if not left:
            return done
        name = left.pop(0)
        if name == "..":
            done = os.path.dirname(done)
            continue
        try:
            link = os.readlink(f"/host{done}/{name}")
        except OSError:
            done += "/" + name
            continue
        left = [p for p in link.split("/") if p and p != "."] + left
        if link.startswith("/"):
            done = ""
    raise OSError(f"too many links in {path}")


def _mapped_users(proc: int) -> list[int]:
    fd = os.open("self/uid_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(fd) as file:
        return [int(line.split()[0]) for line in file]


def _write(path: str, text: str, dir_fd: int | None = None) -> None:
    flags = os.O_WRONLY | os.O_CLOEXEC | (0 if dir_fd is not None else os.O_CREAT)
    fd = os.open(path, flags, 0o644, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
