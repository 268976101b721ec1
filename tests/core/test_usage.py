"""The arithmetic of usage and money."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.reply import Reply as Answered
from optillm.core.usage import Price, Usage, estimate_tokens, read_usage
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen
from tests.serving import serving


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {
                "prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(10, 7, 3, 4),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 7}, Usage(10, 7)),
        # The upstream's own total is not believed: it is the sum.
        ({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 50}, Usage(1, 1)),
        ({"prompt_tokens": None, "completion_tokens": "7"}, Usage()),
        ({"prompt_tokens": -5, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(0, 2)),
        ({"completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": None}}, Usage(0, 5)),
        ({}, Usage()),
        (None, Usage(estimated=True)),
    ],
)  # fmt: skip
def test_what_an_upstream_says(body: Any, expected: Usage) -> None:
    assert read_usage(body, None, ()) == expected


def showing(reasoning: str) -> Answered:
    return Answered({"role": "assistant", "content": "x", "reasoning_content": reasoning})


@pytest.mark.parametrize(
    ("details", "completion", "shown", "reasoning"),
    [
        ({}, 100, "", 0),
        ({}, 100, "x", 1),
        ({}, 100, "x" * 8, 2),
        ({}, 100, "x" * 9, 3),
        # Never more than was written at all.
        ({}, 5, "x" * 400, 5),
        # The upstream's count wins, even if it is nothing.
        ({"reasoning_tokens": 42}, 100, "x" * 8, 42),
        ({"reasoning_tokens": 0}, 100, "x" * 8, 0),
    ],
)
def test_reasoning_is_counted_or_estimated(
    details: dict[str, int], completion: int, shown: str, reasoning: int
) -> None:
    body = {"completion_tokens": completion, "completion_tokens_details": details}
    assert read_usage(body, None, [showing(shown)]).reasoning == reasoning


def test_an_estimate_is_never_nothing() -> None:
    assert [estimate_tokens("x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_money() -> None:
    price = Price(input=1.0, output=10.0)
    body: dict[str, Any] = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}
    assert read_usage(body, price, ()).cost == pytest.approx(2.0)
    assert read_usage(body, None, ()).cost is None
    assert read_usage(None, price, ()).cost == 0.0
    # What the upstream itself bills is known better.
    assert read_usage({**body, "cost": 0.5}, price, ()).cost == 0.5
    assert read_usage({**body, "cost": float("nan")}, price, ()).cost == pytest.approx(2.0)


COUNTS = st.integers(0, 10**6)
USAGES = st.builds(
    Usage, COUNTS, COUNTS, COUNTS, COUNTS, st.booleans(), st.one_of(st.none(), st.integers(0, 100))
)


@given(st.lists(USAGES))
def test_sums(usages: list[Usage]) -> None:
    total = sum(usages, Usage())
    assert total.prompt == sum(u.prompt for u in usages)
    assert total.total == sum(u.prompt + u.completion for u in usages)
    assert (total.reasoning, total.cached) == (
        sum(u.reasoning for u in usages),
        sum(u.cached for u in usages),
    )
    assert total.estimated == any(u.estimated for u in usages)
    known = [u.cost for u in usages if u.cost is not None]
    assert total.cost == (sum(known) if known else None)
    assert total == sum(reversed(usages), Usage())


@pytest.mark.anyio
async def test_every_call_counts_with_its_details() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }

    def script(call: Seen) -> Said:
        usage = {"prompt_tokens": 10, "completion_tokens": 5, **details}
        # Discarded, truncated and unparsable ones count as well.
        if call.stage == "rate":
            return Reply("no number here", usage=usage)
        return [Reply("a", usage=usage), Reply("b", finish="length", usage=usage), Reply("c", usage=usage)]

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m")
        assert answer.info["calls"] == 3
        assert answer.json["usage"] == {
            "prompt_tokens": 30,
            "completion_tokens": 15,
            "total_tokens": 45,
            "prompt_tokens_details": {"cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 9},
        }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reply", "reasoning"),
    [
        (Reply("<think>" + "x" * 12 + "</think>4"), 3),
        (Reply("4<think>" + "x" * 12, finish="length"), 3),
        (Reply("4", reasoning="x" * 12), 3),
        (Reply("4", reasoning="x" * 12, reasoning_field="reasoning"), 3),
        (Reply("4"), 0),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_visible_reasoning_is_estimated(reply: Reply, reasoning: int, stream: bool) -> None:
    reply = Reply(**{**vars(reply), "usage": {"completion_tokens": 50}})
    async with ScriptedUpstream(reply) as up, serving(up) as proxy:
        if stream:
            events = await proxy.events("re2-m", stream_options={"include_usage": True})
            usage = json.loads(events[-2])["usage"]
        else:
            answer = await proxy.ask("re2-m")
            usage = answer.json["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == reasoning


@pytest.mark.anyio
async def test_a_call_that_failed_costs_nothing_and_hides_nothing() -> None:
    def script(call: Seen) -> Said:
        return Fault(status=500) if call.body["seed"] == 1 else "four words of text"

    async with ScriptedUpstream(script) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("re2-m", n=3, seed=0)
        assert len(answer.texts) == 2
        assert answer.json["usage"]["completion_tokens"] == 8
        assert answer.info["calls"] == 3
