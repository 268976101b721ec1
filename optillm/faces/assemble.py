"""The parts of a process, made from its settings and taken down in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from wreq import Client

from optillm.approaches.routing.router import named
from optillm.core.registry import Registry
from optillm.core.routing.model import ModelFile, ModelFileError
from optillm.core.run import Caps
from optillm.core.state import States
from optillm.core.tools import Tools
from optillm.core.upstream import Upstream
from optillm.faces.afterwards import Afterwards, Keep
from optillm.faces.service import Service
from optillm.sandbox.choose import open_sandbox
from optillm.settings import Settings, UpstreamSettings
from optillm.upstreams.azure import AzureUpstream
from optillm.upstreams.capabilities import Capabilities
from optillm.upstreams.embedding import HTTPEmbedder, LlamaCppEmbedder, local_embedder
from optillm.upstreams.http import ClientOptions, make_client
from optillm.upstreams.litellm import LiteLLMUpstream
from optillm.upstreams.llamacpp import embedded
from optillm.upstreams.openai_http import HTTPOptions, OpenAIUpstream
from optillm.upstreams.reward import HTTPRewardModel
from optillm.upstreams.router import Named, Router

log = logging.getLogger("optillm")


@asynccontextmanager
async def assembled(
    s: Settings, registry: Registry, states: States | None = None, *, keep: Keep | None = None
) -> AsyncIterator[tuple[Service, Router]]:
    """What all requests of a process share, and its upstreams; closed at the end.

    Args:
        s: what the process is told to do.
        registry: the approaches.
        states: what techniques remember; closed by whoever opened it.
        keep: where the runs of what is done after answers are kept; nowhere if None.

    Raises:
        OptiError: an upstream cannot be used; says what to install or set.
    """
    async with AsyncExitStack() as stack:
        client = make_client(
            ClientOptions(s.connect_timeout, s.request_timeout, s.ssl_verify, s.ssl_cert_path, s.proxied)
        )
        stack.callback(client.close)
        concurrency = min(s.upstream_concurrency, s.batch_size) if s.batch_mode else s.upstream_concurrency
        options = HTTPOptions(
            # A run's deadline is the same, and began before its calls.
            total_timeout=None,
            retries=s.retries,
            concurrency=concurrency,
        )
        router = Router([Named(upstream_of(u, client, options), u.models) for u in s.upstreams], s.prices)
        stack.push_async_callback(router.aclose)
        # Nothing is started before the first technique that runs code.
        sandbox = open_sandbox(s.sandbox)
        if sandbox is not None:
            stack.push_async_callback(sandbox.aclose)
        reward = None
        if s.reward_url:
            reward = HTTPRewardModel(s.reward_url, client, key=s.reward_key, model=s.reward_model)
        embedder: HTTPEmbedder | LlamaCppEmbedder | None = None
        if s.embedding_url:
            embedder = HTTPEmbedder(s.embedding_url, client, key=s.embedding_key, model=s.embedding_model)
        elif s.embedding_model:
            embedder = local_embedder(s.embedding_model)
            stack.push_async_callback(embedder.aclose)
        # Ends before what it uses: the first to be closed.
        afterwards = Afterwards(keep)
        stack.push_async_callback(partial(afterwards.drain, s.shutdown_timeout))
        service = Service(
            registry=registry,
            models=router,
            learned=Capabilities(s.n_mode),
            caps=Caps(
                s.default_max_tokens, s.helper_max_tokens, s.intermediate_max_tokens, s.max_concurrency
            ),
            deadline=s.request_timeout,
            max_calls=s.max_upstream_calls,
            approach=s.approach,
            model=s.model,
            n=s.n,
            params=s.params,
            progress=s.stream_progress,
            tools=Tools(sandbox, reward, embedder, states),
            afterwards=afterwards,
            routing=_routing(s),
        )
        yield service, router


def _routing(s: Settings) -> ModelFile:
    """The router's model. One that cannot be used does not stop the server, but is an error in its log."""
    file = ModelFile(s.router_model)
    model = file.loaded
    if isinstance(model, ModelFileError):
        log.error("%s; the router's requests get the default approach", model)
        return file
    for name in s.params.get("router", {}).get("approaches", ()):
        if not any(named(name, approach) for approach in model.approaches):
            log.error("router_approaches: the model knows nothing of '%s'", name)
    return file


def upstream_of(u: UpstreamSettings, client: Client, options: HTTPOptions) -> Upstream:
    """The upstream that settings describe.

    Raises:
        OptiError: its library is not installed, or its model cannot be had.
    """
    if u.kind == "openai":
        return OpenAIUpstream(u.name, u.base_url, u.key, client, options)
    if u.kind == "azure":
        return AzureUpstream(u.name, u.base_url, u.key, client, options, api_version=u.api_version)
    if u.kind == "litellm":
        return LiteLLMUpstream(u.name, options)
    return embedded(u.model_path)
