"""The processes of a benchmark: servers on free ports, and the load generator."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True)
class Server:
    """A running server process."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def root(self) -> str:
        """Its URL without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """Its base URL, up to and including ``/v1``."""
        return self.root + "/v1"

    @property
    def chat_url(self) -> str:
        """Where chat completions are posted."""
        return self.base_url + "/chat/completions"

    @property
    def memory(self) -> int:
        """Bytes of memory that it holds."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def cpu_seconds(self) -> float:
        """CPU time that it has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """This process's environment without what would change the server's settings."""
    return {
        k: v for k, v in os.environ.items() if not k.startswith(("OPTILLM_", "AZURE_")) and "_API_" not in k
    }


@contextmanager
def server(arguments: Sequence[str], port: int) -> Iterator[Server]:
    """Run ``python`` with these arguments until the block ends; it must listen on the port."""
    process = subprocess.Popen([sys.executable, *arguments], env=environment())
    try:
        wait_for(process, port)
        yield Server(process, port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen[bytes], port: int, seconds: float = 30) -> None:
    """Wait until a process listens on its port."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{process.args!r} does not listen on its port") from None
            time.sleep(0.002)


@contextmanager
def upstream() -> Iterator[Server]:
    """The benchmark's upstream."""
    port = free_port()
    with server(["-m", "benchmarks.upstream", str(port)], port) as running:
        yield running


@contextmanager
def echo(to: Server) -> Iterator[Server]:
    """The bare echo proxy."""
    port = free_port()
    with server(["-m", "benchmarks.echo", str(port), to.base_url], port) as running:
        yield running


def serve_arguments(to: Server, port: int, *flags: str) -> list[str]:
    """Arguments of ``python`` that serve OptiLLM in front of an upstream."""
    own = ["-m", "optillm", "serve", "--port", str(port), "--base-url", to.base_url, "--log", "warning"]
    return [*own, *flags]


@contextmanager
def optillm(to: Server, *flags: str) -> Iterator[Server]:
    """OptiLLM, with one worker, in front of an upstream."""
    port = free_port()
    with server(serve_arguments(to, port, *flags), port) as running:
        yield running


def load(target: Server, model: str, clients: int, seconds: float) -> dict[str, Any]:
    """Run the load generator against a server; see :mod:`benchmarks.load`."""
    command = [sys.executable, "-m", "benchmarks.load", target.chat_url, model, str(clients), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    if done.returncode:
        raise RuntimeError(f"load on {target.chat_url} failed: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
