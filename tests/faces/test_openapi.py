"""The OpenAPI description is valid, complete, and true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from optillm.plugins import builtin_registry
from tests.fakes import Reply, ScriptedUpstream, refusal
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio


async def described(proxy: Proxy) -> dict[str, Any]:
    answer = await proxy.get("/openapi.json")
    assert answer.status == 200
    out: dict[str, Any] = answer.json
    return out


def check(spec: dict[str, Any], name: str, value: Any) -> None:
    """The value is what the description says of this component."""
    whole = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
    Draft202012Validator(whole).validate(value)


async def test_it_is_valid_and_has_every_parameter_of_every_approach() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        spec = await described(proxy)
    validate(spec)
    properties = spec["components"]["schemas"]["ChatRequest"]["properties"]
    for approach in builtin_registry():
        for param in approach.params:
            described_as = properties[param.request_name]
            assert f"{param.slug}: {param.rule.help}" in described_as["description"]
            schema = param.schema()
            del schema["description"]
            assert any(schema.items() <= s.items() for s in described_as.get("anyOf", [described_as])) or (
                schema.items() <= described_as.items()
            )


async def test_every_path_is_there() -> None:
    async with ScriptedUpstream(models=("m",)) as up, serving(up) as proxy:
        spec = await described(proxy)
        run = (await proxy.ask("m")).info["run_id"]
        names = {"/v1/models/{id}": "m", "/v1/approaches/{slug}": "bon", "/v1/runs/{id}": run}
        for path, operations in spec["paths"].items():
            if "get" in operations:
                concrete = path.partition("{")[0] + names.get(path, "")
                assert (await proxy.get(concrete)).status == 200, path
        assert set(proxy.app._gets) <= set(spec["paths"])


async def test_requests_and_answers_are_as_described() -> None:
    request = {
        "model": "re2|bon-m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        "best_of_n": 2,
        "optillm_budget": {"max_calls": 9},
    }
    reply = Reply("Score: 5", reasoning="hm")
    async with ScriptedUpstream(reply, models=("m",)) as up, serving(up) as proxy:
        spec = await described(proxy)
        check(spec, "ChatRequest", request)
        check(spec, "ChatCompletion", (await proxy.post(request)).json)
        check(spec, "ChatCompletion", (await proxy.ask("m")).json)
        check(spec, "ModelList", (await proxy.get("/v1/models")).json)
        for model in ("m", "re2|bon-m"):
            events = await proxy.events(model, stream_options={"include_usage": True})
            for event in events[:-1]:
                check(spec, "ChatCompletionChunk", json.loads(event))
        check(spec, "Error", (await proxy.ask("m", n=0)).json)
        up.script = refusal(404, "no")
        check(spec, "Error", (await proxy.ask("m")).json)


async def test_what_is_refused_is_not_in_the_description() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        spec = await described(proxy)
        schema = {"$ref": "#/components/schemas/ChatRequest", "components": spec["components"]}
        validator = Draft202012Validator(schema)
        good = {"messages": [{"role": "user", "content": "x"}]}
        assert validator.is_valid(good)
        wrong: list[dict[str, Any]] = [
            {"n": 0},
            {"temperature": 3},
            {"best_of_n": 65},
            {"messages": []},
            {"stream": "yes"},
        ]
        for bad in wrong:
            assert not validator.is_valid({**good, **bad}), bad


async def test_it_needs_the_key_like_everything_else() -> None:
    async with ScriptedUpstream() as up, serving(up, optillm_api_key="k") as proxy:
        assert (await proxy.get("/openapi.json")).status == 401
        assert (await proxy.get("/openapi.json", Authorization="Bearer k")).status == 200
