"""Map and reduce: what a document in chunks says about a question. Used by ``longcepo``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optillm.approaches.context.calls import LABEL_TOKENS, PROMPT_TOKENS, Summaries, each, reading
from optillm.approaches.context.document import Document, Span, divided, groups
from optillm.approaches.context.request import QUERY_TOKENS, off_loop
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.prompts import quoted
from optillm.core.reply import Reply
from optillm.core.task import Messages
from optillm.core.tokens import count

VERSION = "longcepo 1"
"""Part of the key of a kept summary: another prompt, another version."""
NOTHING = "[NO INFORMATION]"
NOT_SAID = "The document does not say."
_NOTHING = re.compile(r"\W*no information\W*", re.I)
_ANSWER = re.compile(r"^\W*answer\W*:\W*", re.I | re.M)


class MapReduceParams(ApproachParams):
    """Parameters of techniques that read a document by map and reduce."""

    temperature_map: float = field(0.7, "of summaries and findings", ge=0, le=2)
    temperature_collapse: float = field(0.7, "of condensing findings", ge=0, le=2)
    temperature_reduce: float = field(0.7, "of answers made of findings", ge=0, le=2)
    chunk_size: int = field(4096, "tokens of a chunk", ge=128, le=1_000_000)
    max_output_tokens: int = field(
        1024,
        "token limit of plans, findings and answers; of the reply, if the client gives none",
        ge=64,
        le=32_768,
    )
    max_context_window: int = field(8192, "tokens of prompt and reply of one call", ge=1536, le=10_000_000)
    max_output_tokens_summary: int = field(300, "token limit of a chunk's summary", ge=32, le=8192)
    num_neighbor_summaries: int = field(
        5, "chunks before and after it whose summaries a chunk is read with", ge=0, le=50
    )

    @property
    def room(self) -> int:
        """Tokens of a prompt for what is not the instruction, the question and the reply."""
        return self.max_context_window - self.max_output_tokens - PROMPT_TOKENS - QUERY_TOKENS

    def contradictions(self) -> Iterable[tuple[str, str]]:
        """What does not fit the window beside question and reply."""
        if 2 * self.max_output_tokens > self.room:
            least = 3 * self.max_output_tokens + PROMPT_TOKENS + QUERY_TOKENS
            yield (
                "max_context_window",
                f"must be at least {least}: an instruction, a question, two findings and a reply "
                f"(longcepo_max_output_tokens, {self.max_output_tokens} each) must fit it",
            )
        elif self.chunk_size > self.room:
            yield (
                "chunk_size",
                f"must be at most {self.room}: 'longcepo_max_context_window' less the instruction, the "
                "question and the reply",
            )


@dataclass(frozen=True)
class Finding:
    """What a stretch of the document says about a question.

    Args:
        span: the stretch.
        source: the same in words.
        text: what it says.
        tokens: of both, as they stand in prompts.
    """

    span: Span
    source: str
    text: str
    tokens: int

    @classmethod
    def of(cls, span: Span, source: str, text: str) -> Finding:
        """A finding, counted."""
        return cls(span, source, text, count(f"[{source}]\n{text}\n\n"))

    @property
    def shown(self) -> str:
        """As it stands in prompts."""
        return f"[{self.source}]\n{self.text}"


@dataclass(frozen=True)
class Known:
    """A question with its answer."""

    question: str
    answer: str

    @property
    def shown(self) -> str:
        """As it stands in prompts."""
        return f"{self.question}\n{self.answer}"


def summary_prompt(text: str, question: str, nonce: str) -> Messages:
    """Ask for a chunk's summary with a question in mind."""
    return reading(
        "You summarise a part of a document for a reader of its other parts.",
        nonce,
        f"A part of a document:\n\n{quoted('part', text, nonce)}\n\nThe reader works on this question:\n\n"
        f"{quoted('question', question, nonce)}\n\nSummarise the part in a few sentences: what it "
        "is about, and "
        "names, terms and facts that a reader of the neighbouring parts needs for the question.",
    )


def map_prompt(
    text: str, source: str, before: Sequence[str], after: Sequence[str], known: str, question: str, nonce: str
) -> Messages:
    """Ask for what a chunk says about a question."""
    pieces = [f"You read the part of a document at {source}."]
    if before:
        shown = quoted("summaries", "\n\n".join(before), nonce)
        pieces.append(f"Summaries of the parts before it:\n\n{shown}")
    pieces.append(f"The part:\n\n{quoted('part', text, nonce)}")
    if after:
        shown = quoted("summaries", "\n\n".join(after), nonce)
        pieces.append(f"Summaries of the parts after it:\n\n{shown}")
    if known:
        pieces.append(f"Questions about the document answered so far:\n\n{quoted('answered', known, nonce)}")
    pieces.append(
        f"The question:\n\n{quoted('question', question, nonce)}\n\nWrite down what this part says "
        "that helps to "
        "answer it: facts with exact names, numbers and wording, and what follows from them. The "
        "summaries are "
        f"for orientation only. If the part says nothing that helps, write only {NOTHING}."
    )
    return reading("You collect what a part of a document says about a question.", nonce, "\n\n".join(pieces))


def collapse_prompt(findings: Sequence[Finding], question: str, nonce: str) -> Messages:
    """Ask for several findings in fewer words."""
    return reading(
        "You condense findings without losing facts.",
        nonce,
        f"Findings from parts of one document, in its order:\n\n{shown(findings, nonce)}\n\nThe "
        "question they "
        f"are for:\n\n{quoted('question', question, nonce)}\n\nMerge them into one shorter text. "
        "Keep every fact "
        "that helps to answer the question, exact, with its source in brackets; say where "
        "findings contradict "
        "each other; drop repetitions.",
    )


def reduce_prompt(findings: Sequence[Finding], known: str, question: str, nonce: str) -> Messages:
    """Ask for the answer of a sub-question."""
    answered = f"Questions answered so far:\n\n{quoted('answered', known, nonce)}\n\n" if known else ""
    return reading(
        "You answer a question from findings about a document.",
        nonce,
        f"{answered}Findings from parts of the document, in its order:\n\n{shown(findings, nonce)}\n\n"
        f"The question:\n\n{quoted('question', question, nonce)}\n\nAnswer it from the findings "
        "alone. Say so if "
        'they are not enough. Write the answer after the word "Answer:".',
    )


def shown(findings: Sequence[Finding], nonce: str) -> str:
    """Findings as they stand in prompts."""
    return quoted("findings", "\n\n".join(f.shown for f in findings), nonce)


class MapReduce:
    """A document that is read for one question after the other.

    Args:
        document: all of it.
        chunks: its division.
        llm: of the run.
        p: sizes and temperatures.
    """

    def __init__(self, document: Document, chunks: Sequence[Span], llm: LLM, p: MapReduceParams) -> None:
        self.document, self.chunks, self.llm, self.p = document, chunks, llm, p
        self.summaries = Summaries(llm, f"{VERSION}, {p.max_output_tokens_summary}, {p.temperature_map}")
        self.unread: set[int] = set()
        """Chunks that could not be read for some question."""
        self._orients = p.num_neighbor_summaries > 0 and len(chunks) > 1
        self._tokens: Sequence[int] = ()

    @property
    def worst(self) -> int:
        """The most calls of :meth:`findings`: when every chunk has findings of full length."""
        calls = len(self.chunks) * (2 if self._orients else 1)
        left, each = len(self.chunks), self.p.max_output_tokens + LABEL_TOKENS
        while left > 1 and left * each > self.p.room:
            left = len(groups([each] * left, self.p.room))
            calls += left
        return calls

    async def answer(self, question: str, history: str) -> str | None:
        """The answer of a sub-question; None if it could not be made."""
        findings = await self.findings(question, history)
        if not findings:
            return NOT_SAID
        prompt = reduce_prompt(findings, history, question, self.llm.nonce)
        said = await self._ask("longcepo.reduce", prompt, self.p.temperature_reduce)
        return _ANSWER.split(said)[-1].strip() if said else said

    async def findings(self, question: str, history: str) -> list[Finding]:
        """What the document says about a question, in its order, short enough for one prompt."""
        numbers = range(len(self.chunks))
        known: list[str] = [""] * len(self.chunks)
        if self._orients:
            known = await each(self.llm, lambda i: self._summary(i, question), numbers)
        # Counted once and together: many replies may come at the same moment.
        summaries = list(zip(known, await _counted(known), strict=True))
        if not self._tokens:
            self._tokens = await _counted([self.document.read(chunk) for chunk in self.chunks])
        room = self.p.room - count(history)

        async def one(i: int) -> Finding | None:
            beside = self._neighbours(i, summaries, room - self._tokens[i])
            return await self._map(i, *beside, history, question)

        found = await each(self.llm, one, numbers)
        return await self._collapsed([f for f in found if f], history, question)

    def history(self, known: Sequence[Known]) -> str:
        """Questions and answers so far for a prompt; of too many the last."""
        left = self.p.room // 4
        out: list[str] = []
        for one in reversed(known):
            left -= count(one.shown)
            if left < 0:
                break
            out.append(one.shown)
        return "\n\n".join(reversed(out))

    def keep(self, known: Sequence[Known], findings: Sequence[Finding]) -> None:
        """Should the run end now, what was found is better than nothing."""
        said = [*(k.shown for k in known), *(f.shown for f in findings)]
        if said:
            self.llm.keep(Reply.of("\n\n".join(said), "length"), draft=True)

    async def _summary(self, i: int, question: str) -> str:
        text = self.document.read(self.chunks[i])
        prompt = summary_prompt(text, question, self.llm.nonce)
        made = await self.summaries.made(
            self.summaries.key("chunk", text, question),
            lambda: self._ask(
                "longcepo.summary",
                prompt,
                self.p.temperature_map,
                max_tokens=self.p.max_output_tokens_summary,
            ),
        )
        return made or ""

    async def _map(
        self, i: int, before: Sequence[str], after: Sequence[str], history: str, question: str
    ) -> Finding | None:
        chunk = self.chunks[i]
        text, source = self.document.read(chunk), self.document.where(chunk)
        prompt = map_prompt(text, source, before, after, history, question, self.llm.nonce)
        said = await self._ask("longcepo.map", prompt, self.p.temperature_map, tag=source)
        if said is None:
            self.unread.add(i)
            return None
        said = said.replace(NOTHING, "").strip()
        if not said or _NOTHING.fullmatch(said):
            return None
        return Finding.of(chunk, source, said)

    def _neighbours(self, i: int, known: Sequence[tuple[str, int]], room: int) -> tuple[list[str], list[str]]:
        """The summaries before and after a chunk, as many as there is room for, the nearest first.

        Args:
            i: the chunk.
            known: each chunk's summary with its tokens.
            room: tokens for them all.
        """
        before: list[str] = []
        after: list[str] = []
        for distance in range(1, self.p.num_neighbor_summaries + 1):
            for side, at in ((before, i - distance), (after, i + distance)):
                if 0 <= at < len(known) and known[at][0]:
                    text, tokens = known[at]
                    room -= tokens
                    if room < 0:
                        return before[::-1], after
                    side.append(text)
        return before[::-1], after

    async def _collapsed(self, findings: list[Finding], history: str, question: str) -> list[Finding]:
        """Findings condensed in groups, level by level, until they fit one prompt."""
        room = self.p.room - count(history)
        while len(findings) > 1 and sum(f.tokens for f in findings) > room:
            parts = groups([f.tokens for f in findings], self.p.room)
            findings = await self.llm.gather(
                *(self._condensed(findings[part.start : part.stop], question) for part in parts)
            )
        return findings

    async def _condensed(self, findings: Sequence[Finding], question: str) -> Finding:
        """Several findings as one; their beginnings, if that fails."""
        if len(findings) == 1:
            return findings[0]
        prompt = collapse_prompt(findings, question, self.llm.nonce)
        said = await self._ask("longcepo.collapse", prompt, self.p.temperature_collapse)
        if said is None:
            share = max(16, self.p.max_output_tokens // len(findings))
            said = "\n\n".join(f"[{f.source}]\n{_beginning(f.text, share)}" for f in findings)
        first, last = findings[0].span, findings[-1].span
        span = Span(first.start, last.end, first.core)
        return Finding.of(span, self.document.where(span), said)

    async def _ask(
        self,
        stage: str,
        prompt: Messages,
        temperature: float,
        *,
        max_tokens: int | None = None,
        tag: str | None = None,
    ) -> str | None:
        """What a helper says; None when it fails or says nothing."""
        limit = max_tokens or self.p.max_output_tokens
        reply = await self.llm.try_ask(stage, prompt, temperature=temperature, max_tokens=limit, tag=tag)
        return (reply.visible or None) if reply else None


async def _counted(texts: Sequence[str]) -> list[int]:
    """The tokens of each text."""
    return await off_loop(sum(map(len, texts)), lambda: [count(text) for text in texts])


def _beginning(text: str, tokens: int) -> str:
    """The first tokens of a text, marked if it is cut."""
    span = next(divided(text, tokens))
    return text if span.end == len(text) else text[: span.end].rstrip() + " …"
