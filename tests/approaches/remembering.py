"""Requests of several tenants to a service that remembers, for tests of techniques."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from optillm.core.frozen import to_json
from optillm.core.tools import Embedder, Tools
from optillm.faces.respond import about, completion
from optillm.faces.service import Service, new_run_id
from optillm.plugins import builtin_registry
from optillm.protocol.chat import parse_request
from optillm.upstreams.capabilities import Capabilities
from optillm.upstreams.http import ClientOptions, make_client
from optillm.upstreams.openai_http import HTTPOptions, OpenAIUpstream
from optillm.upstreams.router import Named, Router
from tests.fakes import ScriptedUpstream
from tests.memory_state import MemoryStates
from tests.serving import Answer


class Place:
    """A service in front of an upstream; everybody who asks is a tenant."""

    def __init__(self, service: Service, states: MemoryStates) -> None:
        self.service, self.states = service, states
        self.time = 1_000_000.0

    async def ask(
        self, messages: str | Sequence[Mapping[str, Any]], *, by: str = "t", **fields: Any
    ) -> Answer:
        """The answer to a request, as HTTP would give it."""
        chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        raw, request = parse_request(to_json({"model": "m", "messages": chat, **fields}))
        prepared = await self.service.prepare(raw, request)
        run = self.service.start(prepared, run_id=new_run_id(), tenant=by)
        run.now = lambda: self.time
        outcome = await self.service.run(prepared, run)
        body = completion(prepared, run, outcome, about(prepared, run, outcome))
        return Answer(200, {}, msgspec.json.decode(body))


@asynccontextmanager
async def remembering(
    up: ScriptedUpstream, *, embedder: Embedder | None = None, max_calls: int = 256, n_mode: str = "auto"
) -> AsyncIterator[Place]:
    """A service with a memory of its own."""
    states = MemoryStates()
    client = make_client(ClientOptions())
    upstream = OpenAIUpstream("up", up.base_url, None, client, HTTPOptions(retries=0))
    service = Service(
        registry=builtin_registry(),
        models=Router([Named(upstream)]),
        learned=Capabilities(n_mode),
        max_calls=max_calls,
        tools=Tools(embedder=embedder, states=states),
    )
    try:
        yield Place(service, states)
    finally:
        client.close()
