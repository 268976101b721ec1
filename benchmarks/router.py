"""The router's model that comes with the package, and the figures of docs/router.md: ``make router``.

Problems are made by a generator, techniques run on a simulated model of them, and the results train the
model, together with those of the embedded model in ``router_embedded.jsonl``, if there are any. Seeds are
fixed: the same code makes the same file. ``--embedded`` asks the embedded model, which takes a while.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path

from matplotlib.figure import Figure

from optillm.core.answers import final_answer
from optillm.core.routing.model import SHIPPED, render
from optillm.core.tools import Tools
from optillm.evals.routing.collect import APPROACHES, Source, collect, simulated
from optillm.evals.routing.problems import Problem, problems
from optillm.evals.routing.results import Result, read, write
from optillm.evals.routing.train import NEAR, Report, listed, rendered, train

EDITION = "2026-11-25"
"""The date that the model tells; to be changed with what makes it."""
SEED = 2408
QUESTIONS, RUNS = 960, 4
EMBEDDED = Path(__file__).parent / "router_embedded.jsonl"
EMBEDDED_MODEL = "smollm2-135m-instruct"
ASKED = ("none", "self_consistency")
INSTRUCTION = "Answer in one short sentence. End with: The answer is"
PAGE = Path(__file__).parent.parent / "docs" / "router.md"
PICTURE = PAGE.parent / "figures" / "router.png"
BEGIN, END = "<!-- made by make router -->", "<!-- end -->"


class Named(Problem):
    """A problem for a model that seldom keeps to a form: the answer counts wherever it is named."""

    def is_right(self, text: str) -> bool:
        """Whether a reply's answer is right; of one that gives none, whether it names the right one."""
        if final_answer(text) is not None:
            return super().is_right(text)
        return re.search(rf"(?<!\w){re.escape(self.answer)}(?!\w)", text) is not None


def embedded_problems() -> list[Problem]:
    """Problems with answers that a text can be compared with; none that only a simulated model can know."""
    return [Named(**vars(p)) for p in problems(96, SEED + 1) if not (p.open or p.invented)]


async def ask_embedded() -> None:
    """Ask the embedded model; short replies."""
    from optillm.upstreams.llamacpp import LlamaCppUpstream, find_packaged_model

    path = find_packaged_model()
    if path is None:
        raise SystemExit("the embedded model is not installed")
    upstream = LlamaCppUpstream(path, threads=1)
    source = Source(
        upstream, EMBEDDED_MODEL, Tools(), fields=(("max_tokens", 48),), instruction=INSTRUCTION, at_once=4
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


def page(report: Report) -> None:
    """The table of docs/router.md, between its marks."""
    rows = [*report.lines, *report.efforts.values(), *([report.unseen] if report.unseen else [])]
    lines = ["| | score | cost | worth | chosen |", "|---|---|---|---|---|"]
    for r in rows:
        chosen = listed(r.chosen) if len(r.chosen) > 1 else ""
        lines.append(f"| {r.name} | {r.score:.3f} | {r.cost:.2f} | {r.worth:.3f} | {chosen} |")
    lines += [
        "",
        f"`worth` is score − λ · cost, with λ of effort {report.effort:g} in lines without one. The "
        f"router reaches {report.of_oracle:.1%} of the oracle's score; its choice is worth as much as the "
        f"best one (within {NEAR}) on {report.accuracy:.1%} of the questions; it saves {report.saved:.1%} "
        "of the cost of the best single technique. By expected difficulty it chooses:",
        "",
        "| | questions | one reply is right | chosen |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {band['questions']} | {band['plain']:.0%} | {listed(band['chosen'])} |"
        for name, band in report.bands.items()
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{rest.partition(END)[2]}")


def picture(report: Report) -> None:
    """Score against cost: each technique always, the router and the oracle by effort."""
    figure = Figure(figsize=(8.2, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for line in report.lines[:-2]:
        axes.plot(line.cost, line.score, "o", color="#8c959f")
        axes.annotate(
            line.name, (line.cost, line.score), xytext=(5, -10), textcoords="offset points", fontsize=8
        )
    for lines, label, color in (
        (report.efforts, "router, by effort", "#1f6feb"), (report.oracles, "oracle, by effort", "#1a7f37"),
    ):  # fmt: skip
        points = [(r.cost, r.score) for r in lines.values()]
        axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("cost per question, in plain replies")
    axes.set_ylabel("mean score on held-out questions")
    axes.grid(color="#eaeef2")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(PICTURE, dpi=130, metadata={"Software": None})


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
    if EMBEDDED.exists():
        results += read([EMBEDDED])
    trained = train(results, when=EDITION, seed=SEED)
    SHIPPED.write_bytes(render(trained.model))
    page(trained.report)
    picture(trained.report)
    print(rendered(trained.report))


if __name__ == "__main__":
    main()
