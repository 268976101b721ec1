"""Mixture of agents: the acceptance cases of its specification."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio


def is_final(call: Seen) -> bool:
    return "best reply to the original request" in call.last


def agents(
    critique: Said = "K", final: Said = "F", proposals: tuple[Reply | str, ...] = ("a1", "b2", "c3")
) -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        if call.stage == "critique":
            return critique
        if is_final(call):
            return final
        if call.n == 1:
            return proposals[int(call.body.get("seed", 0)) % len(proposals)]
        return list(proposals)

    return ScriptedUpstream(script)


def final_prompt(up: ScriptedUpstream) -> str:
    return next(c.text for c in up.calls if is_final(c))


async def test_synthesis_of_three() -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask("moa-test-model")
        assert answer.text == "F"
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (3, 3, 3)
        assert all(f"\n{t}\n" in final_prompt(up) for t in ("a1", "b2", "c3", "K"))


async def test_empty_critique_is_left_out() -> None:
    async with agents(critique=Reply("")) as up, serving(up) as proxy:
        assert (await proxy.ask("moa-test-model")).text == "F"
        assert "A critique of them" not in final_prompt(up)


async def test_truncated_critique_is_used() -> None:
    async with agents(critique=Reply("partial K", finish="length")) as up, serving(up) as proxy:
        await proxy.ask("moa-test-model")
        assert "partial K" in final_prompt(up)


async def test_failed_critique_loses_nothing() -> None:
    async with agents(critique=Fault(status=503)) as up, serving(up) as proxy:
        assert (await proxy.ask("moa-test-model")).text == "F"


async def test_truncated_synthesis_is_returned() -> None:
    async with agents(final=Reply("Fpart", finish="length")) as up, serving(up) as proxy:
        choice = (await proxy.ask("moa-test-model")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Fpart", "length")


async def test_empty_synthesis_falls_back_to_the_first_complete_proposal() -> None:
    proposals = (Reply("a1", finish="length"), "b2", "c3")
    async with agents(final=Reply(""), proposals=proposals) as up, serving(up) as proxy:
        assert (await proxy.ask("moa-test-model")).text == "b2"


async def test_upstream_that_ignores_n() -> None:
    async with agents() as up, serving(up) as proxy:
        up.n_mode = "ignore"
        answer = await proxy.ask("moa-test-model", seed=0)
        assert answer.info["calls"] == 5
        assert all(f"\n{t}\n" in final_prompt(up) for t in ("a1", "b2", "c3"))


async def test_two_layers() -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask("moa-test-model", moa_layers=2)
        assert (answer.info["calls"], answer.info["depth"]) == (4, 4)
        assert "reference material" in up.calls[1].last
        assert "\na1\n" in up.calls[1].last


async def test_models_take_turns() -> None:
    async with agents() as up, serving(up) as proxy:
        await proxy.ask("moa-test-model", moa_models=["m1", "m2"], moa_proposers=2, seed=0)
        models = sorted(c.body["model"] for c in up.calls)
        assert models == ["m1", "m2", "test-model", "test-model"]


async def test_one_proposal_needs_no_synthesis() -> None:
    async with agents(proposals=("a1", Reply(""), Reply(None))) as up, serving(up) as proxy:
        assert (await proxy.ask("moa-test-model")).text == "a1"
        assert len(up.calls) == 1


async def test_refusal_is_not_retried_as_something_else() -> None:
    async with ScriptedUpstream(refusal(429, "slow down", retry_after="7")) as up, serving(up) as proxy:
        answer = await proxy.ask("moa-test-model")
        assert answer.status == 429
        assert answer.headers["Retry-After"] == "7"
        assert len(up.calls) == 1


async def test_tools_and_format_travel_with_proposals_and_synthesis_only() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with agents() as up, serving(up) as proxy:
        await proxy.ask("moa-test-model", tools=tools, response_format={"type": "json_object"}, stop=["z"])
        assert [("tools" in c.body, "stop" in c.body) for c in up.calls] == [
            (True, True),
            (False, False),
            (True, True),
        ]


async def test_synthesis_streams_live() -> None:
    async with agents(final="The final answer") as up, serving(up) as proxy:
        events = await proxy.events("moa-test-model", stream_options={"include_usage": True})
        chunks = [json.loads(e) for e in events[:-1]]
        text = "".join(c["delta"].get("content", "") for k in chunks for c in k["choices"])
        assert text == "The final answer"
        assert up.calls[-1].body["stream"] is True
        assert not up.calls[0].body.get("stream")
        assert chunks[-1]["usage"]["completion_tokens"] == 3 + 1 + 3


async def test_two_at_once_each_with_its_own_shape() -> None:
    async with agents() as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("moa-test-model", "marker-a", moa_proposers=2, moa_layers=1, seed=0),
            proxy.ask("moa-test-model", "marker-b", moa_proposers=4, moa_layers=2, seed=0),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (4, 10)
