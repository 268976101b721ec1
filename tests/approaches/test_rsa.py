"""Recursive self-aggregation: populations, subsets, and what is returned of the last one."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def shown(call: Seen) -> list[str]:
    """The candidates that a rewriting sees."""
    return re.findall(r"<candidate-\d+-[0-9a-f]{12}>\n(.*?)\n</candidate", call.last, re.S)


def generation(call: Seen) -> int:
    """Of which step a call is: the candidates carry the number of theirs."""
    return max((int(c[1]) + 1 for c in shown(call)), default=1)


def people(call: Seen) -> Said:
    """Member i of step g says "g<step> m<i>"."""
    first = int(call.body["seed"])
    return [f"g{generation(call)} m{i}\nThe answer is {i % 2}" for i in range(first, first + call.n)]


async def notes(proxy: Proxy, answer: Answer) -> dict[str, Any]:
    run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    return {r["name"]: r["data"] for r in run["records"] if r["kind"] == "note"}


async def test_every_step_rewrites_everyone_from_subsets() -> None:
    async with ScriptedUpstream(people) as up, serving(up) as proxy:
        answer = await proxy.ask("rsa(population=5,subset=2,steps=3)-m", "Why so?", seed=0)
        assert answer.text == "g3 m0\nThe answer is 0"
        assert (answer.info["calls"], answer.info["depth"]) == (1 + 2 * 5, 3)
        first, *rest = up.calls
        assert (first.n, first.last) == (5, "Why so?")
        assert [generation(c) for c in rest] == [2] * 5 + [3] * 5
        for call in rest:
            assert call.last.startswith("Why so?\n\n")
            assert len(set(shown(call))) == 2
        told = await notes(proxy, answer)
        for step in (2, 3):
            seen = [shown(c) for c in rest if generation(c) == step]
            drawn = [
                [f"g{step - 1} m{i}\nThe answer is {i % 2}" for i in subset]
                for subset in told[f"rsa.subsets[{step}]"]["subsets"]
            ]
            assert sorted(seen) == sorted(drawn), "what the trace tells is what was shown"
        assert told["rsa.votes"]["winner"] == 0


async def test_the_seed_draws_the_subsets() -> None:
    async with ScriptedUpstream(people) as up, serving(up) as proxy:

        async def drawn(seed: int) -> Any:
            answer = await proxy.ask("rsa(population=6,subset=2,steps=2)-m", seed=seed)
            return (await notes(proxy, answer))["rsa.subsets[2]"]

        subsets = [await drawn(seed) for seed in (3, 3, 4)]
        assert subsets[0] == subsets[1] != subsets[2]


async def test_one_step_is_self_consistency() -> None:
    said = [f"{i}. The answer is {a}" for i, a in enumerate("122")]
    async with ScriptedUpstream([*said, Reply(None)]) as up, serving(up) as proxy:
        answer = await proxy.ask("rsa(population=4,steps=1)-m")
        assert (answer.text, answer.info["calls"]) == ("1. The answer is 2", 1)


async def test_a_subset_of_one_is_refined() -> None:
    async with ScriptedUpstream(people) as up, serving(up) as proxy:
        await proxy.ask("rsa(population=2,subset=1,steps=2)-m", seed=0)
        assert all(len(shown(c)) == 1 and "A candidate answer" in c.last for c in up.calls[1:])


async def test_a_random_member_is_the_paper_s_final() -> None:
    async with ScriptedUpstream(people) as up, serving(up) as proxy:
        texts = set()
        for seed in range(6):
            answer = await proxy.ask("rsa(population=4,steps=2,final=random)-m", seed=seed)
            member = (await notes(proxy, answer))["rsa.final"]["member"]
            assert answer.text.startswith(f"g2 m{seed + member}\n")
            texts.add(member)
        assert len(texts) > 1


async def test_the_aggregated_final_streams() -> None:
    def script(call: Seen) -> Said:
        return "the end" if call.body.get("stream") or generation(call) == 3 else people(call)

    fields = {"rsa_population": 4, "rsa_steps": 2, "rsa_final": "aggregated", "seed": 0}
    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("rsa-m", **fields)
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("the end", 1 + 4 + 1, 3)
        events = await proxy.events("rsa-m", **fields)
        chunks = [json.loads(e) for e in events[:-1]]
        text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
        assert text == "the end"
        assert [bool(c.body.get("stream")) for c in up.calls[6:]] == [False] * 5 + [True]


@pytest.mark.parametrize("final", [Reply(None), Fault(status=500)])
async def test_a_failing_final_leaves_the_majority(final: Said) -> None:
    def script(call: Seen) -> Said:
        return final if generation(call) == 3 else people(call)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("rsa(population=4,steps=2,final=aggregated)-m", seed=0)
        assert (answer.status, answer.text) == (200, "g2 m0\nThe answer is 0")


@pytest.mark.parametrize("rewriting", [Reply(""), Reply("cut", finish="length"), Fault(status=500)])
async def test_a_member_whose_rewriting_fails_stays(rewriting: Said) -> None:
    def script(call: Seen) -> Said:
        return rewriting if generation(call) > 1 and call.body["seed"] == 0 else people(call)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("rsa(population=3,subset=3,steps=3)-m", seed=0)
        assert answer.text == "g1 m0\nThe answer is 0"
        later = [shown(c) for c in up.calls if generation(c) == 3]
        assert later
        assert all("g1 m0\nThe answer is 0" in candidates for candidates in later)


async def test_a_short_population_is_filled_by_rewriting() -> None:
    def script(call: Seen) -> Said:
        return people(call) if shown(call) else ["g1 m0", Reply(None), Reply(""), "g1 m3"]

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("rsa(population=4,steps=3)-m", seed=0)
        assert answer.info["calls"] == 1 + 4 + 4
        assert {len(shown(c)) for c in up.calls if generation(c) == 2} == {2}
        assert {len(shown(c)) for c in up.calls if generation(c) == 3} == {3}


@pytest.mark.parametrize("calls", range(1, 11, 3))
async def test_a_budget_leaves_the_last_population(calls: int) -> None:
    async with ScriptedUpstream(people) as up, serving(up) as proxy:
        answer = await proxy.ask(
            "rsa(population=5,steps=3,final=aggregated)-m", seed=0, optillm_budget={"max_calls": calls}
        )
        assert (answer.status, answer.info["cut_short"], len(up.calls)) == (200, "max_calls", calls)
        assert re.match(r"g[123] m\d\nThe answer is", answer.text)


async def test_worst_case_and_upstream_without_n() -> None:
    limit = 4 + 8 + 1 - 1
    async with (
        ScriptedUpstream(people) as up,
        serving(up, n_mode="fanout", max_upstream_calls=limit) as proxy,
    ):
        answer = await proxy.ask("rsa(population=4,steps=3,final=aggregated)-m")
        assert (answer.status, answer.error["code"], up.calls) == (400, "too_many_calls", [])
        assert "can take 13 upstream calls" in answer.error["message"]
    async with ScriptedUpstream(people, n_mode="ignore") as up, serving(up) as proxy:
        answer = await proxy.ask("rsa(population=4,steps=2)-m", seed=0)
        assert answer.info["calls"] == 4 + 4


async def test_bad_input_and_refusals() -> None:
    async with ScriptedUpstream(refusal(429, "slow down", retry_after="7")) as up, serving(up) as proxy:
        for field, value in (
            ("population", 0),
            ("subset", 17),
            ("steps", 0),
            ("final", "best"),
            ("population", 2),
        ):
            answer = await proxy.ask("rsa-m", **{f"rsa_{field}": value})
            assert (answer.status, answer.error["param"]) == (400, f"rsa_{field}")
        assert up.calls == []
        answer = await proxy.ask("rsa-m")
        assert (answer.status, answer.headers["Retry-After"], len(up.calls)) == (429, "7", 1)
    async with ScriptedUpstream(Reply(None)) as up, serving(up) as proxy:
        assert (await proxy.ask("rsa-m")).error["type"] == "upstream_empty"


async def test_images_and_tools_travel_with_every_call() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    content = [{"type": "text", "text": "What is it?"}, IMAGE]
    async with ScriptedUpstream(people) as up, serving(up) as proxy:
        messages = [{"role": "user", "content": content}]
        await proxy.ask("rsa(population=3,steps=2)-m", messages=messages, tools=tools, seed=0)
        assert all(c.body["tools"] == tools and c.messages[0]["content"][1] == IMAGE for c in up.calls)


async def test_two_at_once_each_with_its_own_population() -> None:
    async with ScriptedUpstream(people) as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("rsa(population=2,subset=1,steps=4)-m", "marker-a", seed=0),
            proxy.ask("rsa(population=4,steps=2)-m", "marker-b", seed=0),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (8, 8)
