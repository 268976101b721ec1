"""Universal self-consistency: the model selects, once, among all samples."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

A = "The sea was calm and blue, and gulls cried over the little boats near the old harbour wall."
B = "In winter the mountain village lies silent under deep snow while smoke rises from the chimneys."
B2 = B.replace("deep", "thick")


def selecting(choice: Said, samples: tuple[Reply | str, ...] = (A, B, B2)) -> ScriptedUpstream:
    return ScriptedUpstream(lambda call: choice if call.stage == "select" else list(samples))


async def test_the_model_selects() -> None:
    async with selecting("They say much the same.\nChoice: 3") as up, serving(up) as proxy:
        answer = await proxy.ask("usc(samples=3)-m", "Describe a place.")
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == (B2, 2, 2)
        (selection,) = up.of("select")
        assert "Describe a place." in selection.last
        nonces = re.findall(r"<candidate-\d-([0-9a-f]{12})>", selection.last)
        assert len(nonces) == 3
        assert len(set(nonces)) == 1
        assert selection.last.index(A) < selection.last.index(B) < selection.last.index(B2)
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
        notes = [r["data"] for r in run["records"] if r["kind"] == "note"]
        assert notes == [{"candidates": 3, "choice": 2}]


async def test_eight_samples_by_default() -> None:
    async with selecting("Choice: 1") as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("usc-m")
        assert (answer.info["calls"], answer.info["depth"]) == (8 + 1, 2)


@pytest.mark.parametrize("choice", ["Choice: 9", "Choice: 0", "the second one", Reply(""), Fault(status=500)])
async def test_an_unreadable_choice_falls_back_to_likeness(choice: Said) -> None:
    async with selecting(choice) as up, serving(up) as proxy:
        answer = await proxy.ask("usc(samples=3)-m")
        assert (answer.status, answer.text) == (200, B)


async def test_without_any_likeness_the_first_is_returned() -> None:
    samples = (A, B, "Something else entirely, of no use to anyone.")
    async with selecting("none", samples) as up, serving(up) as proxy:
        assert (await proxy.ask("usc(samples=3)-m")).text == A


async def test_one_usable_sample_needs_no_selection() -> None:
    async with selecting("Choice: 2", (Reply(None), A, Reply(""))) as up, serving(up) as proxy:
        answer = await proxy.ask("usc(samples=3)-m")
        assert (answer.text, answer.info["calls"]) == (A, 1)


async def test_truncated_samples_are_not_shown() -> None:
    cut = Reply("cut off in the", finish="length")
    async with selecting("Choice: 1", (cut, A, B)) as up, serving(up) as proxy:
        assert (await proxy.ask("usc(samples=3)-m")).text == A
        assert "cut off in the" not in up.of("select")[0].text
    async with selecting("Choice: 1", (cut,)) as up, serving(up) as proxy:
        choice = (await proxy.ask("usc(samples=2)-m")).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("cut off in the", "length")


async def test_a_tool_call_can_be_selected() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = Reply(None, tool_calls=(call,), finish="tool_calls")
    async with selecting("Choice: 2", (A, said)) as up, serving(up) as proxy:
        choice = (await proxy.ask("usc(samples=2)-m")).json["choices"][0]
        assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([call], "tool_calls")
        assert '[tool call] {"name":"look"' in up.of("select")[0].last


async def test_another_model_may_select() -> None:
    async with selecting("Choice: 1") as up, serving(up) as proxy:
        await proxy.ask("usc-m", usc_select_model="judge", usc_select_temperature=0.3)
        assert [c.body["model"] for c in up.calls] == ["m", "judge"]
        assert up.calls[1].body["temperature"] == 0.3


async def test_a_budget_of_one_call_leaves_the_vote() -> None:
    async with selecting("Choice: 1") as up, serving(up) as proxy:
        answer = await proxy.ask("usc(samples=3)-m", optillm_budget={"max_calls": 1})
        assert (answer.text, answer.info["cut_short"], len(up.calls)) == (B, "max_calls", 1)


async def test_a_refused_selection_is_the_client_s() -> None:
    async with selecting(refusal(403, "not this model")) as up, serving(up) as proxy:
        assert (await proxy.ask("usc(samples=3)-m")).status == 403


async def test_nothing_usable_is_an_error() -> None:
    async with selecting("Choice: 1", (Reply(None),)) as up, serving(up) as proxy:
        answer = await proxy.ask("usc-m")
        assert (answer.status, answer.error["type"]) == (502, "upstream_empty")


@pytest.mark.parametrize(("field", "value"), [("samples", 0), ("samples", 65), ("temperature", 2.1)])
async def test_out_of_range(field: str, value: float) -> None:
    async with selecting("Choice: 1") as up, serving(up) as proxy:
        answer = await proxy.ask("usc-m", **{f"usc_{field}": value})
        assert (answer.status, answer.error["param"]) == (400, f"usc_{field}")
        assert up.calls == []


async def test_it_reduces_the_candidates_of_others() -> None:
    def script(call: Seen) -> Said:
        return "Choice: 2" if call.stage == "select" else f"by {call.body['model']}: {len(call.text)}"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("(cot_reflection|re2)>usc-m", "Hm?")
        assert answer.info["calls"] == 3
        (second,) = (c for c in up.of("sample") if "Read the question again" in c.text)
        assert answer.text == f"by m: {len(second.text)}"


async def test_two_at_once_each_with_its_own_samples() -> None:
    async with selecting("Choice: 2") as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("usc-m", "marker-a", usc_samples=2), proxy.ask("usc-m", "marker-b", usc_samples=5)
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 6)


async def test_streaming_gives_the_same_answer() -> None:
    async with selecting("Choice: 3") as up, serving(up) as proxy:
        chunks = [json.loads(e) for e in (await proxy.events("usc(samples=3)-m"))[:-1]]
        assert "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"]) == B2
