"""Reading the lists that models write: questions, steps, observations."""

from __future__ import annotations

import re
from collections.abc import Sequence

from optillm.core.reply import Reply

_ITEM = re.compile(r"^\s*(?:Q?\d{1,2}[.):]|[-*•])\s+(?P<item>\S.*)$", re.I)
_NONE = re.compile(r"\W{0,4}none\W{0,4}", re.I)


def list_items(text: str, most: int, *, cut: bool = False) -> list[str]:
    """The items of a numbered or bulleted list, one per line.

    Without any, the non-empty lines that do not end in a colon.

    Args:
        text: the list, with or without words around it.
        most: how many items to take.
        cut: the text was cut off, so its last line is not complete.
    """
    lines = _lines(text, cut)
    return (_items(lines) or _plain(lines))[:most]


def questions(reply: Reply, most: int) -> list[str]:
    """The questions that a reply lists, each once.

    They are the items of a list; without any, the lines that ask something; without these, all lines that
    do not end in a colon. The word "none" is an empty list.

    Args:
        reply: what the model wrote; the last line of a truncated one is left out.
        most: how many to take, from the first.
    """
    text = reply.visible
    if _NONE.fullmatch(text):
        return []
    lines = _lines(text, reply.truncated)
    found = _items(lines) or [line for line in lines if line.endswith("?")] or _plain(lines)
    bare = (item.strip("*_").strip() for item in found)
    return list(dict.fromkeys(item for item in bare if item))[:most]


def _lines(text: str, cut: bool) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return lines[:-1] if cut and not text.endswith("\n") else lines


def _items(lines: Sequence[str]) -> list[str]:
    return [m["item"] for line in lines if (m := _ITEM.match(line))]


def _plain(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line and not line.endswith(":")]
