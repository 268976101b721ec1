"""What a prompt looks like, in numbers: the input of a routing model.

Pure and deterministic, without any library: some dozens of counts and flags (length, digits, code, form of
the question, script), and hashed n-grams of words and characters (the hashing trick, arXiv:0902.2206).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from zlib import crc32

from optillm.core.task import Task

VERSION = 1
"""Changes whenever the same prompt gets other features: a model fits one version."""
BUCKETS = 1024
"""Places that n-grams are hashed to."""
WORDS = 8192
"""Places that words are hashed to, to tell the known from the unknown."""

_HEAD, _TAIL, _SYSTEM = 800, 400, 300
"""Characters of a text that are read."""
_LONG = 5
"""Letters over which a word counts by its parts, too."""
_DIGITS = 12
"""Longer numbers are alike."""
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_OPERATOR = re.compile(r"[\d)]\s?[-+*/^=×÷%<>]\s?[\d(]")
_CODE = re.compile(r"```|\bdef \w|\bclass \w+[:(]|#include|\bSELECT\b|=>|;$|\)\s?[{:]$", re.M)
_OPTION = re.compile(r"^\(?[A-Ea-e][).:]\s", re.M)
_ITEM = re.compile(r"^(?:[-*•]|\d+[.)])\s", re.M)
_CODING = frozenset(
    {"code", "function", "program", "script", "algorithm", "python", "java", "javascript", "sql"}
)
_LATEX = frozenset({"frac", "sqrt", "cdot", "int", "sum"})
_STOPS = frozenset(".!?。！？")
_QUOTES = frozenset('"“”«»')
_CONDITIONS = frozenset(
    {
        "if", "each", "every", "must", "not", "only", "than", "then", "before", "after", "all", "least",
        "most", "exactly", "between", "left", "right", "older", "younger", "taller", "shorter", "more",
        "less", "fewer", "twice", "half",
    }
)  # fmt: skip
_OPENINGS = MappingProxyType(
    {
        "asks_what": frozenset({"what", "which"}),
        "asks_fact": frozenset({"who", "whom", "whose", "where", "when"}),
        "asks_amount": frozenset({"many", "much", "total", "amount", "number", "sum"}),
        "asks_why": frozenset({"why", "how", "explain", "prove", "show"}),
        "asks_to_write": frozenset(
            {"write", "compose", "draft", "tell", "imagine", "describe", "suggest", "invent"}
        ),
        "asks_to_change": frozenset(
            {"translate", "summarize", "summarise", "rewrite", "rephrase", "shorten", "correct", "edit"}
        ),
    }
)
# Texts of patterns with large sets of characters: compiled when first used, by `re` itself.
_SCRIPTS = MappingProxyType(
    {
        "latin_marked": "[À-ɏ]",
        "greek_cyrillic": "[Ͱ-ԯ]",
        "arabic_hebrew": "[\u0590-\u08ff]",
        "indic_thai": "[\u0900-\u0fff]",
        "cjk": "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]",
    }
)
_UNSPACED = "[\u0e00-\u30ff\u3400-\u9fff]"


@dataclass(frozen=True)
class Features:
    """A prompt in numbers.

    Args:
        dense: by the names of :data:`DENSE`, each about 0 to 1.
        hashed: by bucket; as a vector of length 1.
        words: places of its different words, 0 to :data:`WORDS` − 1.
    """

    dense: tuple[float, ...]
    hashed: Mapping[int, float]
    words: frozenset[int]


def features(task: Task) -> Features:
    """The features of what is asked: of its last question, its instructions and its form."""
    question, system = _excerpt(task.text, _HEAD, _TAIL), _excerpt(task.system, _SYSTEM, 0)
    tokens = [_shape(t) for t in _TOKEN.findall(question.lower())]
    instructions = [_shape(t) for t in _TOKEN.findall(system.lower())]
    dense = {**_measures(question, tokens), **_form(task)}
    grams = {_place(g) % BUCKETS for g in dict.fromkeys(_grams(tokens, instructions))}
    size = 1 / math.sqrt(len(grams)) if grams else 0.0
    words = frozenset(_place(t) % WORDS for t in dict.fromkeys(tokens) if len(t) > 1)
    return Features(
        tuple(dense[name] for name in DENSE), MappingProxyType(dict.fromkeys(sorted(grams), size)), words
    )


def _excerpt(text: str, head: int, tail: int) -> str:
    """The begin and the end of a long text: where questions are asked."""
    return text if len(text) <= head + tail else text[:head] + "\n" + text[len(text) - tail :]


def _place(text: str) -> int:
    return crc32(text.encode("utf-8", "replace"))


def _shape(token: str) -> str:
    """Numbers are alike if they have as many digits."""
    return "0" * min(len(token), _DIGITS) if token[0].isdigit() else token


def _grams(tokens: list[str], instructions: list[str]) -> Iterator[str]:
    yield from (f"w {t}" for t in tokens)
    yield from (f"b {a} {b}" for a, b in pairwise(tokens))
    yield from (f"s {t}" for t in instructions)
    for token in dict.fromkeys(tokens):
        if re.match(_UNSPACED, token):
            yield from (f"c {token[i : i + 2]}" for i in range(len(token)))
        elif len(token) > _LONG:
            marked = f"<{token}>"
            yield from (f"c {marked[i : i + 4]}" for i in range(len(marked) - 3))


def _measures(text: str, tokens: list[str]) -> dict[str, float]:
    words = [t for t in tokens if t[0].isalpha()]
    numbers = [t for t in tokens if t[0] == "0"]
    known = frozenset(tokens)
    letters = max(sum(map(len, words)), 1)
    digits = sum(map(len, numbers))
    signs = Counter(t for t in tokens if not t[0].isalnum())
    return {
        "chars": math.log1p(len(text)) / 8,
        "words": math.log1p(len(words)) / 6,
        "word_length": min(letters / max(len(words), 1) / 10, 2),
        "variety": len(known) / max(len(tokens), 1),
        "lines": math.log1p(text.count("\n")) / 4,
        "sentences": math.log1p(sum(signs[s] for s in _STOPS)) / 3,
        "capitals": sum(map(str.isupper, text)) / letters,
        "digit_share": digits / max(len(text), 1),
        "numbers": math.log1p(len(numbers)) / 3,
        "digits": math.log1p(digits) / 4,
        "longest_number": max(map(len, numbers), default=0) / _DIGITS,
        "operators": math.log1p(len(_OPERATOR.findall(text))) / 3,
        "products": math.log1p(signs["*"] + signs["×"]) / 2,
        "code": float(_CODE.search(text) is not None),
        "coding": float(not known.isdisjoint(_CODING)),
        "latex": float("\\" in text and not known.isdisjoint(_LATEX)),
        "options": float(len(_OPTION.findall(text)) >= 3),
        "items": math.log1p(len(_ITEM.findall(text))) / 3,
        "quotes": math.log1p(sum(signs[s] for s in _QUOTES)) / 3,
        "conditions": math.log1p(sum(map(_CONDITIONS.__contains__, tokens))) / 3,
        "question_marks": math.log1p(signs["?"] + signs["？"]) / 2,
        "ends_asking": float(text.rstrip().endswith(("?", "？"))),
        **{name: float(not known.isdisjoint(words)) for name, words in _OPENINGS.items()},
        **_scripts(text, letters),
    }


def _scripts(text: str, letters: int) -> dict[str, float]:
    """The share of each script but the plain Latin one."""
    if text.isascii():
        return dict.fromkeys(_SCRIPTS, 0.0)
    return {name: min(len(re.findall(p, text)) / letters, 1.0) for name, p in _SCRIPTS.items()}


def _form(task: Task) -> dict[str, float]:
    """What is known of the conversation besides its last question."""
    return {
        "turns": math.log1p(max(len(task.turns) - 1, 0)) / 3,
        "instructed": float(bool(task.system)),
        "pictured": float(any(m.images for m in task.messages)),
        "tools": float(bool(task.options.fields.get("tools"))),
        "formatted": float(bool(task.options.fields.get("response_format"))),
    }


DENSE = (
    "chars", "words", "word_length", "variety", "lines", "sentences", "capitals", "digit_share", "numbers",
    "digits", "longest_number", "operators", "products", "code", "coding", "latex", "options", "items",
    "quotes", "conditions", "question_marks", "ends_asking", "latin_marked", "greek_cyrillic",
    "arabic_hebrew", "indic_thai", "cjk", "asks_what", "asks_fact", "asks_amount", "asks_why",
    "asks_to_write", "asks_to_change", "turns", "instructed", "pictured", "tools", "formatted",
)  # fmt: skip
"""Names of the counts and flags, in their order."""
