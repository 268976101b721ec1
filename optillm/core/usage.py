"""What upstream calls cost: tokens, and money where a price is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one call, or of many added up.

    Args:
        prompt, completion: tokens read and written.
        reasoning: the part of ``completion`` spent on hidden reasoning.
        cached: the part of ``prompt`` that the upstream had cached.
        estimated: some of it was not counted by the upstream.
        cost: US dollars, or None when no price is known.
    """

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0
    estimated: bool = False
    cost: float | None = None

    @property
    def total(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt + self.completion

    def __add__(self, other: Usage) -> Usage:
        cost = other.cost if self.cost is None else self.cost + (other.cost or 0.0)
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
            self.cached + other.cached,
            self.estimated or other.estimated,
            cost,
        )

    def to_dict(self) -> dict[str, Any]:
        """The ``usage`` object of a chat completion."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.total,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


class Reasoned(Protocol):
    """A choice that may show its reasoning."""

    @property
    def reasoning(self) -> str:
        """The text of it."""
        ...


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens of one model."""

    input: float
    output: float

    def of(self, prompt: int, completion: int) -> float:
        """What these tokens cost."""
        return (prompt * self.input + completion * self.output) / 1e6


def read_usage(body: Mapping[str, Any] | None, price: Price | None, replies: Sequence[Reasoned]) -> Usage:
    """The usage of one reply.

    Args:
        body: the upstream's ``usage`` object, or None when it sent none.
        price: what the model costs, if known; an upstream's own ``cost`` beats it.
        replies: its choices; the reasoning that they show counts for upstreams that do not count it.
    """
    if body is None:
        return Usage(estimated=True, cost=0.0 if price else None)
    prompt, completion = _count(body, "prompt_tokens"), _count(body, "completion_tokens")
    details = body.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if not isinstance(reasoning, int):
        shown = "".join(reply.reasoning for reply in replies)
        reasoning = min(estimate_tokens(shown), completion or 1 << 60)
    prompt_details = body.get("prompt_tokens_details")
    cached = _count(prompt_details, "cached_tokens") if isinstance(prompt_details, dict) else 0
    cost = body.get("cost")
    if not isinstance(cost, int | float) or not math.isfinite(cost):
        cost = price.of(prompt, completion) if price else None
    return Usage(prompt, completion, reasoning, cached, cost=cost)


def estimate_tokens(text: str) -> int:
    """A guess at the tokens of a text: a quarter of its characters, at least 1 if there are any."""
    return math.ceil(len(text) / 4)


def _count(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key)
    return value if isinstance(value, int) and value >= 0 else 0
