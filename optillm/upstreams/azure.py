"""Azure OpenAI: deployments as models, a key or a managed identity."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from wreq import Client

from optillm.protocol.errors import MissingExtra, UpstreamError
from optillm.upstreams.openai_http import HTTPOptions, OpenAIUpstream

SCOPE = "https://cognitiveservices.azure.com/.default"


class AzureUpstream(OpenAIUpstream):
    """An Azure OpenAI resource.

    Args:
        base_url: the resource's endpoint.
        key: its key; None takes tokens of the machine's managed identity.
        api_version: as Azure asks for.
        credential: what gives tokens when there is no key; the machine's managed identity if None.

    Raises:
        MissingExtra: there is no key, and azure-identity is not installed.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        client: Client,
        options: HTTPOptions | None = None,
        *,
        api_version: str,
        credential: Any = None,
    ) -> None:
        super().__init__(name, base_url.rstrip("/") + "/openai", key, client, options)
        self._api_version = api_version
        if self._key is None:
            try:
                from azure.core.exceptions import AzureError
                from azure.identity import DefaultAzureCredential
            except ImportError:
                raise MissingExtra("azure", "Azure without a key (managed identity)") from None
            self._credential = credential or DefaultAzureCredential()
            self._no_token: type[Exception] = AzureError

    def url(self, model: str) -> str:
        """Chat completions of a deployment."""
        deployment = quote(model, safe="")
        return f"{self.base_url}/deployments/{deployment}/chat/completions?api-version={self._api_version}"

    async def headers(self, bearer: str | None) -> dict[str, str]:
        """Azure's own key header, or a bearer token of the managed identity.

        A client's own token is not for this resource, and is not sent.
        """
        if self._key:
            return {"Content-Type": "application/json", "api-key": self._key}
        # The credential caches tokens and renews them in time; it blocks while it asks for one.
        try:
            token = await asyncio.to_thread(self._credential.get_token, SCOPE)
        except self._no_token as error:
            raise UpstreamError(f"upstream '{self.name}': no token of a managed identity: {error}") from error
        return {"Content-Type": "application/json", "Authorization": f"Bearer {token.token}"}

    async def aclose(self) -> None:
        """Close the credential; the client belongs to the process."""
        if self._key is None and hasattr(self._credential, "close"):
            await asyncio.to_thread(self._credential.close)

    @property
    def models_url(self) -> str:
        """Where the resource lists its models."""
        return f"{self.base_url}/models?api-version={self._api_version}"
