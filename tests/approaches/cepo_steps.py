"""What the tests of ``cepo`` share: an upstream that knows its steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes import Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, Proxy, serving

ROLES = {
    "name different approaches": "approaches",
    "making a plan first": "plan",
    "problems step by step": "execute",
    "reconcile solutions": "reconcile",
    "examine whether": "rate",
    "examine two answers": "compare",
}
SEED = 100
CUT = Reply("half", finish="length")
REFUSED = refusal(400, "Unsupported parameter: 'reasoning_effort' is not supported with this model.")


def kind(call: Seen) -> str:
    """Which step it is."""
    if call.stage == "plan" and len(call.messages) == 4:
        return "execute"
    if call.stage == "sample":
        return "answer" if "A solution of this has been worked out" in call.last else "direct"
    return call.stage


def number(call: Seen) -> int:
    """Which sample of its prompt it is."""
    return int(call.body["seed"]) - SEED


class Steps(ScriptedUpstream):
    """An upstream whose steps are told one by one; the rest says what it is."""

    def __init__(self, **steps: Said | Callable[[Seen], Any]) -> None:
        super().__init__(self.say, roles=ROLES)
        self.steps = steps

    def say(self, call: Seen) -> Any:
        step = self.steps.get(kind(call), self._usual(call))
        return step(call) if callable(step) else step

    def _usual(self, call: Seen) -> str:
        said = {"rate": "Rating: [[1]]", "compare": "Better Response: [[0]]"}
        which = f" {number(call)}" if "seed" in call.body else ""
        return said.get(kind(call), f"{kind(call)}{which}!")

    def step(self, name: str) -> list[Seen]:
        return [c for c in self.calls if kind(c) == name]

    @property
    def counts(self) -> Counter[str]:
        return Counter(map(kind, self.calls))


@asynccontextmanager
async def steps(settings: dict[str, Any] | None = None, /, **said: Any) -> AsyncIterator[tuple[Steps, Proxy]]:
    """The upstream and a proxy with room for all calls at once."""
    up = Steps(**said)
    async with up, serving(up, **{"max_concurrency": 64, **(settings or {})}) as proxy:
        yield up, proxy


async def ask(proxy: Proxy, **fields: Any) -> Answer:
    """One request, one completion with one plan unless told otherwise."""
    short = {"bestofn_n": 1, "planning_n": 1, "planning_m": 1}
    named = {f"cepo_{k}": fields.pop(k, v) for k, v in short.items()}
    return await proxy.ask(fields.pop("model", "cepo-test-model"), seed=SEED, **named, **fields)


async def notes(proxy: Proxy, answer: Answer, name: str) -> list[dict[str, Any]]:
    run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    return [r["data"] for r in run["records"] if r["kind"] == "note" and r["name"] == name]


def by(table: dict[int, Said], otherwise: Callable[[Seen], Said] | None = None) -> Callable[[Seen], Said]:
    """A step that says something of its own for some samples."""

    def say(call: Seen) -> Said:
        usual = otherwise(call) if otherwise else f"{kind(call)} {number(call)}!"
        return table.get(number(call), usual)

    return say
