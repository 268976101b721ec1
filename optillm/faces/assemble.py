"""The parts of a process, made from its settings and taken down in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from optillm.approaches.routing.router import named
from optillm.core.registry import Registry
from optillm.core.routing.model import ModelFile, ModelFileError
from optillm.core.run import Caps
from optillm.core.tools import Tools
from optillm.core.upstream import Upstream
from optillm.faces.service import Service
from optillm.sandbox.choose import open_sandbox
from optillm.settings import Settings, UpstreamSettings
from optillm.upstreams.azure import AzureUpstream
from optillm.upstreams.capabilities import Capabilities
from optillm.upstreams.litellm import LiteLLMUpstream
from optillm.upstreams.llamacpp import embedded
from optillm.upstreams.openai_http import HTTPOptions, OpenAIUpstream, make_session
from optillm.upstreams.reward import HTTPRewardModel
from optillm.upstreams.router import Named, Router, tls_context

log = logging.getLogger("optillm")


@asynccontextmanager
async def assembled(s: Settings, registry: Registry) -> AsyncIterator[tuple[Service, Router]]:
    """What all requests of a process share, and its upstreams; closed at the end.

    Raises:
        OptiError: an upstream cannot be used; says what to install or set.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            make_session(tls_context(s.ssl_verify, s.ssl_cert_path), proxied=s.proxied)
        )
        concurrency = min(s.upstream_concurrency, s.batch_size) if s.batch_mode else s.upstream_concurrency
        options = HTTPOptions(
            connect_timeout=s.connect_timeout,
            read_timeout=s.request_timeout,
            # A run's deadline is the same, and began before its calls.
            total_timeout=None,
            retries=s.retries,
            concurrency=concurrency,
        )
        router = Router([Named(upstream_of(u, session, options), u.models) for u in s.upstreams], s.prices)
        stack.push_async_callback(router.aclose)
        # Nothing is started before the first technique that runs code.
        sandbox = open_sandbox(s.sandbox)
        if sandbox is not None:
            stack.push_async_callback(sandbox.aclose)
        reward = None
        if s.reward_url:
            reward = HTTPRewardModel(s.reward_url, session, key=s.reward_key, model=s.reward_model)
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
            tools=Tools(sandbox, reward),
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


def upstream_of(u: UpstreamSettings, session: aiohttp.ClientSession, options: HTTPOptions) -> Upstream:
    """The upstream that settings describe.

    Raises:
        OptiError: its library is not installed, or its model cannot be had.
    """
    if u.kind == "openai":
        return OpenAIUpstream(u.name, u.base_url, u.key, session, options)
    if u.kind == "azure":
        return AzureUpstream(u.name, u.base_url, u.key, session, options, api_version=u.api_version)
    if u.kind == "litellm":
        return LiteLLMUpstream(u.name, options)
    return embedded(u.model_path)
