"""rlm: recursive language models. The long input is a variable that the model explores by code.

The input, however long, never enters a prompt. It is the variable ``context`` of a Python session in the
sandbox. The root model knows the question and how long the input is; it writes blocks of code that search,
cut and print, and sees what they print. ``llm_query(prompt)`` in the code asks a model about any text that
the code has built; ``llm_queries([...])`` asks many questions at once, which are answered side by side.
``FINAL(answer)`` or ``FINAL_VAR(name)``, in the reply or in the code, ends the run: so an answer can be as
long as a variable.

arXiv:2512.24601 (Zhang, Kraska, Khattab: Recursive Language Models), section 2. Beyond the paper: the
session is a sandbox that reaches nothing but this server; the conversation with the root model is kept
inside ``rlm_context_window`` (old rounds are condensed, then left out: the variables stay); the calls that
code may cause are limited by ``rlm_calls`` over all depths; many queries run concurrently. With ``rlm_depth``
over 1 the code may also call ``rlm_query(question, text)``, which is a run of the same kind on that text,
with a session of its own. At depth 1, as in the paper, sub-calls are plain calls.

Use it for inputs far beyond the window of the model: a million tokens with a window of 8,000 work, for
the model only sees what its code prints. For inputs that fit, a plain call is cheaper.

What is the input, and what the question: text before ``rlm_delimiter`` in the last user message is the input
and the rest the question; without it, the message's long parts are the input and its short ones the
question; of a single long text the beginning and the end are shown to the model as the question. Earlier
turns belong to the input.

Failures: code that fails, runs too long or dies is reported to the model, which goes on; the variables are
lost only if the process had to be ended. A query that failed raises RuntimeError in the code, and is None
among many. A reply with neither code nor an answer is asked for again once, and then is the answer. When
the rounds are used up, or a budget ends, the last call goes to an answer from what was found. An answer
stated beside code that failed does not count, but is kept, in case that nothing better comes.
"""

from __future__ import annotations

from typing import Any

from optillm.approaches.context.rlm_session import (
    BYTES_PER_TOKEN,
    FINAL,
    QUERIES,
    QUERY,
    RECURSE,
    Repl,
    Round,
    clip_bytes,
    conversation,
    files_of,
    size,
    told,
)
from optillm.approaches.context.rlm_texts import (
    NUDGE,
    SUB_ROLE,
    Limits,
    Material,
    Statement,
    divide,
    last_prompt,
    opening,
    statement_of,
    sub_prompt,
)
from optillm.core.answers import strip_think
from optillm.core.llm import LLM, Cap, degradable
from optillm.core.params import ApproachParams, field
from optillm.core.registry import Sigma, approach
from optillm.core.reply import Answer, Reply
from optillm.core.task import Task
from optillm.core.tools import CallRefused, Outcome
from optillm.protocol.errors import BudgetExceeded, InvalidRequest, OptiError

MOST_DOCUMENT = 60 << 20
"""Bytes of the input: they have to fit into the session's scratch folder."""
MOST_ANSWER = 1_000_000
"""Characters of an answer."""
WINDOW, SMALLEST = 8192, 4096
"""Tokens of the model's window when nobody tells; and with which there is room to explore."""


class Params(ApproachParams):
    """Parameters of ``rlm``."""

    rounds: int = field(20, "calls of the root model, each with code to run, at most", ge=1, le=50)
    calls: int = field(64, "calls that the code may cause, over all depths", ge=0, le=1024)
    depth: int = field(1, "levels of recursion; at 1 the code's calls are plain ones", ge=1, le=3)
    output_chars: int = field(6000, "characters of what code prints that the model sees", ge=200, le=200_000)
    context_window: int | None = field(
        None, "tokens that fit into the model; what the upstream tells, else 8192", ge=SMALLEST, le=10_000_000
    )
    timeout: float = field(30.0, "seconds that a block of code may run, waiting aside", ge=1, le=300)
    memory_mb: int = field(1024, "MiB that the session may use", ge=64, le=8192)
    sub_model: str = field("", "model of the calls that code makes; empty: the same")
    delimiter: str = field("<CONTEXT_END>", "stands between the input and the question")

    @property
    def needs(self) -> frozenset[str]:
        """Code is run."""
        return frozenset({"sandbox"})


def worst_calls(p: Params, sigma: Sigma) -> int:
    """All rounds, all calls of code, and the last answer."""
    return p.rounds + p.calls + 1


@approach(
    "rlm",
    family="context",
    title="Recursive language model: the input is a variable, explored by code",
    paper="arXiv:2512.24601",
    calls="R + s (R ≤ rounds root calls, s ≤ calls sub-calls), one more if no answer was stated",
    depth="R + the levels of sub-calls between them, one more if no answer was stated",
    worst=worst_calls,
)
async def rlm(task: Task, llm: LLM, p: Params) -> Answer:
    """Explore the input by code until an answer is stated; else answer from what was found."""
    material = divide(task, p.delimiter)
    if len(material.document) > MOST_DOCUMENT or size(material.document) > MOST_DOCUMENT:
        raise InvalidRequest(
            f"'rlm' takes inputs of at most {MOST_DOCUMENT >> 20} MiB",
            param="messages",
            code="input_too_long",
        )
    window = p.context_window or await llm.window() or WINDOW
    if window < SMALLEST:
        raise InvalidRequest(
            f"'rlm' needs a model with a window of {SMALLEST} tokens, and this one has {window}",
            param="rlm_context_window",
            code="window_too_small",
        )
    await llm.note("rlm.context", characters=len(material.document), question=len(material.question))
    explorer = _Explorer(llm, p, material, _Meter(p.calls), window, level=0)
    try:
        with llm.reserving():
            found = await explorer.explore()
    except BudgetExceeded:
        found = None
    reply = found or await explorer.last_answer(task)
    return Answer((reply,) if reply.usable else ())


class _Meter:
    """The calls that code may still cause."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, calls: int) -> None:
        if calls > self.left:
            raise CallRefused(f"{self.left} calls are left, not {calls}")
        self.left -= calls


def _limits(llm: LLM, tokens: int) -> tuple[Cap, int]:
    """Which limit replies have in a window of so many tokens, and the bytes that are left for a prompt."""
    caps = llm.run.caps
    wide = tokens >= 4 * caps.intermediate_max_tokens
    reply = caps.intermediate_max_tokens if wide else caps.helper_max_tokens
    return "intermediate" if wide else "helper", BYTES_PER_TOKEN * max(tokens - reply, tokens // 2)


class _Explorer:
    """One run on one text: the session, and the conversation with the model that explores it."""

    def __init__(
        self, llm: LLM, p: Params, material: Material, meter: _Meter, window: int, *, level: int
    ) -> None:
        self.llm, self.p, self.material, self.meter, self.level = llm, p, material, meter, level
        self.window = window
        self.cap, prompt = _limits(llm, window)
        query = prompt - size(SUB_ROLE) - 100
        self.limits = Limits(prompt, query, meter.left, level + 1 < p.depth)
        self.opening = opening(material, self.limits, llm.nonce)
        self.rounds: list[Round] = []
        self.stated: str | None = None
        self.candidate: Reply | None = None
        self._nudged = False

    async def explore(self) -> Reply | None:
        """What was stated as the answer; None if the rounds or calls are used up, or the model has failed.

        Raises:
            OptiError: the first call failed, or one was refused.
        """
        files = files_of(self.material.document)
        async with self.llm.sandbox.session(
            timeout=self.p.timeout, memory_mb=self.p.memory_mb, files=files
        ) as session:
            repl = Repl(session, self._asked)
            # The document is loaded while the model thinks of what to do with it.
            first, _ = await self.llm.gather(self._next(), repl.load())
            for number in range(1, self.p.rounds + 1):
                reply = first if number == 1 else await self._next()
                if reply is None:
                    return None
                answer = await self._round(repl, reply, number)
                if answer is not None:
                    return answer
        return None

    async def last_answer(self, task: Task) -> Reply:
        """The answer from what was found, by a call that is the client's own."""
        limit = (
            task.options.fields.get(task.options.limit_field or "") or self.llm.run.caps.default_max_tokens
        )
        room = BYTES_PER_TOKEN * max(self.window - limit, self.window // 2)
        messages = last_prompt(self.material, self.rounds, room, self.llm.nonce)
        if self.candidate is None:
            return await self.llm.answer("rlm.answer", messages)
        reply = await self.llm.try_answer("rlm.answer", messages)
        return reply if reply is not None and reply.usable else self.candidate

    # -- the conversation ------------------------------------------------------------------------

    async def _next(self) -> Reply | None:
        """The model's next reply; None if it has failed, but has found something before."""
        messages = conversation(self.opening, self.rounds, self.limits.prompt)
        try:
            if self.level:
                self.meter.take(1)
            return await self.llm.ask("rlm.root", messages, cap=self.cap, model=self._model, tag=self._tag)
        except CallRefused:
            return None
        except OptiError as error:
            if not self.rounds or not degradable(error) or isinstance(error, BudgetExceeded):
                raise
            return None

    async def _round(self, repl: Repl, reply: Reply, number: int) -> Reply | None:
        """Run what a reply says; the answer, if it states one."""
        statement = statement_of(reply)
        said = strip_think(reply.text).strip()
        if statement.nothing:
            if reply.usable and (self._nudged or number == self.p.rounds):
                return reply
            self._nudged = True
            self.rounds.append(Round(said, NUDGE))
            return None
        lines: list[str] = []
        failed = False
        for code in statement.code:
            outcome = await self._run(repl, code, number)
            lines.append(told(outcome, self.p.timeout, self.p.output_chars, self.llm.nonce))
            failed = not outcome.ok and outcome.status != "output"
            if failed or self.stated is not None:
                break
        if self.stated is None:
            lines += await self._state(repl, statement, number, failed)
        if self.stated is not None:
            return Reply.of(self.stated)
        left = f"{self.p.rounds - number} rounds and {self.meter.left} calls are left."
        self.rounds.append(Round(said, "\n\n".join([*lines, left])))
        return None

    async def _state(self, repl: Repl, statement: Statement, number: int, failed: bool) -> list[str]:
        """Take the answer that stands beside the code; what is to be said of it, if it cannot be taken."""
        if statement.variable is None and statement.answer is None:
            return []
        if failed:
            if statement.answer and not self.level:
                self.candidate = Reply.of(statement.answer)
                self.llm.keep(self.candidate)
            return ["The code has failed, so the answer beside it does not count."]
        if statement.variable is None:
            self.stated = statement.answer
            return []
        name = statement.variable
        # A lone word in FINAL(...) is a variable if there is one of that name, else the answer itself.
        guess = f"FINAL(globals().get({name!r}, {name!r}))" if statement.answer else f"FINAL_VAR({name!r})"
        outcome = await self._run(repl, guess, number)
        return [told(outcome, self.p.timeout, self.p.output_chars, self.llm.nonce)]

    async def _run(self, repl: Repl, code: str, number: int) -> Outcome:
        outcome = await repl.run(code)
        shown = told(outcome, self.p.timeout, self.p.output_chars, self.llm.nonce)
        await self.llm.note(
            "rlm.ran",
            level=self.level,
            round=number,
            code=code,
            status=outcome.status,
            told=shown,
            calls_left=self.meter.left,
        )
        if outcome.stdout.strip() and not self.level:
            # If the run must end now, what was found is better than nothing.
            self.llm.keep(Reply.of(clip_bytes(outcome.stdout, self.limits.prompt).strip()), draft=True)
        return outcome

    # -- what code asks for ----------------------------------------------------------------------

    async def _asked(self, name: str, arguments: Any) -> Any:
        """Answer the code in the session; it may be hostile, and ask anything."""
        if name == QUERY and isinstance(arguments, str):
            answer = (await self._queries([arguments]))[0]
            if answer is None:
                raise CallRefused("the model gave no answer")
            return answer
        if name == QUERIES and _are_texts(arguments):
            return await self._queries(arguments)
        if name == RECURSE and _are_texts(arguments) and len(arguments) == 2:
            return await self._recurse(*arguments)
        if name == FINAL and isinstance(arguments, str):
            if not arguments.strip() or len(arguments) > MOST_ANSWER:
                raise CallRefused(f"an answer has from 1 to {MOST_ANSWER} characters")
            self.stated = arguments.strip()
            return None
        raise CallRefused("nothing of that kind can be asked for")

    async def _queries(self, prompts: list[str]) -> list[str | None]:
        """Ask the model, side by side; None for those that failed."""
        for prompt in prompts:
            if not prompt.strip():
                raise CallRefused("a prompt is empty")
            if size(prompt) > self.limits.query:
                raise CallRefused(
                    f"a prompt has {size(prompt)} bytes; {self.limits.query} fit: cut the text into pieces"
                )
        self.meter.take(len(prompts))
        replies = await self.llm.gather(*(self._query(prompt) for prompt in prompts))
        return [reply.visible if reply is not None and reply.visible else None for reply in replies]

    async def _query(self, prompt: str) -> Reply | None:
        call = self.llm.ask(
            "rlm.sub",
            sub_prompt(prompt),
            cap=self.cap,
            model=self.p.sub_model or None,
            tag=self._tag,
        )
        return await self.llm.attempt(call)

    async def _recurse(self, question: str, text: str) -> str:
        """A run of the same kind on a text that the code has made."""
        if not self.limits.recursion:
            raise CallRefused("there is no rlm_query at this depth; use llm_query")
        if not question.strip() or not text.strip():
            raise CallRefused("the question or the text is empty")
        material = Material(question, text)
        nested = _Explorer(self.llm, self.p, material, self.meter, self.window, level=self.level + 1)
        found = await self.llm.attempt(nested.explore())
        if found is not None and found.visible:
            return found.visible
        if nested.rounds:
            return f"(no answer was reached; this was seen last)\n{nested.rounds[-1].told}"
        raise CallRefused("no answer was found")

    @property
    def _model(self) -> str | None:
        return (self.p.sub_model or None) if self.level else None

    @property
    def _tag(self) -> str | None:
        return f"level {self.level}" if self.level else None


def _are_texts(arguments: Any) -> bool:
    return isinstance(arguments, list) and all(isinstance(a, str) for a in arguments)
