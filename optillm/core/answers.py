"""Reading replies: reasoning, scores, final answers, and when two answers are the same.

All functions are total: they return something for every text.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from fractions import Fraction

_THINK, _END_THINK = "<think>", "</think>"

_NUMBER = r"[+-]?(?:\d[\d,]{0,30}(?:\.\d{0,30})?|\.\d{1,30})"
_OF = rf"(?:\s{{0,3}}(?P<percent>%)|\s{{0,3}}(?:/|out\s{{1,3}}of)\s{{0,3}}(?P<den>{_NUMBER}))"
_KEYWORD = r"\b(?:score|rating|grade)\b[^\d+\-.\n]{0,20}"
_DASHED = r"\b(?:score|rating|grade)\s{0,3}-\s{1,3}"
_LABELLED = re.compile(rf"(?:{_DASHED}|{_KEYWORD})(?P<num>{_NUMBER})(?![\d.]*\d){_OF}?", re.I)
_LINE_INITIAL = re.compile(rf"^[^\w\n]{{0,8}}(?:{_DASHED}|{_KEYWORD})(?P<num>{_NUMBER}){_OF}?", re.I | re.M)
_RATIO = re.compile(rf"(?<![\w.])(?P<num>{_NUMBER}){_OF}", re.I)
_BARE = re.compile(rf"(?<![\w.])(?P<num>{_NUMBER})(?P<percent>)(?P<den>)")

_ANSWER_LINE = re.compile(
    r"(?:\bfinal\s+answer|\bthe\s+answer|^[^\w\n]{0,8}answer)\b"
    r"(?:\s+is\b|\W{0,4}?[:=])[ \t]*:?[ \t]*(?P<rest>[^\n]*)",
    re.I | re.M,
)
_HASHES = re.compile(r"^#### (?P<rest>[^\n]*)", re.M)
_LETTER = re.compile(r"[(\[]?([A-J])[)\].]?")

_MACRO_SPACE = re.compile(r"\\[,;:!> ]|\\q?quad\b|~")
_TEXT_MACRO = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}")
_FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_PLAIN = re.compile(
    r"(?P<num>[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400}))(?:e(?P<exp>[+-]?\d{1,3}))?"
    r"(?:\s?/\s?(?P<den>\d{1,400}(?:\.\d{1,400})?))?(?P<percent>\s?%)?(?P<unit>(?:\s?[^\W\d]+\.?){0,3})"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CURRENCY = re.compile(r"(?:\\?[$€£¥₹]|\b(?:usd|eur|gbp)\b)")
_WORDS = re.compile(r"\w+|[^\w\s]")
_FENCE = re.compile(r"^(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^\n]*)$", re.M)
_LONG = 2000


def split_think(text: str) -> tuple[str, str]:
    """Split a reply into (reasoning, visible).

    Reasoning is what stands in ``<think>`` blocks, before an orphan ``</think>``, and after an
    unclosed ``<think>``.
    """
    if _THINK not in text and _END_THINK not in text:
        return "", text
    reasoning: list[str] = []
    visible: list[str] = []
    at = 0
    first_open, first_end = text.find(_THINK), text.find(_END_THINK)
    if first_end >= 0 and (first_open < 0 or first_end < first_open):
        reasoning.append(text[:first_end])
        at = first_end + len(_END_THINK)
    while (start := text.find(_THINK, at)) >= 0:
        visible.append(text[at:start])
        end = text.find(_END_THINK, start)
        if end < 0:
            reasoning.append(text[start + len(_THINK) :])
            at = len(text)
            break
        reasoning.append(text[start + len(_THINK) : end])
        at = end + len(_END_THINK)
    visible.append(text[at:].replace(_END_THINK, ""))
    return "\n".join(r.strip() for r in reasoning if r.strip()), "".join(visible)


def strip_think(text: str) -> str:
    """The reply without its reasoning; see :func:`split_think`."""
    return split_think(text)[1]


def parse_score(text: str, lo: float, hi: float) -> float | None:
    """The score that a judge gave, rescaled to ``hi`` by a percent sign or a denominator.

    Args:
        text: the judge's reply.
        lo, hi: the range; a score outside it is no score.

    Returns:
        The score, or None when there is none.
    """
    text = re.sub(r"[*_`]", "", strip_think(text))
    lines = [line for line in text.splitlines() if line.strip()]
    match = _last(_LINE_INITIAL, text) or _last(_LABELLED, text) or _last(_RATIO, text)
    if match is None and lines:
        match = _last(_BARE, lines[-1])
    if match is None:
        return None
    value = float(match["num"].replace(",", ""))
    if match["percent"]:
        value = value / 100 * hi
    elif match["den"]:
        den = float(match["den"].replace(",", ""))
        if den <= 0:
            return None
        value = value / den * hi
    return value if lo <= value <= hi else None


def final_answer(text: str) -> str | None:
    """The short answer that a reply ends with, or None.

    In this order: the last ``\\boxed{}``, an "answer is" line, a ``####`` line, a lone option
    letter on the last line, or the whole text if it is one short line.
    """
    text = strip_think(text).strip()
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    for pattern in (_ANSWER_LINE, _HASHES):
        match = _last(pattern, text)
        if match is not None and (rest := match["rest"].strip().strip("*_ ")):
            return rest
    last = text.rsplit("\n", 1)[-1].strip().strip("*_ ")
    letter = _LETTER.fullmatch(last)
    if letter:
        return letter.group(1)
    if text and "\n" not in text and len(text) <= 40:
        return text
    return None


@dataclass(frozen=True)
class Norm:
    """An answer in a form that can be compared: an exact number with its unit, or plain text."""

    number: Fraction | None
    unit: str
    text: str


def norm_answer(answer: str) -> Norm:
    """Bring an answer to its comparable form: markup, case, spacing and number formats removed."""
    text = answer.strip()[:10_000]
    if text.startswith("[") and (end := text.find("]")) > 0:
        text = text[1:end]
    text = text.replace("−", "-").replace("–", "-").replace("\\%", "%")
    text = _MACRO_SPACE.sub(" ", text)
    text = _TEXT_MACRO.sub(r"\1", text)
    text = text.replace("\\(", "").replace("\\)", "").replace("\\left", "").replace("\\right", "")
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text.strip("$")
    text = _FRAC.sub(r"\1/\2", text)
    text = text.strip().strip("*_`\"'").rstrip(".,;:!?").strip().lower()
    text = _CURRENCY.sub("", text)
    text = _THOUSANDS.sub("", text)
    text = " ".join(text.split())
    bracketed = re.fullmatch(r"\(([a-z0-9])\)|([a-z])\)", text)
    if bracketed:
        text = bracketed.group(1) or bracketed.group(2)
    match = _PLAIN.fullmatch(text)
    if match is None:
        return Norm(None, "", text)
    number = Fraction(match["num"]) * Fraction(10) ** int(match["exp"] or 0)
    if match["den"]:
        den = Fraction(match["den"])
        if den == 0:
            return Norm(None, "", text)
        number /= den
    if match["percent"]:
        number /= 100
    unit = " ".join(match["unit"].replace(".", " ").split())
    return Norm(number, unit, "")


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are equal: as exact numbers (units only if both have one), else as text."""
    return _same(norm_answer(a), norm_answer(b))


def _same(a: Norm, b: Norm) -> bool:
    if a.number is None or b.number is None:
        return a == b
    return a.number == b.number and (not a.unit or not b.unit or a.unit == b.unit)


def group_by_answer(answers: Sequence[str | None]) -> list[list[int]]:
    """Indices with the same answer, in order of their first members.

    Each answer is compared with the first member of each group; None does not vote.
    """
    groups: list[tuple[Norm, list[int]]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        norm = norm_answer(answer)
        for first, members in groups:
            if _same(first, norm):
                members.append(index)
                break
        else:
            groups.append((norm, [index]))
    return [members for _, members in groups]


def largest(groups: Sequence[list[int]]) -> list[int]:
    """The largest group; of equals the one that holds the lowest index."""
    return max(groups, key=lambda g: (len(g), -g[0]))


def similarity(a: str, b: str) -> float:
    """How alike two texts are, 0 to 1, on words; by sets of words when one is over 2,000 words."""
    left, right = _WORDS.findall(a), _WORDS.findall(b)
    if max(len(left), len(right)) > _LONG:
        union = set(left) | set(right)
        return len(set(left) & set(right)) / len(union) if union else 1.0
    # Autojunk would drop frequent words, and call nearly equal texts unlike.
    return SequenceMatcher(None, left, right, autojunk=False).ratio()


def group_by_similarity(texts: Sequence[str], threshold: float) -> list[list[int]]:
    """Greedy clusters in index order, each text against the first member of each cluster.

    Texts whose extractable answers differ are never merged.
    """
    answers = [final_answer(t) for t in texts]
    clusters: list[list[int]] = []
    for index, text in enumerate(texts):
        for cluster in clusters:
            mine, theirs = answers[index], answers[cluster[0]]
            differ = mine is not None and theirs is not None and not same_answer(mine, theirs)
            if not differ and similarity(texts[cluster[0]], text) >= threshold:
                cluster.append(index)
                break
        else:
            clusters.append([index])
    return clusters


def tagged(text: str, name: str) -> str | None:
    """What stands in the last ``<name>`` block of a reply, or None; one that is not closed has no end."""
    text = strip_think(text)
    opening, closing = f"<{name}>", f"</{name}>"
    start = text.rfind(opening)
    return None if start < 0 else text[start + len(opening) :].partition(closing)[0].strip()


@dataclass(frozen=True)
class Fence:
    """A fenced block: its info string and its text."""

    info: str
    code: str


def fences(text: str, truncated: bool = False) -> list[Fence]:
    """The fenced blocks of a reply, with any info string.

    An unclosed last block counts, unless the reply was truncated.
    """
    out: list[Fence] = []
    at = 0
    while (opening := _FENCE.search(text, at)) is not None:
        start = min(opening.end() + 1, len(text))
        mark = opening["mark"]
        closing = re.compile(rf"^{re.escape(mark[0])}{{{len(mark)},}}[ \t]*$", re.M).search(text, start)
        if closing is None:
            if not truncated:
                out.append(Fence(opening["info"].strip(), text[start:].rstrip("\n")))
            break
        out.append(Fence(opening["info"].strip(), text[start : closing.start()].rstrip("\n")))
        at = closing.end()
    return out


def _boxed(text: str) -> str | None:
    """The content of the last balanced ``\\boxed{}``; a brace count, for regexes cannot nest."""
    mark = "\\boxed{"
    end = len(text)
    budget = 50
    while budget and (start := text.rfind(mark, 0, end)) >= 0:
        depth = 0
        for i in range(start + len(mark) - 1, min(len(text), start + 20_000)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start + len(mark) : i].strip()
        end, budget = start, budget - 1
    return None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
