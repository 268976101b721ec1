"""Azure OpenAI: its URL, its key, its managed identity. And Cerebras."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError

from optillm.plugins import builtin_registry
from optillm.protocol.errors import UpstreamError
from optillm.settings import UpstreamSettings, load
from optillm.upstreams.azure import SCOPE, AzureUpstream
from optillm.upstreams.http import ClientOptions, make_client
from tests.fakes import ScriptedUpstream
from tests.serving import serving
from tests.upstreams.servers import call

pytestmark = pytest.mark.anyio


class Credential:
    """Stands in for a managed identity; nothing but a cloud's own machine has one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.scopes: list[str] = []
        self.closed = False

    def get_token(self, *scopes: str) -> Any:
        self.scopes += scopes
        if self.error:
            raise self.error
        return SimpleNamespace(token=f"token-{len(self.scopes)}", expires_on=0)

    def close(self) -> None:
        self.closed = True


async def test_by_key() -> None:
    async with ScriptedUpstream() as up:
        azure = UpstreamSettings("azure", "azure", up.url + "/", "azure-key", "2024-10-21")
        async with serving(up, upstreams=(azure,)) as proxy:
            body = {"model": "re2-my/deploy ment", "messages": [{"role": "user", "content": "x"}]}
            assert (await proxy.post(body, {"Authorization": "Bearer sk-of-the-client"})).text == "ok"
            models = (await proxy.get("/v1/models")).json["data"]
        [seen] = up.calls
        assert seen.path == "/openai/deployments/my%2Fdeploy%20ment/chat/completions?api-version=2024-10-21"
        assert seen.headers["api-key"] == "azure-key"
        assert "Authorization" not in seen.headers
        assert [m["id"] for m in models] == ["test-model"]


async def test_streaming() -> None:
    async with ScriptedUpstream("four") as up:
        azure = UpstreamSettings("azure", "azure", up.url, "azure-key", "v")
        async with serving(up, upstreams=(azure,)) as proxy:
            assert (await proxy.events("m"))[-1] == "[DONE]"


async def test_by_managed_identity() -> None:
    credential = Credential()
    async with ScriptedUpstream() as up:
        http = make_client(ClientOptions())
        azure = AzureUpstream("azure", up.url, None, http, api_version="v", credential=credential)
        await azure.complete(call(bearer="sk-of-the-client"))
        await azure.complete(call())
        assert [c.headers["Authorization"] for c in up.calls] == ["Bearer token-1", "Bearer token-2"]
        assert "api-key" not in up.calls[0].headers
        await azure.aclose()
    assert set(credential.scopes) == {SCOPE}
    assert credential.closed


async def test_no_identity_is_an_error_of_the_upstream() -> None:
    credential = Credential(ClientAuthenticationError("no managed identity endpoint found"))
    async with ScriptedUpstream() as up:
        http = make_client(ClientOptions())
        azure = AzureUpstream("azure", up.url, None, http, api_version="v", credential=credential)
        with pytest.raises(UpstreamError, match="no managed identity endpoint") as caught:
            await azure.complete(call())
        assert caught.value.status == 502
        assert up.calls == []


async def test_cerebras_speaks_the_same_protocol() -> None:
    """Its base URL and key from the environment; everything else as for any such server."""
    async with ScriptedUpstream("fast") as up:
        environ = {"CEREBRAS_API_KEY": "csk-key"}
        upstream = load(("--base-url", up.base_url), environ, builtin_registry()).upstreams[0]
        assert upstream.name == "cerebras"
        async with serving(up, upstreams=(upstream,)) as proxy:
            assert (await proxy.ask("bon(n=1)-llama")).text == "fast"
        assert up.calls[0].headers["Authorization"] == "Bearer csk-key"
