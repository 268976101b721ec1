"""The only way from a technique to a model."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from functools import cached_property
from typing import Any, Literal, TypeVar

from optillm.core.frozen import Frozen
from optillm.core.reply import Answer, Reply, parse_completion
from optillm.core.run import Later, Route, Run, Sink
from optillm.core.state import State
from optillm.core.streaming import Assembler, StreamView
from optillm.core.task import LIMIT_FIELDS, Messages, Options, Task
from optillm.core.tools import Sandbox
from optillm.core.trace import DEPTH, CallRecord, NoteRecord
from optillm.core.upstream import Call
from optillm.core.usage import Usage, read_usage
from optillm.protocol.errors import (
    BudgetExceeded,
    NotConfigured,
    OptiError,
    SandboxUnavailable,
    UpstreamEmpty,
    UpstreamError,
    UpstreamTimeout,
)

T = TypeVar("T")
_ONE_CHOICE = re.compile(r"(?:only|more than) one (?:\w+ )?(?:choice|completion|candidate|response|sample)")
Cap = Literal["helper", "intermediate"]


class LLM:
    """A technique's model: one per run and choice.

    Args:
        run: the request it belongs to.
        options: the client's fields, for answer-producing calls.
        unit: the approach that uses it, for the trace.
        choice: the index of the client's choice that it works for.
        pipeline: its number among what the request runs side by side; each draws samples of its own.
        live: whether its answers may stream to the client.
    """

    def __init__(
        self,
        run: Run,
        options: Options,
        *,
        unit: str = "",
        choice: int = 0,
        pipeline: int = 0,
        live: bool = True,
    ) -> None:
        self.run = run
        self.options = options
        self.unit = unit
        self.choice = choice
        self.pipeline = pipeline
        self.live = live and run.sink is not None
        self.best: Reply | None = None
        """The answer if the run had to end now."""
        self.shown = False
        """Whether the client has seen part of an answer."""
        self.spent = Usage()
        """What the calls made through this object cost."""
        self.delivered: Reply | None = None
        """The client's choice, for work that is done after it was delivered."""
        self.told: dict[str, Any] = {}
        """Facts for the response's ``optillm`` object, of an approach that hands on a task."""
        self._draft = False

    @cached_property
    def rng(self) -> random.Random:
        """The technique's random numbers."""
        return self.run.rng(f"{self.unit}/{self.pipeline}")

    @cached_property
    def nonce(self) -> str:
        """The run's own random mark around text that is data, not instructions."""
        return f"{self.run.rng('nonce').getrandbits(48):012x}"

    @property
    def sandbox(self) -> Sandbox:
        """Where a technique runs code.

        Raises:
            SandboxUnavailable: the operator switched it off.
        """
        if self.run.tools.sandbox is None:
            raise SandboxUnavailable("this technique runs code, and this server has no sandbox (--sandbox)")
        return self.run.tools.sandbox

    @property
    def state(self) -> State:
        """What the run's tenant has stored.

        Raises:
            NotConfigured: the operator switched the store off.
        """
        if self.run.tools.states is None:
            raise NotConfigured(
                "this technique remembers things, and this server has no store (pip install 'optillm[store]')"
            )
        return self.run.tools.states.of(self.run.tenant)

    async def ask(
        self,
        stage: str,
        messages: Messages,
        *,
        cap: Cap = "helper",
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        fields: Mapping[str, Any] | None = None,
        offset: int | None = None,
        tag: str | None = None,
    ) -> Reply:
        """One helper call: a judge, a plan, a critique. Carries none of the client's options.

        Args:
            stage: what the call is for, in the trace.
            messages: the prompt.
            cap: which of the server's token limits it has.
            model: another model than the run's.
            temperature: of sampling; None sends none.
            max_tokens: its own limit, in place of the one of ``cap``.
            fields: further body fields.
            offset: of calls that are samples of one prompt, which one this is: then it carries the
                client's seed, if there is one, shifted by so much.
            tag: tells it from others of its stage, in the trace.

        Raises:
            OptiError: the upstream failed, or the budget ended.
        """
        body = {**self._helper_body(cap, temperature, max_tokens), **(fields or {})}
        if offset is not None and self._seed is not None:
            body["seed"] = self._seed + offset
        replies = await self._complete(stage, messages, body, self.run.resolve(model or self.run.model), tag)
        if not replies:
            raise UpstreamEmpty(f"the upstream returned no choice ({stage})")
        return replies[0]

    async def try_ask(self, stage: str, messages: Messages, **options: Any) -> Reply | None:
        """A helper call that the technique can do without: None when it fails.

        Raises:
            UpstreamError: the upstream refused the call for good (a 4xx but 408 and 429).
        """
        return await self.attempt(self.ask(stage, messages, **options))

    async def asks(
        self,
        stage: str,
        messages: Messages,
        k: int,
        *,
        cap: Cap = "helper",
        model: str | None = None,
        temperature: float | None = None,
        tag: str | None = None,
    ) -> list[Reply]:
        """K independent samples of one helper prompt, in index order; see :meth:`sample`.

        None of them is ever taken for the run's answer. Of the client's options they carry the seed
        alone.

        Raises:
            OptiError: no sample could be had.
        """
        body = self._helper_body(cap, temperature)
        if self._seed is not None:
            body["seed"] = self._seed
        route = self.run.resolve(model or self.run.model)
        return await self._samples(stage, messages, k, body, route, 0, tag, None)

    async def reward(self, stage: str, messages: Messages, *, tag: str | None = None) -> float:
        """What the server's reward model gives the end of a conversation, on its own scale.

        Raises:
            NotConfigured: the server has none.
            OptiError: it failed, or the budget ended.
        """
        model = self.run.tools.reward
        if model is None:
            raise NotConfigured("this server has no reward model (--reward-url)")
        said = [m.raw for m in messages]
        record: CallRecord | None = None
        try:
            async with self.run.slots:
                with self.run.budget.call():
                    record = self._begin(stage, {"messages": said}, model.name, tag)
                    record.score = await model.score(said)
                    return record.score
        except BaseException as error:
            if record is not None:
                record.error = str(error) or type(error).__name__
            raise
        finally:
            if record is not None:
                self._end(record)

    async def embed(self, stage: str, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of texts by the server's embedding model: one call, however many texts.

        Raises:
            NotConfigured: the server has none.
            OptiError: it failed, or the budget ended.
        """
        model = self.run.tools.embedder
        if model is None:
            raise NotConfigured("this server has no embedding model (--embedding-url)")
        record: CallRecord | None = None
        try:
            async with self.run.slots:
                with self.run.budget.call():
                    record = self._begin(stage, {"input": tuple(texts)}, model.name, None)
                    return await model.embed(texts)
        except BaseException as error:
            if record is not None:
                record.error = str(error) or type(error).__name__
            raise
        finally:
            if record is not None:
                self._end(record)

    async def window(self) -> int | None:
        """The tokens of the model's context window, if its upstream tells; asks it at most once a minute."""
        return None if self.run.window is None else await self.run.window(self.run.model)

    @property
    def calls_allowed(self) -> int | None:
        """Calls that the server still lets this run make, whatever the client's own budget says."""
        most = self.run.budget.limits.server_calls
        return None if most is None else most - self.run.budget.calls

    def accepts(self, name: str, model: str | None = None) -> bool:
        """Whether a body field reaches the model, as far as is known: it has not refused it yet."""
        route = self.run.resolve(model or self.run.model)
        return name in self.run.learned.adapt(route, {name: None})

    async def attempt(self, call: Awaitable[T]) -> T | None:
        """The result, or None if the upstream failed or the budget ended; refusals are raised."""
        try:
            return await call
        except OptiError as error:
            if not degradable(error):
                raise
            return None

    async def sample(
        self,
        stage: str,
        messages: Messages,
        k: int,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        fields: Mapping[str, Any] | None = None,
        model: str | None = None,
        offset: int = 0,
        tag: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """K independent samples of one prompt, in index order (1.3).

        They carry the client's options; ``temperature``, ``max_tokens`` and ``fields`` of the body,
        where given, take their place; ``defaults`` are fields for clients that do not give them.
        ``offset`` shifts the seeds of the fan-out. Samples that failed are left out; so the list may be
        shorter than k, but it is never empty.

        Raises:
            OptiError: no sample could be had.
        """
        body = {**self._answer_body(temperature, override=True, defaults=defaults), **(fields or {})}
        if max_tokens is not None:
            limit = next((name for name in LIMIT_FIELDS if name in body), "max_tokens")
            body[limit] = max_tokens
        route = self.run.resolve(model or self.run.model)
        replies = await self._samples(stage, messages, k, body, route, offset, tag, None)
        for reply in replies:
            self._offer(reply)
        return replies

    async def answer(
        self,
        stage: str,
        messages: Messages,
        *,
        temperature: float | None = None,
        model: str | None = None,
    ) -> Reply:
        """One answer-producing call whose reply is meant to be returned; streams to the client.

        ``temperature`` is the default for clients that give none.
        """
        return (await self.answers(stage, messages, 1, temperature=temperature, model=model))[0]

    async def answers(
        self,
        stage: str,
        messages: Messages,
        k: int,
        *,
        temperature: float | None = None,
        model: str | None = None,
        view: Callable[[], StreamView] = StreamView,
        defaults: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """K answer-producing samples, each the client's next choice; see :meth:`answer`.

        ``view`` makes what turns a choice's deltas into what the client sees, one per choice; ``defaults``
        are as for :meth:`sample`.
        """
        body = self._answer_body(temperature, override=False, defaults=defaults)
        route = self.run.resolve(model or self.run.model)
        shown = view if self.live else None
        replies = await self._samples(stage, messages, k, body, route, 0, None, shown)
        for reply in replies:
            self._offer(reply)
        return replies

    async def try_answer(self, stage: str, messages: Messages, **options: Any) -> Reply | None:
        """The final call of a technique that has an answer already: None when it fails.

        Raises:
            OptiError: the upstream refused the call for good, or the client has seen part of the answer.
            BudgetExceeded: the budget ended; what was kept is the answer.
        """
        try:
            return await self.answer(stage, messages, **options)
        except BudgetExceeded:
            raise
        except OptiError as error:
            if self.shown or not degradable(error):
                raise
            return None

    async def gather(self, *calls: Awaitable[T]) -> list[T]:
        """Run calls concurrently; results in index order.

        The first failure cancels the rest and is raised.
        """
        start = DEPTH.get()
        depths = [start] * len(calls)

        async def one(i: int, call: Awaitable[T]) -> T:
            try:
                return await call
            finally:
                depths[i] = DEPTH.get()

        tasks: list[asyncio.Task[T]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(i, call)) for i, call in enumerate(calls)]
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            for call in calls:
                # A call that was cancelled before it began has to be closed by hand.
                if asyncio.iscoroutine(call):
                    call.close()
        DEPTH.set(max(depths, default=start))
        return [task.result() for task in tasks]

    async def survivors(self, *calls: Awaitable[T]) -> list[T | None]:
        """Run calls concurrently; results in index order, None for those that failed.

        Raises:
            OptiError: an upstream's refusal, or, when all failed, the first one's error.
        """

        async def one(call: Awaitable[T]) -> T | OptiError:
            try:
                return await call
            except OptiError as error:
                if not degradable(error):
                    raise
                return error

        results = await self.gather(*(one(call) for call in calls))
        if results and all(isinstance(r, OptiError) for r in results):
            raise next(r for r in results if isinstance(r, OptiError))
        return [None if isinstance(r, OptiError) else r for r in results]

    def reserving(self, calls: int = 1) -> AbstractContextManager[None]:
        """Hold back the budget's last calls for the answer: inside, helper calls that need one fail."""
        return self.run.budget.reserving(calls)

    def keep(self, reply: Reply, *, draft: bool = False) -> None:
        """Say which reply is the answer if the run must end now.

        A draft, such as a plan, is better than nothing: it never takes an answer's place, and the first
        usable answer takes its.
        """
        if draft and self.best is not None and not self._draft:
            return
        self.best, self._draft = reply, draft

    def afterwards(self, work: Callable[[LLM], Awaitable[None]], *, name: str, max_calls: int) -> str:
        """Leave work until the answer has been delivered: nobody waits for it, and nobody sees it fail.

        It is done if the run ends with an answer, one such work of a tenant at a time, in a run of its
        own: with its own trace, usage and budget, kept like every run. What it costs is not part of the
        client's usage.

        Args:
            work: what to do, given a model of that run.
            name: what it is, a word: the run is called ``<id of this run>.<name>``.
            max_calls: the most upstream calls it may make, at least 1.

        Returns:
            The id of the run in which it will be done.
        """
        same = sum(later.name == name for later in self.run.later)
        run_id = f"{self.run.id}.{name}" + (f".{same + 1}" if same else "")

        async def begun(run: Run, delivered: tuple[Reply, ...]) -> None:
            llm = LLM(run, self.options, unit=self.unit, choice=self.choice, live=False)
            # Of a plan that reduces several answers to one, the one.
            llm.delivered = delivered[min(self.choice, len(delivered) - 1)]
            await work(llm)

        self.run.later.append(Later(run_id, name, self.unit, max_calls, begun))
        return run_id

    async def note(self, name: str, **data: Any) -> None:
        """Record scores, votes, a tree or a choice in the trace."""
        self._observe(self.run.trace.note(name, self.unit, data))
        await self._progress(name + ": " + ", ".join(f"{k} {_brief(v)}" for k, v in data.items()))

    async def forward(self, task: Task) -> Answer:
        """Send the request on as it is, and hand the upstream's answer back as it is.

        A streaming client gets the upstream's own events.
        """
        route = self.run.resolve(self.run.model)
        body: dict[str, Any] = {"model": route.model, "messages": [m.raw for m in task.messages]}
        body.update(self.options.fields)
        if self.options.n != 1 or self.options.n_given:
            body["n"] = self.options.n
        call = Call(body, self.run.id, self.run.bearer)
        record: CallRecord | None = None
        sink = self.run.sink if self.live else None
        assembler = Assembler(None, 0, StreamView) if sink else None
        try:
            with self.run.budget.call():
                record = self._begin("none", body, route.upstream.name, None)
                if sink and assembler:
                    return await self._forward_stream(call, route, record, sink, assembler)
                raw = await route.upstream.complete(call)
            completion = parse_completion(raw)
            replies = tuple(completion.replies())
            self._spend(record, replies, read_usage(completion.usage, route.price, replies))
        except BudgetExceeded as error:
            if record is not None:
                record.error = error.message
            if sink is None or assembler is None or not assembler.begun:
                raise
            await self._close_forwarded(sink, assembler)
            return Answer(tuple(assembler.cut()), raw=b"")
        except BaseException as error:
            if record is not None:
                record.error = str(error) or type(error).__name__
            raise
        finally:
            if record is not None:
                self._end(record)
        return Answer(replies, raw=raw)

    async def _forward_stream(
        self, call: Call, route: Route, record: CallRecord, sink: Sink, assembler: Assembler
    ) -> Answer:
        try:
            async with aclosing(route.upstream.stream(call)) as payloads:
                async for payload in payloads:
                    before = assembler.finished
                    await assembler.feed(payload)
                    # Usage may follow the event that ends the last choice.
                    await sink.raw(payload, before < self.options.n <= assembler.finished)
        finally:
            replies = tuple(assembler.replies())
            self._spend(record, replies, read_usage(assembler.usage, route.price, replies))
        return Answer(replies, raw=b"")

    async def _close_forwarded(self, sink: Sink, assembler: Assembler) -> None:
        """End a stream that the budget has cut, as the upstream would have at a token limit."""
        if assembler.finished < self.options.n:
            await sink.raw(assembler.closing(), True)
        if (self.options.fields.get("stream_options") or {}).get("include_usage"):
            await sink.raw(assembler.closing(self.run.budget.usage.to_dict()), False)

    # -- how a call is made ------------------------------------------------------------------

    def _helper_body(
        self, cap: Cap, temperature: float | None, max_tokens: int | None = None
    ) -> dict[str, Any]:
        caps = self.run.caps
        limit = caps.intermediate_max_tokens if cap == "intermediate" else caps.helper_max_tokens
        body: dict[str, Any] = {self.options.limit_field or "max_tokens": max_tokens or limit}
        if temperature is not None:
            body["temperature"] = temperature
        return body

    def _answer_body(
        self,
        temperature: float | None,
        *,
        override: bool,
        defaults: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        defaults = defaults or {}
        wanted = {**defaults, **self.options.fields}
        fields = {k: v for k, v in wanted.items() if k not in LIMIT_FIELDS}
        name = self.options.limit_field
        if name:
            fields[name] = self.options.fields[name]
        elif limit := defaults.get("max_tokens", self.run.caps.default_max_tokens):
            fields["max_tokens"] = limit
        if temperature is not None and (override or self.options.temperature is None):
            fields["temperature"] = temperature
        if self._seed is not None:
            fields["seed"] = self._seed
        return fields

    @property
    def _seed(self) -> int | None:
        """The client's seed; pipelines of one request must not draw the same samples."""
        seed = self.options.seed
        return None if seed is None else seed + 1000 * self.pipeline

    async def _samples(
        self,
        stage: str,
        messages: Messages,
        k: int,
        body: Mapping[str, Any],
        route: Route,
        offset: int,
        tag: str | None,
        view: Callable[[], StreamView] | None,
    ) -> list[Reply]:
        replies: list[Reply] = []
        mode = "fanout" if k == 1 else self.run.learned.n_mode(route)
        if mode != "fanout":
            try:
                native = {**_shifted(body, offset), "n": k}
                replies = await self._complete(stage, messages, native, route, tag, view)
            except UpstreamError as error:
                if mode == "native" or error.upstream_status not in (400, 422) or not _concerns_n(error):
                    raise
            if replies and (len(replies) >= k or mode == "native" or self.run.budget.ended):
                return replies[:k]
            self.run.learned.learn_fanout(route)
        first = len(replies)

        async def one(i: int) -> Reply | OptiError | None:
            try:
                single = _shifted(body, offset + i)
                got = await self._complete(stage, messages, single, route, tag, view, i)
                return got[0] if got else None
            except OptiError as error:
                if not degradable(error):
                    raise
                return error

        results = await self.gather(*(one(i) for i in range(first, k)))
        replies += [r for r in results if isinstance(r, Reply)]
        if not any(r.usable for r in replies):
            for result in results:
                if isinstance(result, OptiError):
                    raise result
        if not replies:
            raise UpstreamEmpty(f"the upstream returned no choice ({stage})")
        return replies

    async def _complete(
        self,
        stage: str,
        messages: Messages,
        fields: Mapping[str, Any],
        route: Route,
        tag: str | None = None,
        view: Callable[[], StreamView] | None = None,
        index: int = 0,
    ) -> list[Reply]:
        """One POST, and another whenever the model refuses a field that can go."""
        body = {"model": route.model, "messages": [m.raw for m in messages], **fields}
        if view:
            body["stream_options"] = {"include_usage": True}
        while True:
            # It ends: what has been learned is not sent again.
            sent = self.run.learned.adapt(route, body)
            try:
                return await self._post(stage, sent, route, tag, view, index)
            except UpstreamError as error:
                refused = error.upstream_status == 400
                if not refused or not self.run.learned.learn_refusal(route, sent, error_text(error)):
                    raise

    async def _post(
        self,
        stage: str,
        body: Mapping[str, Any],
        route: Route,
        tag: str | None,
        view: Callable[[], StreamView] | None,
        index: int,
    ) -> list[Reply]:
        # A call that the budget refuses was never made: it has no record.
        record: CallRecord | None = None
        assembler = Assembler(self.run.sink, self.choice + index, view) if view else None
        try:
            async with self.run.slots:
                with self.run.budget.call():
                    record = self._begin(stage, body, route.upstream.name, tag)
                    replies, usage, fingerprint = await self._sent(body, route, assembler)
            self._spend(record, tuple(replies), read_usage(usage, route.price, replies))
        except BudgetExceeded as error:
            # What its client has seen of an answer is the answer, cut where the budget ended.
            replies, fingerprint = assembler.cut() if assembler else [], None
            if record is None or assembler is None or not any(r.usable for r in replies):
                raise
            record.error = error.message
            self._spend(record, tuple(replies), read_usage(assembler.usage, route.price, replies))
            self.best = assembler.partial or self.best
        except BaseException as error:
            if record is not None:
                record.error = str(error) or type(error).__name__
            raise
        finally:
            if record is not None:
                self._end(record)
        self.run.system_fingerprint = self.run.system_fingerprint or fingerprint
        await self._progress(f"{stage}: {_brief([r.visible or r.finish_reason for r in replies])}")
        return replies

    async def _sent(
        self, body: Mapping[str, Any], route: Route, assembler: Assembler | None
    ) -> tuple[list[Reply], dict[str, Any] | None, str | None]:
        call = Call(body, self.run.id, self.run.bearer)
        if assembler is not None:
            await self._stream(call, route, assembler)
            return assembler.replies(), assembler.usage, assembler.system_fingerprint
        completion = parse_completion(await route.upstream.complete(call))
        return completion.replies(), completion.usage, completion.system_fingerprint

    async def _stream(self, call: Call, route: Route, assembler: Assembler) -> None:
        try:
            async with aclosing(route.upstream.stream(call)) as payloads:
                async for payload in payloads:
                    await assembler.feed(payload)
            await assembler.close()
        finally:
            self.shown = self.shown or assembler.partial is not None

    def _begin(self, stage: str, body: Mapping[str, Any], upstream: str, tag: str | None) -> CallRecord:
        record = CallRecord(
            stage,
            self.unit,
            upstream,
            Frozen(body),
            self.run.trace.clock(),
            DEPTH.get() + 1,
            tag,
        )
        self.run.trace.records.append(record)
        return record

    def _end(self, record: CallRecord) -> None:
        record.ended = self.run.trace.clock()
        DEPTH.set(record.depth)
        self._observe(record)

    def _spend(self, record: CallRecord, replies: tuple[Reply, ...], usage: Usage) -> None:
        record.replies, record.usage = replies, usage
        self.spent += usage
        self.run.budget.spend(usage)

    def _observe(self, record: CallRecord | NoteRecord) -> None:
        for observer in self.run.observers:
            observer(record)

    async def _progress(self, line: str) -> None:
        if self.run.sink is not None:
            await self.run.sink.progress(line)

    def _offer(self, reply: Reply) -> None:
        better = self.best is None or self._draft or (self.best.truncated and not reply.truncated)
        if reply.usable and better:
            self.keep(reply)


def degradable(error: OptiError) -> bool:
    """Whether a technique may go on without the call: not after an upstream's refusal (1.7)."""
    if isinstance(error, UpstreamError):
        return error.status in (408, 429, 502)
    return isinstance(error, BudgetExceeded | UpstreamTimeout | UpstreamEmpty)


def error_text(error: UpstreamError) -> str:
    """What the upstream said."""
    inner = (error.body or {}).get("error")
    if isinstance(inner, Mapping):
        return f"{inner.get('message', '')} {inner.get('param') or ''}"
    return f"{error.message} {inner or ''}"


def _concerns_n(error: UpstreamError) -> bool:
    inner = (error.body or {}).get("error")
    if isinstance(inner, Mapping) and inner.get("param") == "n":
        return True
    words = error_text(error).replace("'", " ").replace('"', " ").replace("`", " ").lower()
    named = any(token.strip(".,:;()[]=") == "n" for token in words.split())
    return named or _ONE_CHOICE.search(words) is not None


def _shifted(body: Mapping[str, Any], offset: int) -> Mapping[str, Any]:
    seed = body.get("seed")
    return {**body, "seed": seed + offset} if offset and isinstance(seed, int) else body


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _brief(value: Any) -> str:
    if isinstance(value, str):
        line = " ".join(value.split())
        return line if len(line) <= 60 else line[:57] + "..."
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_brief(v)}" for k, v in list(value.items())[:8]) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_brief(v) for v in value[:8]) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
