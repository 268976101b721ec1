"""Mixture of several models: layers, routes, and the presets of moa that are the paper's shapes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from optillm.settings import UpstreamSettings
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

MODELS = ["m1", "m2", "m3"]


def layer(call: Seen) -> int:
    """0 for the aggregator."""
    if "best reply to the original request" in call.last:
        return 0
    return 2 if "reference material" in call.last else 1


def agents(final: Said = "F", failing: str = "", how: Said = "") -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        if layer(call) == 0:
            return final
        if call.body["model"] == failing:
            return how
        return [f"{call.body['model']} in {layer(call)}"] * call.n

    return ScriptedUpstream(script)


async def test_the_paper_s_shape() -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask("mixture-big", "Which way?", mixture_models=MODELS)
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("F", 6 + 6 + 1, 3)
        asked = Counter((layer(c), c.body["model"]) for c in up.calls)
        assert asked == {(1, m): 2 for m in MODELS} | {(2, m): 2 for m in MODELS} | {(0, "big"): 1}
        for call in up.calls:
            assert call.last.startswith("Which way?")
            seen = [f"\n{m} in {k}\n" in call.last for k in (1, 2) for m in MODELS]
            assert (
                seen
                == {1: [False] * 6, 2: [True] * 3 + [False] * 3, 0: [False] * 3 + [True] * 3}[layer(call)]
            )
        assert {c.body["temperature"] for c in up.calls} == {0.7}


async def test_models_live_with_their_own_upstreams() -> None:
    async with agents() as one, agents() as other, agents() as home:
        upstreams = (
            UpstreamSettings("home", "openai", home.base_url, "home-key"),
            UpstreamSettings("one", "openai", one.base_url, "one-key", models=("m1",)),
            UpstreamSettings("other", "openai", other.base_url, "other-key", models=("m2", "m3*")),
        )
        async with serving(home, upstreams=upstreams) as proxy:
            answer = await proxy.ask("mixture(proposers=3)-big", mixture_models=MODELS)
            assert (answer.text, answer.info["calls"]) == ("F", 7)
            where = [[c.body["model"] for c in up.calls] for up in (home, one, other)]
            assert [sorted(models) for models in where] == [["big"], ["m1"] * 2, ["m2", "m2", "m3", "m3"]]
            keys = [{c.headers["Authorization"] for c in up.calls} for up in (home, one, other)]
            assert keys == [{"Bearer home-key"}, {"Bearer one-key"}, {"Bearer other-key"}]


async def test_lite_critique_and_another_aggregator() -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask(
            "mixture(layers=2,critique=true,aggregator_model=chief)-m", mixture_models=MODELS
        )
        assert (answer.info["calls"], answer.info["depth"]) == (6 + 1 + 1, 3)
        assert {c.body["model"] for c in up.calls if layer(c) == 0 or c.stage == "critique"} == {"chief"}


async def test_one_model_is_sampled() -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask("mixture-m")
        assert (answer.text, [c.n for c in up.calls], answer.info["depth"]) == ("F", [6, 6, 1], 3)


@pytest.mark.parametrize("how", [Fault(status=500), Reply("")])
async def test_a_proposer_that_fails_is_left_out(how: Said) -> None:
    async with agents(failing="m2", how=how) as up, serving(up) as proxy:
        answer = await proxy.ask("mixture(proposers=3)-m", mixture_models=MODELS)
        assert (answer.text, answer.info["calls"]) == ("F", 7)
        assert "m2 in" not in "".join(c.text for c in up.calls)


async def test_a_proposer_that_is_refused_is_the_client_s_to_know() -> None:
    async with agents(failing="m2", how=refusal(404, "no model m2")) as up, serving(up) as proxy:
        answer = await proxy.ask("mixture(proposers=3)-m", mixture_models=MODELS)
        assert answer.status == 404
        assert "no model m2" in json.dumps(answer.json)


@pytest.mark.parametrize("slug", ["mixture", "moa"])
async def test_when_all_proposers_fail_it_says_why(slug: str) -> None:
    async with ScriptedUpstream(Fault(status=503)) as up, serving(up) as proxy:
        answer = await proxy.ask(f"{slug}-m", **{f"{slug}_models": MODELS})
        assert answer.status == 502
        assert answer.error["type"] != "upstream_empty"
        assert "503" in answer.error["message"]


@pytest.mark.parametrize("slug", ["mixture", "moa(critique=false,layers=2)"])
async def test_a_layer_that_fails_leaves_the_one_before(slug: str) -> None:
    def script(call: Seen) -> Said:
        if layer(call) == 0:
            return "F"
        return Fault(status=500) if layer(call) == 2 else ["a", "b"]

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        assert (await proxy.ask(f"{slug}-m")).text == "F"
        assert "\na\n" in up.calls[-1].last


@pytest.mark.parametrize("final", [Fault(status=500), Reply(""), Fault(kind="not_json")])
@pytest.mark.parametrize("slug", ["mixture", "moa"])
async def test_a_failing_fusion_leaves_a_proposal(slug: str, final: Said) -> None:
    async with agents(final) as up, serving(up) as proxy:
        answer = await proxy.ask(f"{slug}-m", **{f"{slug}_models": MODELS})
        assert (answer.status, answer.text) == (200, f"m1 in {1 if slug == 'moa' else 2}")


@pytest.mark.parametrize(("preset", "calls", "depth"), [("paper", 13, 3), ("lite", 7, 2), ("patched", 5, 3)])
async def test_presets_of_moa(preset: str, calls: int, depth: int) -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask("moa-m", moa_preset=preset, moa_models=MODELS)
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("F", calls, depth)
        assert (up.of("critique") != []) == (preset == "patched")


@pytest.mark.parametrize(("field", "value"), [("proposers", 4), ("layers", 2), ("critique", False)])
async def test_a_preset_is_a_shape_of_its_own(field: str, value: object) -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask("moa-m", **{"moa_preset": "paper", f"moa_{field}": value})
        assert (answer.status, answer.error["param"], up.calls) == (400, f"moa_{field}", [])
        assert "moa_preset=paper" in answer.error["message"]


async def test_worst_case_and_ranges() -> None:
    async with agents() as up, serving(up, max_upstream_calls=12) as proxy:
        for model in ("mixture-m", "moa(preset=paper)-m"):
            answer = await proxy.ask(model, mixture_models=MODELS, moa_models=MODELS)
            assert (answer.status, answer.error["code"]) == (400, "too_many_calls")
            assert "can take 13 upstream calls" in answer.error["message"]
        for field, value in (("layers", 1), ("layers", 6), ("proposers", 1), ("models", ["m"] * 17)):
            answer = await proxy.ask("mixture-m", **{f"mixture_{field}": value})
            assert (answer.status, answer.error["param"]) == (400, f"mixture_{field}")
        assert up.calls == []


@pytest.mark.parametrize("calls", [1, 3, 5, 6])
async def test_a_budget_leaves_a_proposal(calls: int) -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask(
            "mixture(proposers=3)-m", mixture_models=MODELS, optillm_budget={"max_calls": calls}
        )
        assert (answer.status, answer.info["cut_short"], len(up.calls)) == (200, "max_calls", calls)
        assert answer.text.startswith("m1 in ")


async def test_it_fuses_the_candidates_of_others() -> None:
    async with agents() as up, serving(up) as proxy:
        answer = await proxy.ask("(re2|cot_reflection)>mixture-m")
        assert (answer.text, answer.info["calls"]) == ("F", 3)


async def test_nothing_usable_is_an_error() -> None:
    async with ScriptedUpstream(Reply(None)) as up, serving(up) as proxy:
        assert (await proxy.ask("mixture-m")).error["type"] == "upstream_empty"


async def test_two_at_once_and_streaming() -> None:
    async with agents("The final answer") as up, serving(up) as proxy:
        _, _, events = await asyncio.gather(
            proxy.ask("mixture(proposers=2)-m", "marker-a", mixture_models=["m1"]),
            proxy.ask("mixture(proposers=4,layers=2)-m", "marker-b", mixture_models=["m2"]),
            proxy.events("mixture-m", "marker-c", mixture_models=MODELS),
        )
        assert [len(up.stages(marker=f"marker-{m}")) for m in "abc"] == [5, 5, 13]
        assert {c.body["model"] for c in up.calls if "marker-a" in c.text} == {"m1", "m"}
        chunks = [json.loads(e) for e in events[:-1]]
        text = "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])
        assert text == "The final answer"
