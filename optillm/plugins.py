"""Where approaches come from: the package, installed entry points, and files of the old kind."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import inspect
import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import optillm.approaches
from optillm.core.frozen import freeze, thaw, to_json
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams
from optillm.core.registry import Approach, Registry, approaches_in
from optillm.core.reply import Answer, Reply, parse_completion
from optillm.core.task import Message, Options, Task
from optillm.protocol.errors import UpstreamEmpty

ENTRY_POINT = "optillm.approaches"

log = logging.getLogger("optillm")


def builtin_registry() -> Registry:
    """The package's own approaches and those of installed packages (entry point group
    ``optillm.approaches``, each naming an ``Approach``).
    """
    return load_registry()


def load_registry(plugins_dir: str = "", *, allow_override: bool = False) -> Registry:
    """All approaches.

    Args:
        plugins_dir: a folder with old plugins, ``*.py`` and ``optillm/plugins/*.py``; empty for none.
        allow_override: a plugin may take the name of a built-in approach.
    """
    built_in = approaches_in(optillm.approaches)
    extra = _installed()
    if plugins_dir:
        extra += _from_folder(Path(plugins_dir).expanduser())
    taken = {a.slug for a in built_in}
    overrides: dict[str, Approach] = {}
    for item in extra:
        if item.slug in taken and not allow_override:
            log.error("plugin '%s' has the name of a built-in approach (--allow-override)", item.slug)
        else:
            overrides[item.slug] = item
    return Registry(built_in, overrides.values())


def _installed() -> list[Approach]:
    found: list[Approach] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT):
        try:
            item = entry.load()
        except Exception:
            log.exception("entry point %s cannot be loaded", entry.value)
            continue
        if isinstance(item, Approach):
            found.append(item)
        else:
            log.error("entry point %s is not an Approach", entry.value)
    return found


def _from_folder(folder: Path) -> list[Approach]:
    found: list[Approach] = []
    for path in sorted([*folder.glob("*.py"), *(folder / "optillm" / "plugins").glob("*.py")]):
        if path.name.startswith("_"):
            continue
        try:
            module = _import(path)
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
            line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
            log.error("plugin %s, line %s: %s: %s", path, line, type(error).__name__, error)
            continue
        declared = [item for item in vars(module).values() if isinstance(item, Approach)]
        if declared:
            found += declared
        elif isinstance(getattr(module, "SLUG", None), str) and callable(getattr(module, "run", None)):
            found.append(_adapted(module, path))
        else:
            log.error("plugin %s has neither an Approach nor SLUG and run", path)
    return found


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"optillm_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Params(ApproachParams):
    """Old plugins read the request's fields themselves."""


def _adapted(module: ModuleType, path: Path) -> Approach:
    async def run(task: Task, llm: LLM, p: Params) -> Answer:
        return await _run_old(module.run, task, llm)

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


async def _run_old(function: Callable[..., Any], task: Task, llm: LLM) -> Answer:
    """Run ``run(system_prompt, initial_query, client, model, …)`` in a thread of its own.

    Cancelling the run cancels the client's call in flight; its next one fails.
    """
    loop = asyncio.get_running_loop()
    client = _Client(llm, loop)
    arguments: list[Any] = [task.system, _query(task), client, llm.run.model]
    named: dict[str, Any] = {}
    accepted = inspect.signature(function).parameters
    if "request_config" in accepted:
        named["request_config"] = {**thaw(llm.options.fields), "n": llm.options.n}
    if "messages" in accepted:
        named["messages"] = [thaw(m.raw) for m in task.messages]

    def work() -> Any:
        result = function(*arguments, **named)
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    done: asyncio.Future[Any] = loop.create_future()

    def thread() -> None:
        try:
            result, error = work(), None
        except BaseException as caught:
            result, error = None, caught
        try:
            loop.call_soon_threadsafe(_settle, done, result, error)
        except RuntimeError:
            log.warning("a plugin ended after the server's loop")

    threading.Thread(target=thread, daemon=True, name=f"plugin-{llm.unit}").start()
    try:
        return _answer(await done)
    finally:
        client.close()


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    elif isinstance(error, Exception):
        done.set_exception(error)
    else:
        done.set_exception(RuntimeError(repr(error)))


def _query(task: Task) -> str:
    """The conversation as old plugins expect it: one turn as it is, several with labels."""
    turns = [m for m in task.turns if m.role in ("user", "assistant")]
    if len(turns) == 1:
        return turns[0].text
    return "\n".join(f"{m.role.capitalize()}: {m.text}" for m in turns)


def _answer(result: Any) -> Answer:
    value = result[0] if isinstance(result, tuple) else result
    if isinstance(value, Mapping):
        return Answer(tuple(parse_completion(to_json(value)).replies()))
    texts = value if isinstance(value, list) else [value]
    replies = tuple(Reply.of(str(t)) for t in texts if t)
    if not replies:
        raise UpstreamEmpty("the plugin returned no answer")
    return Answer(replies)


class _Client:
    """What an old plugin calls: ``client.chat.completions.create``, bound to one run."""

    def __init__(self, llm: LLM, loop: asyncio.AbstractEventLoop) -> None:
        self._llm, self._loop = llm, loop
        self._calls: set[Future[Any]] = set()
        self._closed = False
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def close(self) -> None:
        """The run has ended: nothing of it goes on."""
        self._closed = True
        for call in tuple(self._calls):
            call.cancel()

    def _create(self, *, model: str, messages: list[Any], **fields: Any) -> Any:
        if self._closed:
            raise RuntimeError("the request has ended")
        call = asyncio.run_coroutine_threadsafe(self._send(model, messages, fields), self._loop)
        self._calls.add(call)
        try:
            return _view(call.result())
        finally:
            self._calls.discard(call)

    async def _send(self, model: str, messages: list[Any], fields: dict[str, Any]) -> Any:
        fields.pop("stream", None)
        extra = fields.pop("extra_body", None) or {}
        fields.update(extra)
        n = fields.pop("n", None) or 1
        options = Options(freeze(fields))
        llm = LLM(self._llm.run, options, unit=self._llm.unit, live=False)
        sent = tuple(Message(freeze(m)) for m in messages)
        replies = await llm.sample("plugin", sent, n, model=model)
        self._llm.best = self._llm.best or llm.best
        usage = llm.run.trace.calls[-1].usage.to_dict()
        return {
            "id": llm.run.id,
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [
                {
                    "index": i,
                    "message": thaw(r.message),
                    "finish_reason": r.finish_reason,
                    "logprobs": thaw(r.logprobs),
                }
                for i, r in enumerate(replies)
            ],
            "usage": usage,
        }


class _View(SimpleNamespace):
    """A JSON object with its members as attributes, as the OpenAI SDK shows it."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The plain object."""
        return {k: _plain(v) for k, v in vars(self).items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _view(value: Any) -> Any:
    if isinstance(value, dict):
        return _View(**{k: _view(v) for k, v in value.items()})
    return [_view(v) for v in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, _View):
        return value.model_dump()
    return [_plain(v) for v in value] if isinstance(value, list) else value
