"""A million tokens for a model with a window of 8,192: no prompt is longer, and the needle is found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from optillm.core.task import Task
from optillm.core.tokens import count, messages_tokens
from tests.fakes import Said, ScriptedUpstream, Seen
from tests.serving import serving

pytestmark = pytest.mark.anyio

WINDOW = 8192
NEEDLE = "The code of the safe is 4711."
QUESTION = "What is the code of the safe?"
PARAGRAPH = "The committee met on Tuesday and discussed the weather in the valley, which had been wet. "


def document() -> str:
    """Numbered paragraphs, with the needle at two thirds."""
    told = [f"{i}. {PARAGRAPH * 20}" for i in range(2450)]
    told.insert(1600, NEEDLE)
    return "\n\n".join(told)


def asked(technique: str, text: str) -> list[dict[str, str]]:
    if technique != "compact":
        return [{"role": "user", "content": f"{text}<CONTEXT_END>{QUESTION}"}]
    said = [text[i : i + 8000] for i in range(0, len(text), 8000)]
    turns = [{"role": ("user", "assistant")[i % 2], "content": s} for i, s in enumerate(said)]
    return [*turns[: len(turns) // 2 * 2], {"role": "user", "content": QUESTION}]


@pytest.mark.parametrize(
    ("technique", "fields"),
    [
        ("memory", {"memory_context_window": WINDOW, "max_tokens": 1024}),
        ("longcepo", {"longcepo_max_context_window": WINDOW, "longcepo_num_neighbor_summaries": 0}),
        ("compact", {"compact_context_window": WINDOW, "max_tokens": 1024}),
    ],
)
async def test_a_needle_in_a_million_tokens(technique: str, fields: dict[str, Any]) -> None:
    def script(call: Seen) -> Said:
        said = "\n".join(str(m["content"]) for m in call.messages)
        return NEEDLE if NEEDLE in said else "[NO INFORMATION] Nothing relevant."

    text = document()
    assert count(text) > 1_000_000
    async with ScriptedUpstream(script) as up, serving(up, max_upstream_calls=1000) as proxy:
        body = {"model": f"{technique}-m", "messages": asked(technique, text), **fields}
        answer = await proxy.post(json.dumps(body).encode())
        assert answer.text == NEEDLE
        assert len(up.calls) == answer.info["calls"] > count(text) / WINDOW
        sizes = [(messages_tokens(Task.of(c.messages).messages), c.stage) for c in up.calls]
        print(sorted(sizes)[-6:])
        longest = max(s for s, _ in sizes)
        assert longest <= WINDOW - 1024
