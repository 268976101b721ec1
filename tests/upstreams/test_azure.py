"""Azure OpenAI: what settings choose it, its URL, its key, its managed identity."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from azure.core.exceptions import ClientAuthenticationError

from optillm.plugins import builtin_registry
from optillm.protocol.errors import UpstreamError
from optillm.settings import SettingsError, UpstreamSettings, load
from optillm.upstreams.azure import SCOPE, AzureUpstream
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
    async with ScriptedUpstream() as up, aiohttp.ClientSession() as session:
        azure = AzureUpstream("azure", up.url, None, session, api_version="v", credential=credential)
        await azure.complete(call(bearer="sk-of-the-client"))
        await azure.complete(call())
        assert [c.headers["Authorization"] for c in up.calls] == ["Bearer token-1", "Bearer token-2"]
        assert "api-key" not in up.calls[0].headers
        await azure.aclose()
    assert set(credential.scopes) == {SCOPE}
    assert credential.closed


async def test_no_identity_is_an_error_of_the_upstream() -> None:
    credential = Credential(ClientAuthenticationError("no managed identity endpoint found"))
    async with ScriptedUpstream() as up, aiohttp.ClientSession() as session:
        azure = AzureUpstream("azure", up.url, None, session, api_version="v", credential=credential)
        with pytest.raises(UpstreamError, match="no managed identity endpoint") as caught:
            await azure.complete(call())
        assert caught.value.status == 502
        assert up.calls == []


BASE = {"AZURE_API_BASE": "https://me.openai.azure.com", "AZURE_API_VERSION": "2024-10-21"}


def chosen(environ: dict[str, str], *argv: str) -> UpstreamSettings:
    return load(argv, environ, builtin_registry()).upstreams[0]


@pytest.mark.parametrize(
    ("environ", "argv", "expected"),
    [
        ({**BASE, "AZURE_OPENAI_API_KEY": "k"}, (), ("azure", BASE["AZURE_API_BASE"], "k")),
        (BASE, (), ("azure", BASE["AZURE_API_BASE"], None)),
        (
            {"AZURE_OPENAI_API_KEY": "k", "AZURE_API_VERSION": "v"},
            ("--base-url", "https://other"),
            ("azure", "https://other", "k"),
        ),
        # The first provider present wins.
        (
            {**BASE, "AZURE_OPENAI_API_KEY": "k", "OPENAI_API_KEY": "o"},
            (),
            ("openai", "https://api.openai.com/v1", "o"),
        ),
        (
            {**BASE, "OPENAI_API_KEY": "o", "CEREBRAS_API_KEY": "c"},
            (),
            ("openai", "https://api.cerebras.ai/v1", "c"),
        ),
        ({"AZURE_API_VERSION": "v"}, ("--base-url", "http://here/v1"), ("openai", "http://here/v1", None)),
        ({"OPENAI_API_KEY": "o"}, ("--base-url", "http://here/v1"), ("openai", "http://here/v1", "o")),
        ({"GROQ_API_KEY": "g"}, (), ("litellm", "", None)),
        ({}, (), ("llamacpp", "", None)),
        ({"OPTILLM_API_KEY": "mine"}, (), ("llamacpp", "", None)),
    ],
)
def test_what_the_variables_choose(environ: dict[str, str], argv: tuple[str, ...], expected: Any) -> None:
    upstream = chosen(environ, *argv)
    assert (upstream.kind, upstream.base_url, upstream.key) == expected


@pytest.mark.parametrize("missing", sorted(BASE))
def test_what_azure_lacks_is_said(missing: str) -> None:
    environ = {k: v for k, v in {**BASE, "AZURE_OPENAI_API_KEY": "k"}.items() if k != missing}
    with pytest.raises(SettingsError, match=f"Azure needs {missing}"):
        chosen(environ)


async def test_cerebras_speaks_the_same_protocol() -> None:
    """Its base URL and key from the environment; everything else as for any such server."""
    async with ScriptedUpstream("fast") as up:
        upstream = chosen({"CEREBRAS_API_KEY": "csk-key"}, "--base-url", up.base_url)
        assert upstream.name == "cerebras"
        async with serving(up, upstreams=(upstream,)) as proxy:
            assert (await proxy.ask("bon(n=1)-llama")).text == "fast"
        assert up.calls[0].headers["Authorization"] == "Bearer csk-key"
