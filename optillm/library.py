"""OptiLLM without a server: one call, one isolated run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from optillm.core.execute import Outcome
from optillm.core.frozen import to_json
from optillm.core.registry import Registry
from optillm.core.run import Run
from optillm.core.tools import Tools
from optillm.core.trace import CallRecord, NoteRecord, Trace
from optillm.core.upstream import Upstream
from optillm.faces.body import read_request
from optillm.faces.respond import about, completion
from optillm.faces.service import Prepared, Service, new_run_id
from optillm.plugins import builtin_registry
from optillm.protocol.chat import ChatRequest
from optillm.protocol.errors import InvalidRequest
from optillm.sandbox.choose import open_sandbox
from optillm.store.places import installed
from optillm.store.states import StoredStates
from optillm.store.store import Store
from optillm.upstreams.capabilities import Capabilities
from optillm.upstreams.client import ClientUpstream
from optillm.upstreams.router import Named, Router

ENDS = "what techniques remember ends with this call: solve(…, store='sqlite:///PATH') keeps it"

Observer = Callable[[CallRecord | NoteRecord], None]


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` returns.

    Args:
        text: the first choice's content.
        texts: all choices' contents.
        response: the chat completion, as the server would send it.
        trace: everything the run did.
    """

    text: str
    texts: tuple[str, ...]
    response: Mapping[str, Any]
    trace: Trace


async def solve(
    messages: str | Iterable[Mapping[str, Any]],
    *,
    approach: str = "none",
    model: str = "gpt-4o-mini",
    upstream: Any,
    key: str | None = None,
    registry: Registry | None = None,
    observer: Observer | None = None,
    tools: Tools | None = None,
    store: str | bool | None = None,
    **fields: Any,
) -> Solution:
    """Answer a conversation with a technique.

    Args:
        messages: a question, or OpenAI chat messages.
        approach: a slug or a composition: ``mcts``, ``re2&moa``, ``(moa|mcts)>bon``.
        model: the upstream's model.
        upstream: a base URL (up to ``/v1``), an ``AsyncOpenAI`` client, or an ``Upstream``.
        key: API key for a base URL.
        registry: the approaches; the built-in and installed ones if None.
        observer: called with each record of the trace: a call when it has ended, a note at once.
        tools: services for techniques that run code or remember things; if None, they are made when one
            is needed and ended with the call.
        store: where techniques remember things: ``sqlite:///PATH`` or ``postgresql://…``; if None, in
            memory, until the call ends. Not together with ``tools``, which name their own. A bool is the
            field of a chat-completion request.
        fields: parameters of the approach by short or request name (``simulations=4``), and any
            field of a chat-completion request (``temperature``, ``n``, ``optillm_budget``…).

    Raises:
        OptiError: a bad field or parameter, or the upstream failed.
        SettingsError: the store cannot be opened.
        TypeError: ``upstream`` is none, or both ``tools`` and ``store`` are given.
    """
    _check_upstream(upstream)
    if isinstance(store, bool):
        fields["store"] = store
        store = None
    if tools is not None and store is not None:
        raise TypeError("give tools or store: tools name their own states")
    approaches = registry or builtin_registry()
    async with AsyncExitStack() as stack:
        router = Router([Named(await _upstream(upstream, key, stack))])
        service = Service(
            registry=approaches,
            models=_Exact(router),
            learned=Capabilities(),
            tools=_tools(stack, store) if tools is None else tools,
        )
        # Also when the caller is cancelled: nothing may use what is closed then.
        stack.push_async_callback(service.afterwards.aclose)
        solution = await solve_with(
            service, messages, optillm_approach=approach, model=model, observer=observer, **fields
        )
        await service.afterwards.drain()
        return solution


def _tools(stack: AsyncExitStack, url: str | None) -> Tools:
    store = Store(url or "")
    stack.push_async_callback(store.aclose)
    sandbox = open_sandbox()
    if sandbox is not None:
        stack.push_async_callback(sandbox.aclose)
    return Tools(sandbox, states=StoredStates(store, "" if url else ENDS) if installed() else None)


def solve_sync(messages: str | Iterable[Mapping[str, Any]], **arguments: Any) -> Solution:
    """:func:`solve` for code without an event loop.

    Raises:
        RuntimeError: there is a running event loop; await :func:`solve` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(solve(messages, **arguments))
    raise RuntimeError("solve_sync cannot run inside an event loop: use 'await optillm.solve(…)'")


async def solve_with(
    service: Service,
    messages: str | Iterable[Mapping[str, Any]],
    *,
    observer: Observer | None = None,
    **fields: Any,
) -> Solution:
    """Answer a conversation as a service would; ``fields`` are as for :func:`solve`.

    What an approach does after its answer, such as learning, waits in the service's queue:
    ``await service.afterwards.drain()`` waits for it, before what it uses is closed.
    """
    chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    short = {p.name for item in service.registry for p in item.params}
    params = {k: v for k, v in fields.items() if k in short and k not in ChatRequest.__struct_fields__}
    body = {"messages": chat, **{k: v for k, v in fields.items() if k not in params}}
    if params:
        body["optillm"] = {"params": params}
    try:
        data = to_json(body)
    except TypeError as error:
        raise InvalidRequest(f"not a field of a request: {error}") from None
    raw, request = await read_request(data)
    prepared = await service.prepare(raw, request)
    run = service.start(prepared, run_id=new_run_id(), tenant="library")
    if observer is not None:
        run.observers.append(observer)
    outcome = await service.run(prepared, run)
    solution = _solution(prepared, run, outcome)
    service.delivered(run, outcome)
    return solution


class _Exact:
    """The model is meant as it is written: no prefix is looked for in it."""

    def __init__(self, router: Router) -> None:
        self.resolve = router.resolve
        self.window = router.window
        self.learn = router.learn

    async def lists(self, model: str) -> bool:
        return True


def _check_upstream(upstream: Any) -> None:
    client = hasattr(upstream, "chat")
    if not (isinstance(upstream, str) or client or hasattr(upstream, "complete")):
        raise TypeError(
            f"upstream must be a base URL, an AsyncOpenAI client or an Upstream, not {upstream!r}"
        )
    # The SDK's synchronous clients have the same shape, but would block the loop.
    if client and any(c.__name__ == "SyncAPIClient" for c in type(upstream).__mro__):
        raise TypeError("upstream must be an AsyncOpenAI client, not a synchronous one")


async def _upstream(upstream: Any, key: str | None, stack: AsyncExitStack) -> Upstream:
    if isinstance(upstream, str):
        # The HTTP client takes as long to import as all the rest, and not every caller needs it.
        from optillm.upstreams.http import ClientOptions, make_client
        from optillm.upstreams.openai_http import OpenAIUpstream

        client = make_client(ClientOptions())
        stack.callback(client.close)
        return OpenAIUpstream("upstream", upstream, key, client)
    if hasattr(upstream, "chat"):
        return ClientUpstream(upstream)
    found: Upstream = upstream
    return found


def _solution(prepared: Prepared, run: Run, outcome: Outcome) -> Solution:
    texts = tuple(reply.text for reply in outcome.replies)
    response = msgspec.json.decode(completion(prepared, run, outcome, about(prepared, run, outcome)))
    return Solution(texts[0], texts, response, run.trace)
