"""What a run needs of an upstream: the one interface all of them offer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

import msgspec


class Call(msgspec.Struct, frozen=True):
    """One chat-completions request, as it is to be sent.

    Args:
        body: the whole OpenAI request body; ``model`` is the upstream's own name for it.
            ``stream`` is set by the method that sends it.
        run_id: whose call it is; the scheduler shares capacity by run.
        bearer: the client's own token when it is to be passed on, else None.
    """

    body: Mapping[str, Any]
    run_id: str
    bearer: str | None = None

    def __repr__(self) -> str:
        """Without the token."""
        return f"Call({self.body!r}, {self.run_id!r})"


class Upstream(Protocol):
    """A place that answers chat-completion requests."""

    name: str

    async def complete(self, call: Call) -> bytes:
        """Send the call without streaming; return the JSON body of the chat completion.

        Raises:
            UpstreamError: it refused, broke, or sent something that is not JSON.
            UpstreamTimeout: it did not answer in time.
        """
        ...

    def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Send the call with streaming; yield the JSON payload of each SSE data event as it arrives.

        The closing ``[DONE]`` is not yielded. A stream that ends early raises UpstreamError.
        Closing the generator closes the connection, and waits for nothing.
        """
        ...

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """The upstream's model objects: ``[{"id": …, "object": "model", …}]``."""
        ...

    async def aclose(self) -> None:
        """Close connections and free memory."""
        ...
