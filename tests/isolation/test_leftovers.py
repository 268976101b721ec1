"""What one run leaves behind in its process must not reach the next."""

from __future__ import annotations

import pytest

import optillm
from optillm.plugins import builtin_registry
from optillm.settings import load
from tests.fakes import Fault, ScriptedUpstream, Seen
from tests.serving import serving

anyio = pytest.mark.anyio

COMPLETION = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "test-model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
}


@anyio
async def test_an_upstreams_cookie_for_one_client_is_not_sent_for_the_next() -> None:
    def script(seen: Seen) -> Fault:
        return Fault(status=200, body=COMPLETION, headers={"Set-Cookie": "session=of-the-first; Path=/"})

    async with (
        ScriptedUpstream(script) as upstream,
        # By name: cookies of bare addresses are never kept.
        serving(upstream.base_url.replace("127.0.0.1", "localhost")) as proxy,
    ):
        for approach in ("none", "re2"):
            assert (await proxy.ask(optillm_approach=approach)).status == 200
            assert (await proxy.ask(optillm_approach=approach)).status == 200
    assert len(upstream.calls) == 4
    assert [seen.headers.get("Cookie") for seen in upstream.calls] == [None] * 4


@anyio
async def test_depth_begins_anew_with_each_run_of_one_task() -> None:
    async with ScriptedUpstream("ok") as upstream:
        for _ in range(2):
            solution = await optillm.solve("2+2?", model="test-model", upstream=upstream.base_url)
            assert (solution.trace.depth, solution.response["optillm"]["depth"]) == (1, 1)


def test_proxies_are_looked_up_only_where_the_environment_names_one() -> None:
    registry = builtin_registry()
    assert not load((), {"OPENAI_API_KEY": "k"}, registry).proxied
    assert not load((), {"OPENAI_API_KEY": "k", "HTTPS_PROXY": ""}, registry).proxied
    for name in ("HTTPS_PROXY", "https_proxy", "all_proxy"):
        assert load((), {"OPENAI_API_KEY": "k", name: "http://proxy:3128"}, registry).proxied
