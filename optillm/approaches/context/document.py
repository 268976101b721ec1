"""A long text with the places it comes from, and its division into chunks. No model, no await."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from optillm.core.tokens import weigh

_BORDERS = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"\n"),
    # Bounded, or a table of contents full of dots takes quadratic time.
    re.compile(r"[.!?…][\"'”’)\]]{0,3}\s|[。！？｡．][」』”’）]{0,3}"),
    re.compile(r"\s+|[、，；]"),
)
"""Where a text is divided, the best first: after paragraphs, lines, sentences, words."""
_SPACE = re.compile(r"\s")
_LONGEST_CHARACTER = 32
"""Code points that one visible character may be made of."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where a piece of a document begins, and what it is: ``message 2 (user), part 1``."""

    start: int
    name: str


@dataclass(frozen=True)
class Document:
    """A text made of parts, one after the other.

    Args:
        text: all of it.
        parts: where each begins; empty only for the empty document.
    """

    text: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, pieces: Iterable[tuple[str, str]]) -> Document:
        """A document from (name, text); pieces without a word are left out."""
        texts: list[str] = []
        parts: list[Part] = []
        at = 0
        for name, text in pieces:
            if text and not text.isspace():
                parts.append(Part(at, name))
                texts.append(text + "\n\n")
                at += len(text) + 2
        return cls("".join(texts), tuple(parts))

    def __bool__(self) -> bool:
        return bool(self.parts)

    def where(self, span: Span) -> str:
        """The source of a span in words: parts, with characters counted within each."""
        first = bisect_right(self.parts, span.start, key=lambda p: p.start) - 1
        last = bisect_right(self.parts, span.end - 1, key=lambda p: p.start) - 1
        begin, end = self.parts[first], self.parts[last]
        if first == last:
            return f"{begin.name}, characters {span.start - begin.start}-{span.end - begin.start}"
        return (
            f"{begin.name}, from character {span.start - begin.start}, to {end.name}, "
            f"character {span.end - end.start}"
        )

    def read(self, span: Span) -> str:
        """The text of a span."""
        return self.text[span.start : span.end]

    def chunks(self, size: int, overlap: int = 0) -> list[Span]:
        """Its division into chunks that say something; see :func:`divided`."""
        return [s for s in divided(self.text, size, overlap) if not self.read(s).isspace()]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a text.

    Args:
        start, end: characters; ``start`` includes what is repeated of the span before.
        core: where what is new in it begins.
    """

    start: int
    end: int
    core: int


def divided(text: str, size: int, overlap: int = 0) -> Iterator[Span]:
    """Divide a text into spans of at most ``size`` tokens, at the best borders there are.

    The parts from ``core`` to ``end`` are the text, in order, without gap. A span's border is that of a
    paragraph if there is one in its second half, else that of a line, a sentence, a word; a text
    without any is cut between two characters. The time is linear in the text.

    Args:
        text: any text, in any script.
        size: tokens of a span, with what is repeated; at least 16.
        overlap: about how many tokens of the span before are repeated; less than half the size.
    """
    core, guess = 0, 4 * size
    while core < len(text):
        start = _overlap_start(text, core, overlap)
        end = _reach(text, start, core, size, core + guess)
        guess = end - core
        if end < len(text):
            end = _border(text, core, end)
        yield Span(start, end, core)
        core = end


def _reach(text: str, start: int, core: int, size: float, guess: int) -> int:
    """An end so that the text from start has at most so many tokens, and mostly not much less.

    It begins with a guess, and goes on by how heavy the text has been; at least one character after core.
    """
    end, shrunk = min(guess, len(text)), False
    while True:
        weight = weigh(text[start:end])
        if weight > size:
            if end == core + 1:
                return end
            end = max(core + 1, end - 1 - int(1.02 * (end - core) * (1 - size / weight)))
            shrunk = True
        elif end == len(text) or shrunk or weight > 0.9 * size:
            return end
        else:
            end = min(len(text), core + max(end - core + 1, int(0.98 * (end - core) * size / max(weight, 1))))


def _border(text: str, start: int, end: int) -> int:
    """The last good border in the second half before the end; the end itself if there is none."""
    half = (start + end + 1) // 2
    for border in _BORDERS:
        found = [m.end() for m in border.finditer(text, half, end)]
        if found:
            return found[-1]
    return _between_characters(text, start, end)


def _between_characters(text: str, start: int, end: int) -> int:
    """Not within a character that is made of several code points (accents, emoji)."""
    for at in range(end, max(start, end - _LONGEST_CHARACTER), -1):
        joined = text[at - 1] == "\u200d" or text[at] in "\u200d\ufe0e\ufe0f"
        if not joined and not unicodedata.combining(text[at]):
            return at
    return end


def _overlap_start(text: str, core: int, overlap: int) -> int:
    """Where so many tokens before a place begin, at a word if there is one."""
    if not overlap or not core:
        return core
    start, step = core, 4 * overlap
    while start and step:
        # Weighed as a whole: runs without spaces weigh more than their pieces.
        further = max(0, start - step)
        if weigh(text[further:core]) <= overlap:
            start = further
        else:
            step //= 2
    if start:
        word = _SPACE.search(text, start, core)
        start = word.end() if word and word.end() < core else start
    return start


def groups(sizes: Iterable[int], most: int) -> list[range]:
    """Consecutive things in groups of at most so many tokens; two at least in each, but for the last."""
    starts, total = [0], 0
    i = -1
    for i, size in enumerate(sizes):
        if total + size > most and i - starts[-1] >= 2:
            starts.append(i)
            total = 0
        total += size
    return [range(a, b) for a, b in pairwise([*starts, i + 1])] if i >= 0 else []
