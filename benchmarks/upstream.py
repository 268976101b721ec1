"""An upstream that costs little and says the same kind of thing to everybody.

The name of the model says how it behaves: ``wait100`` answers after 100 ms and honours ``n``,
``wait100single`` answers with one choice whatever ``n`` is, ``wait100spread`` after 50 to 150 ms. The
text fits every kind of helper prompt: it has steps, a score, a choice and a final answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import orjson

from benchmarks.asgi import body_of, respond, run

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

MODEL = re.compile(r"wait(\d+)(single|spread)?")
MODELS = ("wait0", "wait0single", "wait100", "wait100single", "wait100spread", "wait30000")


def text_of(number: int) -> str:
    """What every call is told; numbered, so that no two replies are the same."""
    return (
        f"Draft {number}.\n"
        "1. Split the question into its parts.\n"
        "2. Work out each part, then put them together.\n\n"
        "The parts are 20 and 22, and together they are 42.\n"
        "Choice: 1\n"
        "Final answer: 42\n"
        "Score: 0.5"
    )


def completion(model: str, numbers: Iterator[int], choices: int) -> bytes:
    """A chat completion."""
    return orjson.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1700000000,
            "model": model,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text_of(next(numbers)), "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
                for index in range(choices)
            ],
            "usage": {
                "prompt_tokens": 40,
                "completion_tokens": 60 * choices,
                "total_tokens": 40 + 60 * choices,
            },
        }
    )


class Upstream:
    """The ASGI application."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.waiting = 0
        models = [{"id": m, "object": "model", "created": 1, "owned_by": "bench"} for m in MODELS]
        self.models = json.dumps({"object": "list", "data": models}).encode()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        body = await body_of(receive)
        if scope["path"] == "/v1/models":
            return await respond(send, self.models)
        if scope["path"] == "/waiting":
            return await respond(send, orjson.dumps({"waiting": self.waiting}))
        asked = orjson.loads(body)
        behaviour = MODEL.fullmatch(asked["model"])
        if behaviour is None:
            return await respond(send, b'{"error":{"message":"unknown model"}}', 404)
        if behaviour[1] != "0":
            seconds = int(behaviour[1]) / 1000
            if behaviour[2] == "spread":
                # Every tenth in turn, in an order that keeps neighbours apart.
                seconds *= 0.5 + next(self.numbers) * 7 % 11 / 10
            self.waiting += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self.waiting -= 1
        choices = 1 if behaviour[2] == "single" else asked.get("n") or 1
        return await respond(send, completion(asked["model"], self.numbers, choices))


if __name__ == "__main__":
    run(Upstream())
