"""Bad input: the right status, an envelope that names the field, and no upstream call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes import ScriptedUpstream
from tests.serving import serving

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]

# a change to a good body -> the field that is named
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    ({"messages": [*HI, {"role": "assistant", "tool_calls": 1}]}, "messages[1].tool_calls"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 10**6}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "2"}, "n"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"seed": "x"}, "seed"),
    ({"stop": 5}, "stop"),
    ({"tools": {}}, "tools"),
    ({"model": 7}, "model"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"optillm_approach": 5}, "optillm_approach"),
    ({"optillm_approach": "zzz"}, "optillm_approach"),
    ({"optillm_approach": "bon&"}, "optillm_approach"),
    ({"optillm_approach": "bon", "best_of_n": "two"}, "best_of_n"),
    ({"optillm_approach": "bon", "best_of_n": 0}, "best_of_n"),
    ({"optillm_approach": "bon", "best_of_n": 65}, "best_of_n"),
    ({"optillm_approach": "bon", "bon_temperature": True}, "bon_temperature"),
    ({"optillm_approach": "mcts", "mcts_simulations": 10**9}, "mcts_simulations"),
    ({"optillm_approach": "mcts", "mcts_exploration": -1}, "mcts_exploration"),
    ({"optillm_approach": "moa", "moa_models": "m"}, "moa_models"),
    ({"optillm_approach": "moa", "moa_models": [1]}, "moa_models"),
    ({"optillm_budget": {"max_calls": 0}}, "optillm_budget.max_calls"),
    ({"optillm_budget": {"max_call": 5}}, "optillm_budget"),
    ({"optillm_budget": {"max_cost": 1.0}}, "optillm_budget.max_cost"),
    ({"optillm": {"aproach": "bon"}}, "optillm"),
    ({"optillm": {"params": {"zzz": 1}}}, "optillm.params.zzz"),
    ({"optillm_progress": "loud"}, "optillm_progress"),
]


@pytest.mark.parametrize(("change", "param"), FIELDS)
async def test_field(change: dict[str, Any], param: str) -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.post({"model": "m", "messages": HI, **change})
        assert answer.status == 400, answer.json
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", param)
        assert up.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"model": "bon-m", "messages": [{"role":"user","content":"x"}], "bon_temperature": NaN}',
        b'{"model": "bon-m", "messages": [{"role":"user","content":"x"}], "bon_temperature": 1e999}',
        b"[" * 100_000,
        b'{"messages":' + b'{"a":' * 50_000,
    ],
)
async def test_not_a_json_object(body: bytes) -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.post(body)
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")
        assert up.calls == []


async def test_near_names_are_listed() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.ask(optillm_approach="self_consistancy")
        assert "'self_consistency'" in answer.error["message"]


async def test_worst_case_over_the_limit_names_both_numbers() -> None:
    async with ScriptedUpstream() as up, serving(up, max_upstream_calls=20) as proxy:
        answer = await proxy.ask("mcts-m", mcts_simulations=8)
        assert answer.status == 400
        assert "20" in answer.error["message"]
        assert "max-upstream-calls" in answer.error["message"]
        assert (await proxy.ask("bon-m", n=4)).status == 400
        assert up.calls == []


async def test_body_over_the_limit() -> None:
    async with ScriptedUpstream() as up, serving(up, max_body_mb=0.001) as proxy:
        answer = await proxy.ask(question="x" * 2000)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")

        async def pieces() -> Any:
            for _ in range(10):
                yield b"x" * 1000

        async with proxy.http.post(proxy.url + "/v1/chat/completions", data=pieces()) as response:
            assert response.status == 413
        assert up.calls == []


async def test_paths_and_methods() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        assert (await proxy.get("/v1/nothing")).status == 404
        assert (await proxy.get("/v1/nothing")).error["type"] == "not_found_error"
        wrong = await proxy.get("/v1/chat/completions")
        assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
        assert (await proxy.post({}, path="/v1/models")).status == 405
        assert (await proxy.get("/v1/models/zzz")).status == 404
        assert (await proxy.get("/v1/approaches/zzz")).status == 404
        assert (await proxy.get("/v1/runs/zzz")).status == 404


async def test_errors_carry_the_request_id() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.post({"messages": []}, headers={"X-Request-Id": "mine-1"})
        assert answer.headers["X-Request-Id"] == "mine-1"
        assert json.dumps(answer.json)


async def test_a_streaming_request_fails_as_plainly() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        answer = await proxy.ask("bon-m", stream=True, best_of_n=0)
        assert (answer.status, answer.error["param"]) == (400, "best_of_n")
