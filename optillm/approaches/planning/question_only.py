"""A task without the instructions on the form of its answer.

Benchmarks and applications tell in the question how the answer has to look: that its last line is a
letter, that code stands between marks. Who has to plan and to reason is better off without. What is taken
out are whole sentences and lines that speak of nothing but the form; options, starter code, examples and
everything else stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from optillm.core.task import Task

_ANSWER = r"(?:final |complete |entire |whole )?(?:answer|response|reply|output|solution|code|program)"
_FORM = re.compile(
    "|".join(
        (
            # "The last line of your response should be 'Answer: $LETTER' where LETTER is one of ABCD."
            rf"\b(?:last|final) line of (?:your|the) {_ANSWER}\b",
            r"\bwhere \W?(?:letter|x|option)\W? is (?:one of|the letter)\b",
            # "Answer with the letter only." "Respond with a single letter."
            r"\b(?:answer|respond|reply)(?: only)? with (?:only |just )?(?:the|a|one|your|its)\b[^.]{0,40}"
            r"\b(?:letter|option|choice)\b",
            r"^\W*answer the following (?:multiple[- ]choice )questions?\b",
            # "Put your final answer within \boxed{}." "Enclose your code within delimiters as follows."
            r"\b(?:put|give|place|write|enclose|wrap|box|format|present|return|provide) (?:your|the)"
            rf" {_ANSWER} (?:within|inside|in|between|with|as) (?:a |an |the )?(?:\W?\\+boxed|delimiters"
            r"|back-?ticks|tags|single|fenced|markdown|code ?block|code fence|(?:following )?format|form\b)",
            r"\benclose (?:your|the) (?:code|program) within delimiters\b",
            r"\buse the (?:provided|given|following) format\b",
        )
    ),
    re.I,
)
_HEADING = re.compile(r"^#{1,6}\s*(?:(?:answer|output|response) format|format|answer)\s*:?\s*", re.I)
_PLACEHOLDER = re.compile(
    r"^(?P<mark>`{3,}|~{3,})[^\n]*\n\s*(?:#|//|--)?\s*(?:your code(?: goes)? here|todo|\.\.\.)\s*\n"
    r"(?P=mark)[ \t]*$",
    re.I | re.M,
)
_FENCED = re.compile(r"(^(?P<mark>`{3,}|~{3,})[^\n]*\n.*?^(?P=mark)[ \t]*$)", re.S | re.M)
# Before a capital letter, a quotation or a bracket: not in "e.g. this" or "3.5".
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'“(\[A-Z\\$*])")
_GAPS = re.compile(r"\n{3,}")


def question_only(task: Task) -> Task:
    """The task whose last user message speaks of the question alone; the task itself if it did already."""
    message = task.question
    if message is None:
        return task
    content = message.raw.get("content")
    if isinstance(content, str):
        stripped: Any = without_form(content)
    else:
        stripped = tuple(_part(part) for part in message.parts)
    if stripped == content or not any(_text(p).strip() for p in _parts(stripped)):
        return task
    return task.replacing_question(message.with_content(stripped))


def without_form(text: str) -> str:
    """A text without the sentences and lines that say how the answer has to look.

    What stands in a code fence is left alone, unless it is only a place to put code. A sentence that asks
    something stays. If nothing would be left, the text is returned as it is.
    """
    if not (_FORM.search(text) or any(map(_HEADING.match, text.splitlines())) or _PLACEHOLDER.search(text)):
        return text
    pieces = []
    at = 0
    bare = _PLACEHOLDER.sub("", text)
    for fence in _FENCED.finditer(bare):
        pieces += [_prose(bare[at : fence.start()]), fence[0]]
        at = fence.end()
    pieces.append(_prose(bare[at:]))
    left = _GAPS.sub("\n\n", "".join(pieces)).strip()
    return left or text


def _prose(text: str) -> str:
    lines = []
    for line in text.split("\n"):
        heading = _HEADING.match(line)
        rest = line[heading.end() :] if heading else line
        kept = [s for s in _SENTENCE.split(rest) if s.rstrip().endswith("?") or not _FORM.search(s)]
        new = " ".join(kept)
        # A line of which nothing is left goes; an empty one was there before.
        if new.strip() or not line.strip():
            lines.append(line if new == rest and not heading else new)
    return "\n".join(lines)


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**part, "text": without_form(part["text"])} if part.get("type") == "text" else part


def _parts(content: Any) -> tuple[Mapping[str, Any], ...]:
    return ({"type": "text", "text": content},) if isinstance(content, str) else content


def _text(part: Mapping[str, Any]) -> str:
    return str(part.get("text", "")) if part.get("type") == "text" else "[media]"
