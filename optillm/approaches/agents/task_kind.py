"""What kind of question it is, what stands for a solution in a vote, and what of it the client gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from optillm.core.answers import fences, final_answer
from optillm.core.frozen import freeze
from optillm.core.public_tests import find_tests
from optillm.core.reply import Reply
from optillm.core.task import Task

Kind = Literal["math", "code", "general"]
LOOKED_AT = 20_000
"""Characters of a question that tell its kind."""

_WRITES = r"(?:write|implement|complete|create|fix|code|develop|refactor|generate|solve|rewrite|optimi[sz]e)"
_PROGRAM = (
    r"(?:function|program|code|class (?:that|named|called)|algorithm|regex|unit tests?|python|java|javascript"
    r"|typescript|c\+\+|rust|golang|bash|sql|html)"
)
_CODE = re.compile(
    rf"\b{_WRITES}\b[^.\n]{{0,80}}\b{_PROGRAM}(?!\w)|^\s*(?:async )?def \w+\(.*\).*:\s*$", re.I | re.M
)
_MATH = re.compile(
    r"\$[^$\n]+\$|\\(?:frac|sqrt|sum|int|boxed|binom|cdot|times|le|ge|pmod)\b|\\[\[(]"
    r"|\b(?:how (?:many|much|long|far|old)|solve|compute|calculate|evaluate|integer|equation|probability"
    r"|remainder|theorem|prove|triangle|polynomial|percent)\b"
    r"|\d\s*(?:[-+*/×^=]|plus|minus|times|divided by|mod(?:ulo)?)\s*\d",
    re.I,
)
_PROOF = re.compile(r"\b(?:prove|proof|show that|derive|explain)\b", re.I)


@dataclass(frozen=True)
class Form:
    """How solutions of a task are asked for and read.

    Args:
        kind: of the question; it decides the instruction to be rigorous.
        extracts: what is taken out as the answer: ``math``, ``code`` or None for nothing.
    """

    kind: Kind
    extracts: Literal["math", "code"] | None

    def answer(self, reply: Reply) -> str | None:
        """What a solution stands for in a vote: its tool calls, its program, or its short answer."""
        if reply.tool_calls:
            return reply.rendered
        if self.kind == "code":
            block = code_block(reply)
            return None if block is None else f"program {block[1]}"
        return final_answer(reply.text)

    def clean(self, reply: Reply) -> str:
        """The answer without its derivation; the whole text where none can be taken out."""
        text = reply.visible
        if self.extracts == "code":
            block = code_block(reply)
            return text if block is None else block[0]
        if self.extracts == "math":
            last = text.rsplit("\n\n", 1)[-1].strip()
            return (
                last if final_answer(text) is not None and final_answer(last) == final_answer(text) else text
            )
        return text


def form_of(task: Task, mode: str) -> Form:
    """The form of a task.

    Args:
        task: what was asked.
        mode: ``auto``, ``code``, ``math`` or ``none``, see the parameter.
    """
    kind = kind_of(task.text)
    if mode in ("code", "math"):
        chosen: Literal["math", "code"] = "code" if mode == "code" else "math"
        return Form(chosen, chosen)
    wanted: Any = task.options.fields.get("response_format")
    formatted = isinstance(wanted, Mapping) and wanted.get("type") != "text"
    proof = kind == "math" and _PROOF.search(task.text[-LOOKED_AT:]) is not None
    if mode == "none" or formatted or proof or kind == "general":
        return Form(kind, None)
    return Form(kind, kind)


def kind_of(text: str) -> Kind:
    """Whether a question asks for a program, for mathematics, or for something else."""
    text = text[-LOOKED_AT:]
    if _CODE.search(text) or find_tests(text) is not None:
        return "code"
    return "math" if _MATH.search(text) else "general"


def code_block(reply: Reply) -> tuple[str, str] | None:
    """The longest fenced block of a reply, with its fence and without, or None."""
    blocks = fences(reply.visible, reply.truncated)
    if not blocks:
        return None
    longest = max(blocks, key=lambda b: len(b.code))
    mark = "```"
    while mark in longest.code:
        mark += "`"
    return f"{mark}{longest.info}\n{longest.code}\n{mark}", longest.code


def presented(reply: Reply, form: Form, *, full: bool, tags: bool) -> Reply:
    """The reply as the client gets it: the answer as content, what led to it as reasoning.

    Args:
        reply: the solution; a tool call stays as it is.
        form: what is taken out of it.
        full: the client wants the reasoning in the content.
        tags: between ``<think>`` tags; else the solution's text as it is.
    """
    if not reply.visible:
        return reply
    clean = form.clean(reply)
    if full and not tags:
        return reply
    derived = reply.visible if clean != reply.visible else ""
    reasoning = "\n\n".join(part for part in (reply.reasoning, derived) if part)
    hidden = ("reasoning_content", "reasoning")
    message = {key: value for key, value in reply.message.items() if key not in hidden}
    # What is left of the text no longer fits the log probabilities.
    plain = replace(reply, message=freeze(message), logprobs=None if derived or full else reply.logprobs)
    if not full:
        return plain.with_text(clean, reasoning)
    return plain.with_text(f"<think>\n{reasoning}\n</think>\n\n{clean}" if reasoning else clean)
