"""Whether answers are the same mathematics, however they are written: by ``math-verify`` in the sandbox.

Votes over samples (:func:`optillm.core.voting.count_votes`) and the judge ``exact`` compare so. Searches and
agents, which compare answers at every step, go by text and number alone: ``core/answers.py``. Without a
sandbox, or ``math-verify`` in it, the rule of ``core/answers.py`` holds everywhere; a note in the trace,
``mathematics.not_compared``, tells when there was something that it cannot compare.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from optillm.core.answers import norm_answer
from optillm.core.llm import LLM
from optillm.protocol.errors import SandboxUnavailable

# Its parser may take forever, and is ended with the sandbox; so it needs no time-outs of its own.
_COMPARE = """\
import json, sys
from math_verify import parse, verify

def same(known, given):
    try:
        return verify(*(parse(text, parsing_timeout=None) for text in (known, given)), timeout_seconds=None)
    except Exception:
        return False

texts = json.load(sys.stdin)
firsts = []
for i, text in enumerate(texts):
    firsts.append(next((j for j in range(i) if firsts[j] == j and same(texts[j], text)), i))
print(json.dumps(firsts))
"""
_SECONDS = 10.0
_LONGEST = 2000
_MOST = 32
# Macros, powers, roots, equations, sets, intervals, and letters beside operators.
_MATHEMATICS = re.compile(r"[\\^√π=∞∪]|\{.*\}|[\[(].*,.*[\])]|[a-z0-9)]\s*[*/+]\s*[a-z0-9(]|\d[a-z]\b", re.I)


def formula(answer: str) -> str:
    """A short answer marked as mathematics: in plain text only numbers are looked for, and 2x would be 2."""
    return answer if "$" in answer else f"${answer}$"


async def equal_answers(llm: LLM, answers: Sequence[str]) -> list[int] | None:
    """For each answer the index of the first that it equals, its own if none does.

    Args:
        llm: of the run.
        answers: short ones as :func:`formula` marks them, or texts that hold one.

    Returns:
        None if they could not be compared: there is no ``math-verify``, or it took too long.

    Raises:
        SandboxUnavailable: there is none to compare them in.
    """
    given = json.dumps([answer[-_LONGEST:] for answer in answers])
    ran = await llm.sandbox.run(_COMPARE, timeout=_SECONDS, stdin=given)
    return [int(first) for first in json.loads(ran.stdout)] if ran.ok else None


async def merged(llm: LLM, groups: Sequence[Sequence[int]], answers: Sequence[str | None]) -> list[list[int]]:
    """Groups of voters, those together whose answers are the same mathematics.

    Plain words and numbers are left as they are: whoever only has these never needs the sandbox. Without
    one, all are.

    Args:
        groups: voters of equal answers, by index.
        answers: of all voters.
    """
    firsts = [answers[group[0]] or "" for group in groups]
    mathematics = [i for i, text in enumerate(firsts) if _MATHEMATICS.search(text)]
    numbers = [i for i, text in enumerate(firsts) if norm_answer(text).number is not None]
    compared = sorted({*mathematics, *numbers})[:_MOST]
    if len(compared) < 2 or not set(mathematics) - set(numbers):
        return [list(group) for group in groups]
    reason = "math-verify is missing, or took too long"
    try:
        equal = await equal_answers(llm, [formula(firsts[i]) for i in compared])
    except SandboxUnavailable as error:
        equal, reason = None, error.message
    if equal is None:
        await llm.note("mathematics.not_compared", answers=[firsts[i] for i in compared], reason=reason)
        return [list(group) for group in groups]
    out: dict[int, list[int]] = {i: list(group) for i, group in enumerate(groups)}
    for i, first in zip(compared, equal, strict=True):
        if compared[first] != i:
            out[compared[first]] = sorted(out[compared[first]] + out.pop(i))
    return list(out.values())
