"""What the tests of several techniques share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from optillm.core.params import build
from optillm.core.registry import Approach
from tests.fakes import Reply

CALL = ("c1", "look", "{}")


def params(approach: Approach, **values: Any) -> Any:
    """An approach's parameters, the rest at their defaults."""
    return build(approach.params_class, approach.params, values)


def worst(approach: Approach, **values: Any) -> int:
    """The most calls that these parameters can take with an upstream that has no ``n``."""
    assert approach.worst is not None
    return approach.worst(params(approach, **values), lambda k: k)


def calls_a_tool() -> Reply:
    """A reply that calls a tool and says nothing."""
    return Reply(None, finish="tool_calls", tool_calls=(tool_call(),))


def tool_call() -> dict[str, Any]:
    """A call of the tool, as an upstream sends it."""
    number, name, arguments = CALL
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool() -> dict[str, Any]:
    """The tool as a client offers it."""
    return {"type": "function", "function": {"name": CALL[1], "parameters": {"type": "object"}}}


def pictured(text: str) -> list[dict[str, Any]]:
    """A question with an image."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    return [{"type": "text", "text": text}, image]


def images(messages: Sequence[dict[str, Any]]) -> int:
    """How many images stand in messages."""
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
    return sum(p["type"] == "image_url" for p in parts)


def streamed(events: Sequence[str], key: str = "content") -> str:
    """The text of the first choice of a streamed answer."""
    assert events[-1] == "[DONE]"
    deltas = [c["delta"] for e in events[:-1] if e[0] == "{" for c in json.loads(e)["choices"]]
    return "".join(d.get(key) or "" for d in deltas)
