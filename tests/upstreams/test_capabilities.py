"""What is learned of a model: whether it honours ``n``, which fields it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from optillm.core.run import Route
from optillm.settings import UpstreamSettings
from optillm.upstreams.capabilities import Capabilities
from tests.fakes import Fault, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio


def ns(up: ScriptedUpstream) -> list[Any]:
    """The n of each call, None where none was sent."""
    return [c.body.get("n") for c in up.calls]


async def test_native_takes_one_call() -> None:
    async with ScriptedUpstream(["a", "b", "c"]) as up, serving(up) as proxy:
        assert (await proxy.ask("re2-m", n=3)).texts == ["a", "b", "c"]
        assert ns(up) == [3]


async def test_an_upstream_that_ignores_n_is_topped_up_and_remembered() -> None:
    async with ScriptedUpstream(n_mode="ignore") as up, serving(up) as proxy:
        first = await proxy.ask("re2-m", n=3)
        assert (len(first.texts), first.info["calls"], first.info["depth"]) == (3, 3, 2)
        assert ns(up) == [3, None, None]
        second = await proxy.ask("re2-m", n=3)
        assert (len(second.texts), second.info["calls"], second.info["depth"]) == (3, 3, 1)
        assert ns(up)[3:] == [None] * 3


async def test_an_upstream_that_rejects_n_is_remembered() -> None:
    async with ScriptedUpstream(n_mode="reject") as up, serving(up) as proxy:
        first = await proxy.ask("re2-m", n=3)
        assert (len(first.texts), first.info["calls"], first.info["depth"]) == (3, 4, 2)
        assert (await proxy.ask("re2-m", n=3)).info["calls"] == 3
        assert ns(up) == [3, *[None] * 6]


async def test_each_model_is_learned_by_itself() -> None:
    def script(call: Seen) -> Said:
        if call.body["model"] == "poor" and call.n > 1:
            return refusal(400, "n > 1 is not supported", "n")
        return "ok"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        await proxy.ask("re2-poor", n=2)
        await proxy.ask("re2-rich", n=2)
        await proxy.ask("re2-poor", n=2)
        assert [(c.body["model"], c.body.get("n")) for c in up.calls] == [
            ("poor", 2), ("poor", None), ("poor", None), ("rich", 2), ("poor", None), ("poor", None),
        ]  # fmt: skip


async def test_the_same_model_of_two_upstreams_is_learned_twice() -> None:
    async with ScriptedUpstream(n_mode="reject") as poor, ScriptedUpstream() as rich:
        upstreams = (
            UpstreamSettings("poor", "openai", poor.base_url, models=("m",)),
            UpstreamSettings("rich", "openai", rich.base_url),
        )
        learned = Capabilities()
        async with serving(poor, upstreams=upstreams) as proxy:
            await proxy.ask("re2-m", n=2)
            routes = {n.upstream.name: Route(n.upstream, "m") for n in proxy.app._routes.upstreams}
            learned.learn_fanout(routes["poor"])
            assert {name: learned.n_mode(r) for name, r in routes.items()} == {
                "poor": "fanout",
                "rich": "auto",
            }


@pytest.mark.parametrize(
    "message",
    [
        "'n' must be 1",
        'Invalid value for "n": 3',
        "n > 1 is not supported",
        "Only one completion choice is allowed",
        "Unsupported parameter: `n`.",
    ],
)
async def test_messages_that_concern_n(message: str) -> None:
    def script(call: Seen) -> Said:
        return refusal(422, message) if call.n > 1 else "ok"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        assert (await proxy.ask("re2-m", n=2)).status == 200
        assert ns(up) == [2, None, None]


@pytest.mark.parametrize(
    "fault",
    [
        refusal(400, "Only one system message is allowed"),
        refusal(400, "the context length is exceeded; try again with \\n removed"),
        refusal(401, "n is not for you", "n"),
        refusal(404, "no model n", "n"),
        refusal(429, "n", "n"),
        Fault(status=500, body={"error": {"message": "n", "param": "n"}}),
        Fault("not_json"),
        Fault("reset"),
    ],
    ids=lambda f: f"{f.kind}-{f.status}",
)
async def test_no_other_error_leads_to_fan_out(fault: Fault) -> None:
    async with ScriptedUpstream(fault) as up, serving(up) as proxy:
        assert (await proxy.ask("re2-m", n=3)).status >= 400
        assert ns(up) == [3]
        up.script = "ok"
        assert len((await proxy.ask("re2-m", n=3)).texts) == 3
        assert ns(up) == [3, 3]


async def test_native_by_order_tops_nothing_up() -> None:
    async with ScriptedUpstream(n_mode="ignore") as up, serving(up, n_mode="native") as proxy:
        assert len((await proxy.ask("re2-m", n=3)).texts) == 1
        assert ns(up) == [3]
    async with ScriptedUpstream(n_mode="reject") as up, serving(up, n_mode="native") as proxy:
        assert (await proxy.ask("re2-m", n=3)).status == 400
        assert ns(up) == [3]


async def test_fan_out_by_order() -> None:
    async with ScriptedUpstream() as up, serving(up, n_mode="fanout") as proxy:
        assert (await proxy.ask("re2-m", n=3)).info["depth"] == 1
        assert ns(up) == [None] * 3


@pytest.mark.parametrize(
    ("mode", "seeds"),
    [("fanout", [7, 8, 9]), ("native", [7]), ("ignore", [7, 8, 9]), ("reject", [7, 7, 8, 9])],
)
async def test_the_seeds_of_a_fan_out(mode: str, seeds: list[int]) -> None:
    upstream_mode = mode if mode in ("ignore", "reject") else "native"
    setting = mode if mode in ("fanout", "native") else "auto"
    async with ScriptedUpstream(n_mode=upstream_mode) as up, serving(up, n_mode=setting) as proxy:
        await proxy.ask("re2-m", n=3, seed=7)
        assert sorted(c.body["seed"] for c in up.calls) == seeds


def o1(call: Seen) -> Said:
    """A model that refuses one field at a time."""
    if "max_tokens" in call.body:
        return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    if "temperature" in call.body:
        return refusal(
            400, "Unsupported value: 'temperature' does not support 0.5 with this model. "
            "Only the default (1) value is supported."
        )  # fmt: skip
    if "top_p" in call.body:
        return refusal(400, "top_p: Extra inputs are not permitted")
    return "ok"


async def test_fields_are_dropped_or_renamed_one_by_one_and_remembered() -> None:
    async with ScriptedUpstream(o1) as up, serving(up) as proxy:
        first = await proxy.ask("re2-m", max_tokens=50, temperature=0.5, top_p=0.9, stop=["x"])
        assert first.text == "ok"
        assert first.info["calls"] == 4
        sent = {k: v for k, v in up.calls[-1].body.items() if k not in ("model", "messages")}
        assert sent == {"max_completion_tokens": 50, "stop": ["x"]}
        again = await proxy.ask("re2-m", max_tokens=60, temperature=0.5, top_p=0.9)
        assert (again.info["calls"], up.calls[-1].body["max_completion_tokens"]) == (1, 60)
        # Another model has not refused anything yet.
        await proxy.ask("re2-other", max_tokens=60)
        assert "max_tokens" in up.calls[-2].body


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'reasoning_effort' is not supported with this model.",
        "Unrecognized request argument supplied: reasoning_effort",
        "reasoning_effort: Extra inputs are not permitted",
    ],
)
async def test_reasoning_effort_is_dropped_and_remembered(message: str) -> None:
    def script(call: Seen) -> Said:
        return refusal(400, message) if "reasoning_effort" in call.body else "ok"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        assert (await proxy.ask("re2-m", reasoning_effort="high")).info["calls"] == 2
        assert (await proxy.ask("re2-m", reasoning_effort="high")).info["calls"] == 1
        await proxy.ask("re2-other", reasoning_effort="high")
        assert ["reasoning_effort" in c.body for c in up.calls] == [True, False, False, True, False]


async def test_calls_at_the_same_time_learn_the_same() -> None:
    async with ScriptedUpstream(o1) as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("self_consistency(samples=5)-m", max_tokens=50)
        assert answer.status == 200
        assert len([c for c in up.calls if c.outcome == "answered"]) == answer.info["calls"] <= 15


async def test_a_stream_learns_too() -> None:
    async with ScriptedUpstream(o1) as up, serving(up) as proxy:
        assert "[DONE]" in await proxy.events("re2-m", max_tokens=50, temperature=0.5)
        assert "max_completion_tokens" in up.calls[-1].body


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 99999. This model supports at most 16384 completion tokens.",
        "temperature must be between 0 and 2",
        "top_p is not supported",
        "This model does not support images",
    ],
)
async def test_a_refusal_that_no_renaming_helps_is_passed_on(message: str) -> None:
    async with ScriptedUpstream(refusal(400, message)) as up, serving(up) as proxy:
        answer = await proxy.ask("re2-m", max_tokens=50, temperature=1.5)
        assert (answer.status, answer.error["message"]) == (400, message)
        up.script = "ok"
        await proxy.ask("re2-m", max_tokens=50, temperature=1.5)
        assert (up.calls[-1].body["max_tokens"], up.calls[-1].body["temperature"]) == (50, 1.5)


async def test_pass_through_is_not_adapted() -> None:
    async with ScriptedUpstream(o1) as up, serving(up) as proxy:
        assert (await proxy.ask("m", max_tokens=50)).status == 400
        assert len(up.calls) == 1
