"""The server: an ASGI application, and everything that lives as long as its process."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import parse_qs

from optillm.core.frozen import to_json
from optillm.core.registry import Registry
from optillm.core.run import Run
from optillm.core.state import States
from optillm.faces.assemble import assembled
from optillm.faces.body import read_body
from optillm.faces.chat import Chat
from optillm.faces.openapi import openapi
from optillm.faces.remembered import is_remembered, remembered
from optillm.faces.service import new_run_id
from optillm.observe.conversations import ConversationLog
from optillm.protocol.errors import (
    Forbidden,
    NotFound,
    OptiError,
    Overloaded,
    Unauthorized,
    internal_error,
    only,
)
from optillm.settings import SCOPES, Key, Settings, sha256
from optillm.store.places import installed
from optillm.store.runs import MemoryRuns, RunStore, StoredRuns
from optillm.store.states import StoredStates
from optillm.store.store import Store
from optillm.upstreams.router import Router

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

log = logging.getLogger("optillm")

ENDS = "what techniques remember ends with this server: --store sqlite:///PATH keeps it"
"""Said the first time that something is remembered, if so it is."""

_OPEN = frozenset({"/health", "/ready"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class App:
    """One server process.

    Args:
        settings: frozen; what it is told to do.
        registry: the approaches.
        states: what techniques remember; if None, it is in the store that the settings name.

    Raises:
        SettingsError: the store cannot be opened.
    """

    def __init__(self, settings: Settings, registry: Registry, states: States | None = None) -> None:
        self.settings = settings
        self.registry = registry
        self.store = Store(settings.store)
        self.runs: RunStore = StoredRuns(self.store) if settings.store else MemoryRuns()
        self.stored = StoredStates(self.store, "" if settings.keeps_store else ENDS)
        self.states: States | None = states or (self.stored if installed() else None)
        self.active: set[Run] = set()
        self.draining = False
        self._stack = AsyncExitStack()
        self._starting = asyncio.Lock()
        self._chat: Chat | None = None
        self._router: Router | None = None
        self._keys = settings.keys
        if settings.optillm_api_key:
            self._keys = (*settings.keys, Key("default", sha256(settings.optillm_api_key)))
        self._gets: Mapping[str, Callable[[str, Scope], Awaitable[tuple[int, Any]]]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/v1/models": self._models,
            "/v1/approaches": self._approaches,
            "/v1/runs": self._runs,
            "/openapi.json": self._openapi,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def start(self) -> None:
        """Make the HTTP client, upstreams and logs; once, in the loop that serves."""
        async with self._starting:
            if self._chat is None:
                await self._start()

    async def stop(self) -> None:
        """Close everything."""
        await self._stack.aclose()

    def drain(self) -> None:
        """Take no new requests."""
        self.draining = True

    def end_runs(self) -> None:
        """End all runs now with what they have, and what is done after them."""
        for run in self.active:
            run.budget.stop("shutdown")
        if self._chat is not None:
            self._chat.service.afterwards.end()

    async def _start(self) -> None:
        s = self.settings
        self._stack.push_async_callback(self.store.aclose)
        self._stack.push_async_callback(self.runs.aclose)
        service, router = await self._stack.enter_async_context(
            assembled(s, self.registry, self.states, keep=self.runs.put)
        )
        conversations = None
        if s.log_conversations:
            conversations = ConversationLog(s.conversation_log_dir)
            conversations.start()
            self._stack.push_async_callback(conversations.aclose)
        self._router = router
        self._chat = Chat(
            service,
            self.runs,
            self.active,
            conversations,
            max_body=int(s.max_body_mb * (1 << 20)),
        )

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except OptiError as error:
                    await send({"type": "lifespan.startup.failed", "message": error.message})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"])
        asked_id = given.get(b"x-request-id", b"").decode("latin-1")
        run_id = new_run_id()
        request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else run_id.replace("chatcmpl", "req")
        try:
            await self._dispatch(scope, given, receive, send, request_id, run_id)
        except OptiError as error:
            await send_json(
                send, error.status, error.envelope(), {**error.headers(), "X-Request-Id": request_id}
            )
        except Exception:
            # The outermost edge: nothing of the fault is shown, its id is.
            log.exception("request %s failed", request_id)
            await send_json(send, 500, internal_error(request_id).envelope(), {"X-Request-Id": request_id})

    async def _dispatch(
        self,
        scope: Scope,
        given: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        request_id: str,
        run_id: str,
    ) -> None:
        path, method = scope["path"], scope["method"]
        if len(path) > 1:
            path = path.rstrip("/")
        if self._chat is None:
            await self.start()
        tenant, bearer = ("", None) if path in _OPEN else self._enter(given, _scope(path))
        if path in ("/v1/chat/completions", "/chat/completions"):
            only(method, "POST")
            if self.draining:
                raise Overloaded("the server is shutting down")
            assert self._chat is not None
            await self._chat.serve(
                given, receive, send, request_id=request_id, run_id=run_id, tenant=tenant, bearer=bearer
            )
            return
        if is_remembered(path):
            most = int(self.settings.max_body_mb * (1 << 20))
            query, state = scope.get("query_string", b""), self.stored.of(tenant)
            status, body = await remembered(
                method, path, query, lambda: read_body(given, receive, most), state
            )
        else:
            status, body = await self._get(path, method, scope, tenant)
        await send_json(send, status, body, {"X-Request-Id": request_id}, head=method == "HEAD")

    async def _get(self, path: str, method: str, scope: Scope, tenant: str) -> tuple[int, Any]:
        if path in self._gets:
            only(method, "GET", "HEAD")
            return await self._gets[path](tenant, scope)
        for root, one in (
            ("/v1/models/", self._model),
            ("/v1/approaches/", self._approach),
            ("/v1/runs/", self._run),
        ):
            if path.startswith(root):
                only(method, "GET", "HEAD")
                return await one(path.removeprefix(root), tenant)
        raise NotFound(f"there is nothing at {path}", code="unknown_path")

    def _enter(self, given: Mapping[bytes, bytes], needed: str) -> tuple[str, str | None]:
        """The tenant of a request, and the token to pass on.

        Raises:
            Unauthorized: no key, or a wrong one.
            Forbidden: the key is not for what is asked.
        """
        scheme, _, raw = given.get(b"authorization", b"").partition(b" ")
        raw = raw.strip() if scheme.lower() == b"bearer" else b""
        token = raw.decode("latin-1")
        if not self._keys:
            return "default", (token or None) if self.settings.forwards_bearer else None
        digest = sha256(raw)
        # Every key is compared, in constant time, whichever fits.
        owners = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if owners:
            if needed not in owners[0].scopes:
                raise Forbidden(f"this key is not for '{needed}' (scopes: {', '.join(owners[0].scopes)})")
            return owners[0].tenant, None
        if token and self.settings.forward_bearer:
            # A stranger who pays the upstream himself: a tenant of his own, which no key has.
            return f"bearer:{digest}", token
        raise Unauthorized(
            "this server needs its key as 'Authorization: Bearer …'"
            if not token
            else "wrong key for this server"
        )

    @property
    def _routes(self) -> Router:
        if self._router is None:
            raise Overloaded("the server is starting")
        return self._router

    async def _health(self, tenant: str, scope: Scope) -> tuple[int, Any]:
        return 200, {"status": "ok"}

    async def _ready(self, tenant: str, scope: Scope) -> tuple[int, Any]:
        if self.draining:
            return 503, {"status": "draining", "upstreams": {}}
        reasons = await self._routes.reasons_not_ready()
        ready = self._routes.ready
        return (200 if ready else 503), {"status": "ready" if ready else "not ready", "upstreams": reasons}

    async def _models(self, tenant: str, scope: Scope) -> tuple[int, Any]:
        models = [_model_object(m) for m in await self._routes.models()]
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if query.get("approaches", ["0"])[-1] in ("1", "true"):
            models += [
                {**m, "id": f"{a.slug}-{m['id']}", "owned_by": "optillm"}
                for a in self.registry
                if a.slug != "none"
                for m in models
            ]
        return 200, {"object": "list", "data": models}

    async def _model(self, name: str, tenant: str) -> tuple[int, Any]:
        for model in await self._routes.models():
            if model["id"] == name:
                return 200, _model_object(model)
        raise NotFound(f"there is no model '{name}'", param="model", code="model_not_found")

    async def _openapi(self, tenant: str, scope: Scope) -> tuple[int, Any]:
        return 200, openapi(self.registry)

    async def _approaches(self, tenant: str, scope: Scope) -> tuple[int, Any]:
        return 200, {"object": "list", "data": [a.describe() for a in self.registry]}

    async def _approach(self, slug: str, tenant: str) -> tuple[int, Any]:
        if slug not in self.registry:
            raise NotFound(f"there is no approach '{slug}'", code="unknown_approach")
        return 200, self.registry[slug].describe()

    async def _runs(self, tenant: str, scope: Scope) -> tuple[int, Any]:
        return 200, {"object": "list", "data": await self.runs.last(tenant)}

    async def _run(self, run_id: str, tenant: str) -> tuple[int, Any]:
        found = await self.runs.get(tenant, run_id)
        if found is None:
            raise NotFound(f"there is no run '{run_id}' (any more)", code="unknown_run")
        return 200, found


def _model_object(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model as the protocol has it, also from an upstream that names nothing but its id."""
    return {"id": model["id"], "object": "model", "created": 0, "owned_by": "upstream", **model}


def _scope(path: str) -> str:
    """What a key must be for."""
    chat, models, runs = SCOPES
    if path.startswith("/v1/runs") or is_remembered(path):
        return runs
    return models if path.startswith(("/v1/models", "/v1/approaches")) else chat


async def send_json(
    send: Send, status: int, body: Any, headers: Mapping[str, str], *, head: bool = False
) -> None:
    """A whole JSON response."""
    data = body if isinstance(body, bytes) else to_json(body)
    raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if head else data})
