"""Plugins of the old kind: ``SLUG`` and ``run(system_prompt, initial_query, client, model, …)``."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec

from optillm.core.frozen import freeze, thaw, to_json
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams
from optillm.core.registry import Approach
from optillm.core.reply import Answer, Reply, parse_completion
from optillm.core.task import Message, Options, Task
from optillm.core.trace import DEPTH
from optillm.protocol.errors import BudgetExceeded, OptiError, UpstreamEmpty, UpstreamError

log = logging.getLogger("optillm")

# Arguments of the SDK's create() that are about the transport, not the request.
_TRANSPORT = frozenset({"timeout", "extra_headers", "extra_query", "stream", "stream_options"})
_NOT_GIVEN = frozenset({"NotGiven", "Omit"})


class Params(ApproachParams):
    """Old plugins read the request's fields themselves."""


class PluginFailed(OptiError):
    """A plugin raised an exception of its own, or returned what cannot be an answer."""

    code = "plugin_failed"


def adapted(module: ModuleType, path: Path) -> Approach:
    """The approach that an old plugin's module is."""

    async def run(task: Task, llm: LLM, p: Params) -> Answer:
        return await _run(module.run, task, llm)

    return Approach(
        slug=module.SLUG,
        family="plugin",
        title=(inspect.getdoc(module) or f"Plugin {path.name}").splitlines()[0],
        paper="",
        calls="?",
        depth="?",
        run=run,
        params_class=Params,
    )


async def _run(function: Callable[..., Any], task: Task, llm: LLM) -> Answer:
    """Run the plugin in a thread of its own.

    When the run is cancelled so is the client's call in flight; the plugin's next one fails.

    Raises:
        OptiError: the budget ended, the upstream failed, or the plugin did (:class:`PluginFailed`).
    """
    client = BoundClient(llm, asyncio.get_running_loop())
    named: dict[str, Any] = {}
    accepted = inspect.signature(function).parameters
    if "request_config" in accepted:
        named["request_config"] = {**thaw(llm.options.fields), "n": llm.options.n}
    if "messages" in accepted:
        named["messages"] = [thaw(m.raw) for m in task.messages]

    def work() -> Any:
        result = function(task.system, query(task), client, llm.run.model, **named)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    try:
        return answer(await _in_thread(work, f"plugin-{llm.unit}"))
    except OptiError:
        raise
    except Exception as error:
        # An edge: a plugin may raise anything. What it raised because its budget ended is that end.
        if llm.run.budget.ended is not None:
            raise BudgetExceeded(llm.run.budget.ended) from error
        log.exception("plugin '%s' failed in run %s", llm.unit, llm.run.id)
        message = f"plugin '{llm.unit}' failed with {type(error).__name__}; the server's log tells more"
        raise PluginFailed(message) from error
    finally:
        client.close()
        DEPTH.set(client.depth)


async def _awaited(result: Any) -> Any:
    return await result


async def _in_thread(work: Callable[[], Any], name: str) -> Any:
    """The result of work in a daemon thread: a plugin that never ends does not hold up the server."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            # What is no Exception (SystemExit, the cancellation of a call) must not end the server.
            done.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def thread() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            log.warning("%s ended after the server's loop", name)

    threading.Thread(target=thread, daemon=True, name=name).start()
    return await done


def query(task: Task) -> str:
    """The conversation as old plugins expect it: one turn as it is, several with labels."""
    turns = [m for m in task.turns if m.role in ("user", "assistant")]
    if len(turns) == 1:
        return turns[0].text
    return "\n".join(f"{m.role.capitalize()}: {m.text}" for m in turns)


def answer(result: Any) -> Answer:
    """What a plugin returned: ``(text | list of texts | response, completion tokens)``, or without them.

    Raises:
        UpstreamEmpty: there is nothing in it.
        PluginFailed: it is no answer.
    """
    value = plain(result[0] if isinstance(result, tuple) and result else result)
    if isinstance(value, Mapping):
        try:
            replies = parse_completion(to_json(value)).replies()
        except (UpstreamError, TypeError) as error:
            raise PluginFailed(
                f"the plugin returned an object that is no chat completion ({error})"
            ) from None
    else:
        texts = value if isinstance(value, list) else [value]
        replies = [Reply.of(str(text)) for text in texts if text]
    if not replies:
        raise UpstreamEmpty("the plugin returned no answer")
    return Answer(tuple(replies))


class BoundClient:
    """What an old plugin calls: ``client.chat.completions.create``, bound to one run.

    Args:
        llm: the run's own; every call is counted, budgeted, traced and cancelled with it.
        loop: where the run lives; the client is called from other threads.
    """

    def __init__(self, llm: LLM, loop: asyncio.AbstractEventLoop) -> None:
        self._llm, self._loop = llm, loop
        self._calls: set[Future[Any]] = set()
        self._closed = False
        self.depth = DEPTH.get()
        """Calls on the longest chain so far; a call may have waited for all that ended before it began."""
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def close(self) -> None:
        """The run has ended: nothing of it goes on."""
        self._closed = True
        for call in tuple(self._calls):
            call.cancel()

    def _create(self, *, model: str, messages: list[Any], **fields: Any) -> Any:
        if self._closed:
            raise RuntimeError("the request has ended")
        fields.update(fields.pop("extra_body", None) or {})
        given = {
            k: v for k, v in fields.items() if k not in _TRANSPORT and type(v).__name__ not in _NOT_GIVEN
        }
        # A private copy: what the plugin does with its lists later is its own affair.
        sent = msgspec.json.decode(to_json({"messages": plain(messages), "fields": plain(given)}))
        work = self._send(model, sent["messages"], sent["fields"])
        call = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._calls.add(call)
        if self._closed:
            call.cancel()
        try:
            completion = call.result()
        finally:
            self._calls.discard(call)
        return iter([view(_chunk(completion))]) if fields.get("stream") is True else view(completion)

    async def _send(self, model: str, messages: list[Any], fields: dict[str, Any]) -> dict[str, Any]:
        """One call of the plugin; several upstream calls, if it wants several choices."""
        DEPTH.set(self.depth)
        n = fields.pop("n", None) or 1
        llm = LLM(self._llm.run, Options(freeze(fields)), unit=self._llm.unit, live=False)
        try:
            replies = await llm.sample("plugin", tuple(Message(freeze(m)) for m in messages), n, model=model)
        finally:
            self.depth = max(self.depth, DEPTH.get())
        self._llm.best = self._llm.best or llm.best
        return {
            "id": llm.run.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": i,
                    "message": {"role": "assistant", **thaw(reply.message)},
                    "finish_reason": reply.finish_reason,
                    "logprobs": thaw(reply.logprobs),
                }
                for i, reply in enumerate(replies)
            ],
            "usage": llm.spent.to_dict(),
        }


def _chunk(completion: dict[str, Any]) -> dict[str, Any]:
    """A whole completion as the only chunk of a stream."""
    choices = [{**c, "delta": c["message"]} for c in completion["choices"]]
    return {**completion, "object": "chat.completion.chunk", "choices": choices}


class View(SimpleNamespace):
    """A JSON object with its members as attributes, as the OpenAI SDK shows it; others are None."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The plain object; the SDK's ``exclude_none`` holds, its other options change nothing."""
        dumped = {k: plain(v) for k, v in vars(self).items()}
        return _without_none(dumped) if options.get("exclude_none") else dumped

    def model_dump_json(self, **options: Any) -> str:
        """The object as JSON."""
        return to_json(self.model_dump(**options)).decode()

    def to_dict(self, **options: Any) -> dict[str, Any]:
        """The same as :meth:`model_dump`."""
        return self.model_dump(**options)

    def get(self, name: str, default: Any = None) -> Any:
        """A member, as of a dict."""
        return vars(self).get(name, default)

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


def view(value: Any) -> Any:
    """A JSON value with objects as :class:`View`."""
    if isinstance(value, dict):
        return View(**{k: view(v) for k, v in value.items()})
    return [view(v) for v in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A JSON value without views or the SDK's own objects."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, View):
        return value.model_dump()
    # The SDK's objects leave out what was never set.
    return value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
