"""Programs in replies; shared by the techniques of this folder."""

from __future__ import annotations

import re

from optillm.core.answers import fences, strip_think
from optillm.core.reply import Reply

_PYTHON = re.compile(r"\W{0,3}(python3?|py)\b", re.I)


def program_of(reply: Reply) -> str | None:
    """The program in a reply: the longest Python block, else the longest without a language."""
    blocks = [b for b in fences(strip_think(reply.text), reply.truncated) if b.code.strip()]
    named = [b.code for b in blocks if _PYTHON.match(b.info)]
    plain = [b.code for b in blocks if not b.info]
    return max(named or plain, key=len, default=None)
