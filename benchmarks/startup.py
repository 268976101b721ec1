"""Seconds to import the package, and from starting the server to its first answer."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

from benchmarks import processes
from benchmarks.load import chat_body
from benchmarks.processes import Server, environment, free_port, serve_arguments

ROUNDS = 7


def measure() -> dict[str, Any]:
    """Medians of fresh processes."""
    with processes.upstream() as up:
        python = median(_run("pass") for _ in range(ROUNDS))
        imported = median(_run("import optillm, optillm.library") for _ in range(ROUNDS))
        answer = median(_first_answer(up) for _ in range(ROUNDS))
    return {
        "python_seconds": python,
        "import_seconds": imported - python,
        "first_answer_seconds": answer,
    }


def _run(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    return time.perf_counter() - begun


def _first_answer(up: Server) -> float:
    """From the start of the process until a request has its whole answer."""
    port = free_port()
    begun = time.perf_counter()
    with processes.server(serve_arguments(up, port), port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(chat_body("wait0")), headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        return time.perf_counter() - begun
