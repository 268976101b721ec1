"""Reading the lists that models write: questions, steps, observations."""

from __future__ import annotations

import re

from optillm.core.reply import Reply

_ITEM = re.compile(r"^[ \t]{0,8}(?:Q?\d{1,2}[.):]|[-*•])[ \t]+(?P<item>\S[^\n]*)$", re.M | re.I)
_NONE = re.compile(r"\W{0,4}none\W{0,4}", re.I)


def list_items(reply: Reply, most: int) -> list[str]:
    """The items of a list, without repetitions.

    They are the numbered or bulleted lines; without any, the lines that ask something; without these, all
    lines but those that end in a colon. The word "none" is an empty list. The last item of a truncated
    reply is left out, for it may be cut.

    Args:
        reply: what the model wrote.
        most: how many items to take, from the first.
    """
    text = reply.visible
    if _NONE.fullmatch(text):
        return []
    found = [m["item"] for m in _ITEM.finditer(text)]
    lines = [line.strip() for line in text.splitlines()]
    found = found or [line for line in lines if line.endswith("?")]
    found = found or [line for line in lines if not line.endswith(":")]
    if reply.truncated:
        found = found[:-1]
    items = (line.strip().strip("*_").strip() for line in found)
    return list(dict.fromkeys(item for item in items if item))[:most]
