"""Which of many short texts fit a question best: by an embedding model if there is one, else BM25.

BM25 (Robertson and Zaragoza, 2009) with k1 1.2 and b 0.75, in some lines of its own: the texts are a few
hundred notes, for which a library with its numeric stack would be many times the weight of the core. Words
are runs of letters and digits, in lower case; scripts without spaces between words (Chinese, Japanese, Thai
and others) are taken as pairs of neighbouring characters, the usual way to search them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from optillm.approaches.context.request import off_loop
from optillm.core.llm import LLM

K1, B = 1.2, 0.75
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Texts of patterns with large sets of characters: compiled when first used, by `re` itself.
_WORDS = rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+"
_PAIRS = rf"[{_UNSPACED}]"


def words(text: str) -> list[str]:
    """The words of a text, as they are searched by."""
    out: list[str] = []
    for word in re.findall(_WORDS, text.lower()):
        if len(word) > 1 and re.match(_PAIRS, word):
            out += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            out.append(word)
    return out


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """The score of each text for a query: 0 when they share no word."""
    counted = [Counter(words(t)) for t in texts]
    lengths = [sum(c.values()) for c in counted]
    mean = sum(lengths) / len(texts) if texts else 0
    within = Counter(word for c in counted for word in c)
    scores = [0.0] * len(texts)
    for word in set(words(query)):
        idf = math.log(1 + (len(texts) - within[word] + 0.5) / (within[word] + 0.5))
        for i, found in enumerate(counted):
            if times := found[word]:
                scores[i] += idf * times * (K1 + 1) / (times + K1 * (1 - B + B * lengths[i] / mean))
    return scores


async def relevance(llm: LLM, stage: str, query: str, texts: Sequence[str]) -> tuple[list[float], str]:
    """How well each text fits the query, and by what that was told: ``embeddings`` or ``bm25``.

    With an embedding model it takes one call, that of all texts together; one that fails is done without.

    Raises:
        UpstreamError: the embedding model refused the call for good.
    """
    if llm.run.tools.embedder is not None and texts:
        with llm.reserving():
            vectors = await llm.attempt(llm.embed(stage, [query, *texts]))
        if vectors:
            return [cosine(vectors[0], v) for v in vectors[1:]], "embeddings"
    size = len(query) + sum(map(len, texts))
    return await off_loop(size, bm25, query, texts), "bm25"


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the angle between two vectors; 0 if one of them is 0."""
    norm = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def best(scores: Sequence[float], k: int) -> list[int]:
    """The k best, in their own order; of equal ones the first."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(ranked[:k])
