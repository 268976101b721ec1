"""How alike two texts are, without a model: the cosine of their word counts; with one, of their meanings."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from optillm.core.frozen import empty
from optillm.core.llm import LLM
from optillm.protocol.errors import OptiError

# Scripts without spaces between words: each sign counts for itself.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# The text of a pattern with large sets of characters: compiled when first used, by `re` itself.
_WORD = rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+"


@dataclass(frozen=True, slots=True)
class Vector:
    """A sparse vector, and its square norm."""

    at: Mapping[Hashable, float]
    square: float

    @classmethod
    def of(cls, at: Mapping[Hashable, float]) -> Vector:
        """A vector of its components."""
        return cls(at, math.fsum(x * x for x in at.values()))


def words(text: str) -> Vector:
    """How often each word occurs, whatever its case."""
    return Vector.of(Counter(re.findall(_WORD, text.casefold())))


def cosine(a: Vector, b: Vector) -> float:
    """From 0 (nothing in common) to 1 (the same direction); below 0 if opposed; 0 with a zero vector.

    Word counts are whole numbers, and the root is drawn once: 7 of 10 words in common are exactly 0.7.
    """
    if not (a.square and b.square):
        return 0.0
    small, large = (a.at, b.at) if len(a.at) <= len(b.at) else (b.at, a.at)
    dot = math.fsum(x * large[k] for k, x in small.items() if k in large)
    return dot / math.sqrt(a.square * b.square)


@dataclass(frozen=True)
class Nearness:
    """``near(a, b)``: how alike two texts are, -1 to 1.

    Args:
        vectors: of the texts that are known; two of which one is not are compared by their words.
    """

    vectors: Mapping[str, Vector] = field(default_factory=empty)

    def __call__(self, a: str, b: str) -> float:
        """How alike two texts are."""
        if a in self.vectors and b in self.vectors:
            return cosine(self.vectors[a], self.vectors[b])
        return cosine(words(a), words(b))

    def best(self, text: str, others: Iterable[str]) -> float:
        """How alike a text is to the nearest of others; 0 if there is none."""
        return max((self(text, other) for other in others), default=0.0)


async def nearness(llm: LLM, texts: Iterable[str]) -> Nearness:
    """What compares these texts: by the server's embedding model if there is one, else by words.

    An embedding model that fails costs nothing but accuracy: words serve then.
    """
    known = list(dict.fromkeys(texts))
    embedder = llm.run.tools.embedder
    if embedder is not None and known:
        try:
            found = await embedder.embed(known)
            return Nearness({t: Vector.of(dict(enumerate(v))) for t, v in zip(known, found, strict=True)})
        except OptiError as error:
            await llm.note("similarity.words", embedder=embedder.name, error=error.message)
    return Nearness({t: words(t) for t in known})
