"""What an upstream does wrong, and what its client sees of it."""

from __future__ import annotations

import json

import pytest

from tests.fakes import Fault, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("model", ["m", "bon-m", "moa-m", "re2-m"])


@BOTH
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429])
async def test_a_refusal_keeps_status_body_and_retry_after(model: str, status: int) -> None:
    fault = refusal(status, "no, says the upstream", retry_after="9")
    async with ScriptedUpstream(fault) as up, serving(up) as proxy:
        answer = await proxy.ask(model)
        assert answer.status == status
        assert "no, says the upstream" in answer.error["message"]
        assert answer.error["type"] == "upstream_says"
        assert answer.headers["Retry-After"] == "9"
        assert len(up.calls) == 1
        if status in (401, 403):
            assert "upstream" in answer.error["message"].split(",")[0]


@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=503, body={"error": "busy"}),
        Fault("not_json"),
        Fault("truncated_json"),
        Fault("wrong_type"),
        Fault("reset"),
        Fault(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
    ids=lambda f: f"{f.kind}-{f.status}",
)
async def test_a_broken_upstream_is_502_with_the_cause(model: str, fault: Fault) -> None:
    async with ScriptedUpstream(fault) as up, serving(up) as proxy:
        answer = await proxy.ask(model)
        assert (answer.status, answer.error["type"]) == (502, "upstream_error")
        assert "upstream" in answer.error["message"]


async def test_no_choices_is_502() -> None:
    async with ScriptedUpstream(Fault("empty_choices")) as up, serving(up) as proxy:
        assert (await proxy.ask("bon-m")).error["code"] == "upstream_empty"


@BOTH
async def test_a_hang_is_504(model: str) -> None:
    async with ScriptedUpstream(Fault("hang")) as up, serving(up, request_timeout=0.2) as proxy:
        answer = await proxy.ask(model)
        assert answer.status == 504
        assert answer.error["type"] == answer.error["code"] == "upstream_timeout"
        assert (
            "the upstream did not answer" in answer.error["message"] or "in time" in answer.error["message"]
        )
        await up.until(lambda: all(c.outcome == "cancelled" for c in up.calls))


async def test_nobody_listens() -> None:
    async with serving("http://127.0.0.1:1/v1") as proxy:
        answer = await proxy.ask()
        assert (answer.status, answer.error["type"]) == (502, "upstream_error")
        assert "cannot be reached" in answer.error["message"]


async def test_retries_until_it_works() -> None:
    tries: list[int] = []

    def flaky(call: Seen) -> Said:
        tries.append(1)
        return "fine" if len(tries) == 3 else refusal(429, "slow", retry_after="0")

    async with ScriptedUpstream(flaky) as up, serving(up, retries=2) as proxy:
        answer = await proxy.ask("re2-m")
        assert (answer.text, len(up.calls)) == ("fine", 3)
        assert answer.info["calls"] == 1


async def test_a_long_retry_after_is_passed_on_and_not_waited_for() -> None:
    async with (
        ScriptedUpstream(refusal(429, "slow", retry_after="3600")) as up,
        serving(up, retries=5) as proxy,
    ):
        answer = await proxy.ask()
        assert (answer.status, answer.headers["Retry-After"], len(up.calls)) == (429, "3600", 1)


@pytest.mark.parametrize("model", ["m", "re2-m"])
@pytest.mark.parametrize("kind", ["cut_stream", "silent_end"])
async def test_a_cut_stream_ends_with_an_error_event(model: str, kind: str) -> None:
    async with ScriptedUpstream(Fault(kind)) as up, serving(up) as proxy:
        events = await proxy.events(model)
        last = json.loads(events[-1])
        assert last["error"]["type"] == "upstream_error"
        assert "[DONE]" not in events


@pytest.mark.parametrize("model", ["m", "re2-m", "bon-m"])
async def test_a_refusal_before_a_stream_begins_has_its_status(model: str) -> None:
    async with ScriptedUpstream(refusal(404, "no such model")) as up, serving(up) as proxy:
        answer = await proxy.ask(model, stream=True)
        assert answer.status == 404


async def test_a_refused_field_is_renamed_once_and_remembered() -> None:
    def script(call: Seen) -> Said:
        if "max_tokens" in call.body:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in call.body:
            return refusal(400, "Unsupported value: 'temperature' does not support 1.0")
        return "ok"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        assert (await proxy.ask("re2-m", max_tokens=50)).text == "ok"
        assert [sorted(set(c.body) - {"model", "messages"}) for c in up.calls] == [
            ["max_tokens"],
            ["max_completion_tokens"],
        ]
        assert (await proxy.ask("re2-m", max_tokens=60)).text == "ok"
        assert up.calls[-1].body["max_completion_tokens"] == 60
        assert len(up.calls) == 3
