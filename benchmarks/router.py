"""The router's model that comes with the package, and the figures of docs/router.md: ``make router``.

Problems are made by a generator, techniques run on a simulated model of them, and the results train the
model, together with those of the embedded model in ``router_embedded.jsonl``. Seeds are fixed: the same
code makes the same file. ``--embedded`` asks the embedded model again, which takes a while.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from optillm.core.routing.model import SHIPPED, render
from optillm.core.tools import Tools
from optillm.evals.routing.collect import APPROACHES, Source, collect, simulated
from optillm.evals.routing.problems import Problem, problems
from optillm.evals.routing.results import Result, read, write
from optillm.evals.routing.train import rendered, train

EDITION = "2026-11-25"
"""The date that the model tells; to be changed with what makes it."""
SEED = 2408
QUESTIONS, RUNS = 960, 4
EMBEDDED = Path(__file__).parent / "router_embedded.jsonl"
EMBEDDED_MODEL = "smollm2-135m-instruct"
ASKED = ("none", "self_consistency")
INSTRUCTION = "Answer in one short sentence. End with: The answer is"
REPORT = Path(__file__).parent.parent / "docs" / "router.json"


def embedded_problems() -> list[Problem]:
    """Problems with answers that a text can be compared with; none that only a simulated model can know."""
    return [p for p in problems(48, SEED + 1) if not (p.open or p.invented)]


async def ask_embedded() -> None:
    """Ask the embedded model; short replies."""
    from optillm.upstreams.llamacpp import LlamaCppUpstream, find_packaged_model

    path = find_packaged_model()
    if path is None:
        raise SystemExit("the embedded model is not installed")
    upstream = LlamaCppUpstream(path, threads=1)
    source = Source(
        upstream, EMBEDDED_MODEL, Tools(), fields=(("max_tokens", 48),), instruction=INSTRUCTION, at_once=1
    )
    results: list[Result] = []
    try:
        async for result in collect(source, embedded_problems(), ASKED):
            results.append(result)
            print(result.approach, result.kind, result.score, flush=True)
    finally:
        await upstream.aclose()
    write(EMBEDDED, results)


async def simulate() -> list[Result]:
    """All techniques on all problems of the simulated model."""
    some = problems(QUESTIONS, SEED)
    source = simulated(some, seed=SEED, runs=RUNS)
    return [result async for result in collect(source, some, APPROACHES)]


def main() -> None:
    """Make the file and the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedded", action="store_true", help="ask the embedded model again")
    parser.add_argument("--results", type=Path, help="keep the simulated results there")
    options = parser.parse_args()
    if options.embedded:
        asyncio.run(ask_embedded())
    results = asyncio.run(simulate())
    if options.results:
        write(options.results, results)
    trained = train([*results, *read([EMBEDDED])], when=EDITION, seed=SEED)
    SHIPPED.write_bytes(render(trained.model))
    REPORT.write_text(json.dumps(trained.report.to_dict(), indent=1) + "\n")
    print(rendered(trained.report))


if __name__ == "__main__":
    main()
