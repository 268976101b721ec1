"""Azure OpenAI: deployments as models, a key or a managed identity."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import aiohttp

from optillm.protocol.errors import MissingExtra
from optillm.upstreams.openai_http import HTTPOptions, OpenAIUpstream

SCOPE = "https://cognitiveservices.azure.com/.default"


class AzureUpstream(OpenAIUpstream):
    """An Azure OpenAI resource.

    Args:
        base_url: the resource's endpoint.
        key: its key; None takes tokens of the machine's managed identity.
        api_version: as Azure asks for.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        session: aiohttp.ClientSession,
        options: HTTPOptions | None = None,
        *,
        api_version: str,
        credential: Any = None,
    ) -> None:
        super().__init__(name, base_url.rstrip("/") + "/openai", key, session, options)
        self._api_version = api_version
        self._credential = credential
        if key is None and credential is None:
            try:
                from azure.identity import DefaultAzureCredential
            except ImportError:
                raise MissingExtra("azure", "Azure without a key (managed identity)") from None
            self._credential = DefaultAzureCredential()

    def url(self, model: str) -> str:
        """Chat completions of a deployment."""
        deployment = quote(model, safe="")
        return f"{self.base_url}/deployments/{deployment}/chat/completions?api-version={self._api_version}"

    async def headers(self, bearer: str | None) -> dict[str, str]:
        """Azure's own key header, or a bearer token of the managed identity."""
        if self._key:
            return {"Content-Type": "application/json", "api-key": self._key}
        # The credential caches tokens and renews them in time; it blocks while it asks for one.
        token = await asyncio.to_thread(self._credential.get_token, SCOPE)
        return {"Content-Type": "application/json", "Authorization": f"Bearer {token.token}"}

    @property
    def models_url(self) -> str:
        """Where the resource lists its models."""
        return f"{self.base_url}/models?api-version={self._api_version}"
