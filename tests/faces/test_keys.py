"""Who may come in, whose runs they see, and where keys never appear."""

from __future__ import annotations

from typing import Any

import pytest

from optillm.settings import Key, UpstreamSettings, sha256
from tests.fakes import ScriptedUpstream, refusal
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

A, B = "key-of-tenant-a", "schlüssel-of-b"
KEYS = (Key("a", sha256(A)), Key("b", sha256(B)))
PATHS = ["/v1/models", "/v1/models/test-model", "/v1/approaches", "/v1/approaches/bon", "/v1/runs", "/v1/x"]


async def ask(proxy: Proxy, token: str | None = None, scheme: str = "Bearer", model: str = "m") -> Answer:
    headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
    return await proxy.post({"model": model, "messages": [{"role": "user", "content": "x"}]}, headers=headers)


def sent(up: ScriptedUpstream) -> list[str | None]:
    return [c.headers.get("Authorization") for c in up.calls]


@pytest.mark.parametrize("settings", [{"keys": KEYS}, {"optillm_api_key": A}], ids=["file", "flag"])
async def test_the_right_key_opens(settings: dict[str, Any]) -> None:
    async with ScriptedUpstream() as up, serving(up, **settings) as proxy:
        assert (await ask(proxy, A)).status == 200
        assert (await ask(proxy, A, "bearer")).status == 200
        # The server's own key goes on to the upstream, never the client's.
        assert sent(up) == ["Bearer upstream-key"] * 2


async def test_a_key_that_is_not_ascii() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        assert (await ask(proxy, B)).status == 200


@pytest.mark.parametrize(
    ("token", "scheme"),
    [(None, ""), ("", "Bearer"), ("wrong", "Bearer"), (A + "x", "Bearer"), (A[:-1], "Bearer"), (A, "Basic"),
     (sha256(A), "Bearer"), ("None", "Bearer")],
)  # fmt: skip
async def test_a_wrong_key_does_not(token: str | None, scheme: str) -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        answer = await ask(proxy, token, scheme)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (answer.error["type"], answer.error["code"]) == ("authentication_error", "invalid_api_key")
        assert up.calls == []
        assert token is None or len(token) < 8 or token not in str(answer.json)


async def test_everything_but_health_and_ready_needs_the_key() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        for path in PATHS:
            assert (await proxy.get(path)).status == 401, path
            assert (await proxy.get(path, Authorization=f"Bearer {A}")).status in (200, 404), path
        assert (await proxy.get("/health")).json == {"status": "ok"}
        assert (await proxy.get("/ready")).status == 200


async def test_tenants_see_only_their_own_runs() -> None:
    async with ScriptedUpstream() as up, serving(up, keys=KEYS) as proxy:
        run = (await ask(proxy, A)).info["run_id"]
        assert (await proxy.get(f"/v1/runs/{run}", Authorization=f"Bearer {A}")).status == 200
        assert (await proxy.get(f"/v1/runs/{run}", Authorization=f"Bearer {B}")).status == 404
        mine = await proxy.get("/v1/runs", Authorization=f"Bearer {A}")
        assert [r["id"] for r in mine.json["data"]] == [run]
        assert (await proxy.get("/v1/runs", Authorization=f"Bearer {B}")).json["data"] == []


@pytest.mark.parametrize(
    ("scope", "path"),
    [("chat", None), ("models", "/v1/models"), ("models", "/v1/approaches/bon"), ("runs", "/v1/runs")],
)
async def test_a_key_is_for_its_scopes(scope: str, path: str | None) -> None:
    others = tuple(s for s in ("chat", "models", "runs") if s != scope)
    keys = (Key("a", sha256(A), (scope,)), Key("b", sha256(B), others))
    async with ScriptedUpstream() as up, serving(up, keys=keys) as proxy:
        answers = [
            await (ask(proxy, k) if path is None else proxy.get(path, Authorization=f"Bearer {k}"))
            for k in (A, B)
        ]
        assert [a.status for a in answers] == [200, 403]
        assert answers[1].error["type"] == "permission_error"
        assert scope in answers[1].error["message"]


async def test_without_a_key_the_clients_token_goes_on_whatever_its_prefix() -> None:
    async with ScriptedUpstream() as up, serving(up) as proxy:
        await ask(proxy, "sk-mine")
        await ask(proxy, "gsk_mine", model="re2-m")
        await ask(proxy)
        assert sent(up) == ["Bearer sk-mine", "Bearer gsk_mine", "Bearer upstream-key"]


async def test_forwarding_can_be_switched_off() -> None:
    async with ScriptedUpstream() as up, serving(up, forward_bearer=False) as proxy:
        await ask(proxy, "sk-mine")
        assert sent(up) == ["Bearer upstream-key"]


async def test_with_keys_a_stranger_comes_in_only_with_a_token_that_goes_on() -> None:
    async with ScriptedUpstream() as up, serving(up, optillm_api_key=A, forward_bearer=True) as proxy:
        mine = (await ask(proxy, A)).info["run_id"]
        stranger = (await ask(proxy, "sk-strange-1")).info["run_id"]
        assert sent(up) == ["Bearer upstream-key", "Bearer sk-strange-1"]
        assert (await ask(proxy)).status == 401
        # He sees his own runs, and neither the server's nor another stranger's.
        for token, expected in (("sk-strange-1", [stranger]), ("sk-strange-2", []), (A, [mine])):
            listed = await proxy.get("/v1/runs", Authorization=f"Bearer {token}")
            assert [r["id"] for r in listed.json["data"]] == expected


async def test_keys_are_in_no_trace_or_error() -> None:
    """Even if the upstream repeats the key that it refuses."""
    said = refusal(401, "Incorrect API key provided: upstream-key.")
    async with ScriptedUpstream(said) as up, serving(up, keys=KEYS) as proxy:
        answer = await ask(proxy, A, model="bon-m")
        assert (answer.status, answer.error["message"]) == (
            401,
            "upstream refused its key: Incorrect API key provided: [redacted].",
        )
        assert "WWW-Authenticate" not in answer.headers
        listed = await proxy.get("/v1/runs", Authorization=f"Bearer {A}")
        run = await proxy.get(f"/v1/runs/{listed.json['data'][0]['id']}", Authorization=f"Bearer {A}")
        assert "[redacted]" in run.json["error"]
        assert not any(key in str(run.json) + str(listed.json) for key in (A, "upstream-key"))


async def test_a_clients_token_is_in_no_trace_or_error() -> None:
    said = refusal(401, "Incorrect API key provided: sk-of-client.")
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        answer = await ask(proxy, "sk-of-client")
        run = await proxy.get("/v1/runs")
        assert "sk-of-client" not in str(answer.json) + str(run.json)


async def test_a_dummy_token_does_not_garble_the_upstreams_words() -> None:
    async with ScriptedUpstream(refusal(400, "x is not allowed")) as up, serving(up) as proxy:
        assert (await ask(proxy, "x")).error["message"] == "x is not allowed"


async def test_routes_go_to_the_closest_pattern() -> None:
    async with ScriptedUpstream("first") as one, ScriptedUpstream("second") as two:
        upstreams = (
            UpstreamSettings("one", "openai", one.base_url, "key-one-1", models=("gpt-*", "qwen-max")),
            UpstreamSettings("two", "openai", two.base_url, "key-two-2", models=("gpt-4o*", "qwen-*")),
        )
        async with serving(one, upstreams=upstreams) as proxy:
            for model, text in (
                ("gpt-3", "first"), ("gpt-4o-mini", "second"), ("qwen-max", "first"),
                ("qwen-7b", "second"), ("other", "first"),
            ):  # fmt: skip
                assert (await ask(proxy, model=model)).text == text
        assert set(sent(two)) == {"Bearer key-two-2"}
