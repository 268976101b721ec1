"""How many tokens a text has, about: no upstream tells its vocabulary.

Exact counts need the model's own tokenizer, which a proxy does not have: it is not part of the protocol,
and fetching vocabularies would need the network and, for many models, a licence. So tokens are estimated
from how many characters of each kind a text has, with weights on the safe side.

Error, measured against the embedded model's vocabulary (49,000 entries, made for English): English prose,
code and Markdown from 0 % to 50 % above; numbers, JSON and base64 from 10 % to 30 % below; other European
languages 20 % below, Chinese, Japanese, Arabic and Thai 15 % to 35 % below, Korean 45 % below, because such
a vocabulary spells them out by the byte. Vocabularies of newer models (100,000 entries and more, of all
languages) need fewer tokens for the same text, so for them the estimate is on the high side. Who reads such
languages with a model made for English sets chunk sizes a third smaller.

The estimate is additive: a text has as many tokens as its halves together, to rounding, except for runs
without spaces (base64, hashes), which are counted within a piece of the text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from optillm.core.task import Message

IMAGE_TOKENS = 1000
"""What an image or another medium is counted as; models differ from 85 to several thousand."""
MESSAGE_TOKENS = 4
"""The marks of a chat template around a message."""

_PIECE = 1 << 16
_SHORTEST_RUN = 25
_RUN = re.compile(rb"[A-Za-z0-9+/=_-]{25,}")
_IN_RUNS = 0.35
"""What a character within a run without spaces weighs beside its kind."""


def _kinds() -> tuple[tuple[bytes, float], ...]:
    """Bytes of each kind of character, and its weight."""
    control = bytes([*range(9), 11, 12, *range(14, 32), 127])
    return (
        (string.ascii_lowercase.encode(), 0.27),
        (string.ascii_uppercase.encode(), 0.45),
        (string.digits.encode(), 0.9),
        (b" \t\r", 0.1),
        (b"\n", 0.3),
        (string.punctuation.encode(), 0.6),
        (control, 1.0),
        # By the first byte of a character in UTF-8: two bytes (Greek, Cyrillic, Arabic, accents), three
        # (Chinese, Japanese, Korean, Indian scripts, Thai), four (emoji, rare characters).
        (bytes(range(0xC2, 0xE0)), 0.75),
        (bytes(range(0xE0, 0xF0)), 1.5),
        (bytes(range(0xF0, 0xF5)), 2.5),
    )


def weigh(text: str) -> float:
    """The estimate before rounding: additive. Reads about 100 MB a second."""
    total, kinds = 0.0, _kinds()
    for start in range(0, len(text), _PIECE):
        data = text[start : start + _PIECE].encode("utf-8", "replace")
        size = len(data)
        for kind, weight in kinds:
            total += weight * (size - len(data.translate(None, kind)))
        # Words are told apart much faster than runs are found, and few texts have any.
        if max(map(len, data.split()), default=0) >= _SHORTEST_RUN:
            total += _IN_RUNS * sum(len(run) for run in _RUN.findall(data))
    return total


def over(text: str, limit: float) -> bool:
    """Whether a text has more than so many tokens; reads no more of it than it takes to tell."""
    for start in range(0, len(text), _PIECE):
        limit -= weigh(text[start : start + _PIECE])
        if limit < 0:
            return True
    return False


def count(text: str) -> int:
    """About how many tokens a text has: 0 for the empty one, else at least 1."""
    return max(1, round(weigh(text))) if text else 0


def message_tokens(message: Message) -> int:
    """About how many tokens a message has, with its images and tool calls."""
    total = MESSAGE_TOKENS + count(message.text)
    total += IMAGE_TOKENS * len([p for p in message.parts if p.get("type") != "text"])
    for call in message.raw.get("tool_calls") or ():
        function = call.get("function") or call.get("custom") or {}
        total += MESSAGE_TOKENS + count(f"{function.get('name')}{function.get('arguments', '')}")
    return total


def messages_tokens(messages: Iterable[Message]) -> int:
    """About how many tokens messages have together."""
    return sum(message_tokens(m) for m in messages)
