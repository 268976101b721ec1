"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from optillm.core.execute import Outcome
from optillm.core.run import Run
from optillm.core.scope import CancelScope
from optillm.faces.body import read_body, read_request
from optillm.faces.respond import PassedOn, about, completion, final_headers, record
from optillm.faces.service import Prepared, Service
from optillm.faces.stream import EventStream
from optillm.observe.conversations import ConversationLog, Entry
from optillm.protocol.errors import OptiError, internal_error
from optillm.store.runs import Kept, RunStore

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

WATCH_AFTER = 0.05
"""Seconds after which a run's client is watched; part of the 100 ms in which its calls must stop."""

log = logging.getLogger("optillm")


class Chat:
    """Serves chat completions.

    Args:
        service: what all requests share.
        runs: where runs are kept for looking at.
        active: the runs under way; each is in it while it runs.
        conversations: the conversation log, or None.
        max_body: bytes of the largest request.
    """

    def __init__(
        self,
        service: Service,
        runs: RunStore,
        active: set[Run],
        conversations: ConversationLog | None,
        *,
        max_body: int,
    ) -> None:
        self.service = service
        self.runs = runs
        self.active = active
        self.conversations = conversations
        self.max_body = max_body

    async def serve(
        self,
        given: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        *,
        request_id: str,
        run_id: str,
        tenant: str,
        bearer: str | None,
    ) -> None:
        """One request, from its body to its answer.

        Raises:
            OptiError: it failed before the response had begun.
        """
        body = await read_body(given, receive, self.max_body)
        raw, request = await read_request(body)
        prepared = await self.service.prepare(raw, request, body)
        extra = {"X-Request-Id": request_id}
        stream = EventStream(send, prepared, extra) if prepared.stream else None
        run = self.service.start(prepared, run_id=run_id, tenant=tenant, sink=stream, bearer=bearer)
        created = time.time()
        outcome, problem, info = None, None, None
        self.active.add(run)
        try:
            outcome = await self._run(prepared, run, stream, receive)
            if outcome is not None and stream is None:
                info = about(prepared, run, outcome)
                named = {**final_headers(prepared, run, info), **extra}
                await _send(send, completion(prepared, run, outcome, info), named)
            if outcome is None:
                problem = "the client went away"
            else:
                self.service.delivered(run, outcome)
        except OptiError as error:
            problem = error.message
            if stream is None or not stream.started:
                raise
            await stream.fail(error)
        except Exception as error:
            problem = str(error) or type(error).__name__
            if stream is None or not stream.started:
                raise
            # The outermost edge of a response that has begun: it may not just stop.
            log.exception("request %s failed", request_id)
            await stream.fail(internal_error(request_id))
        except BaseException as error:
            problem = str(error) or type(error).__name__
            raise
        finally:
            if stream is not None:
                stream.stop()
            self.active.discard(run)
            info = info or about(prepared, run, outcome)
            self._keep(prepared, run, outcome, info, problem, created, raw)

    async def _run(
        self, prepared: Prepared, run: Run, stream: EventStream | None, receive: Receive
    ) -> Outcome | None:
        """Run it while watching the client; None if the client went away before there was an answer."""
        outcome = None
        loop = asyncio.get_running_loop()
        with CancelScope(loop) as scope:
            watcher = _Watcher(receive, scope, loop)
            try:
                if stream is not None:
                    stream.run = run
                    stream.watch()
                outcome = await self.service.run(prepared, run)
                if stream is not None:
                    await stream.finish(outcome)
            finally:
                watcher.stop()
        return outcome

    def _keep(
        self,
        prepared: Prepared,
        run: Run,
        outcome: Outcome | None,
        info: Mapping[str, Any],
        problem: str | None,
        created: float,
        raw: Mapping[str, Any],
    ) -> None:
        made: Kept
        if outcome is not None and outcome.raw and problem is None and len(run.trace.records) == 1:
            made = PassedOn.of(run, outcome.raw, info, created)
        else:
            made = record(prepared, run, outcome, info, problem, created)
        self.runs.put(run.tenant, run.id, made)
        if self.conversations is not None:
            self.conversations.put(
                Entry(
                    created,
                    prepared.approach,
                    prepared.model,
                    raw,
                    run,
                    outcome,
                    problem,
                    info,
                )
            )


class _Watcher:
    """Cancels a run when its client goes away.

    It begins to look a moment after the start: answers that come at once do not pay for a task.
    """

    def __init__(self, receive: Receive, scope: CancelScope, loop: asyncio.AbstractEventLoop) -> None:
        self._receive, self._scope = receive, scope
        self._task: asyncio.Task[None] | None = None
        self._timer = loop.call_later(WATCH_AFTER, self._start)

    def stop(self) -> None:
        """Look no longer."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._scope.cancel()


async def _send(send: Send, body: bytes, headers: Mapping[str, str]) -> None:
    raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    await send({"type": "http.response.body", "body": body})
