"""What an approach that routes decides with, and what it decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optillm.core.frozen import empty
from optillm.core.routing.model import RoutingModel


@dataclass(frozen=True)
class Scene:
    """What a decision is made with, besides the question.

    Args:
        model: what is expected of whom.
        closed: candidates that cannot run here and now, with the reason; all others can.
        dear: candidates that could, but would end too early, with the reason.
    """

    model: RoutingModel
    closed: Mapping[str, str] = field(default_factory=empty)
    dear: Mapping[str, str] = field(default_factory=empty)


@dataclass(frozen=True)
class Decision:
    """What runs, and why.

    Args:
        approach: a candidate of the model.
        why: for the trace: JSON values.
    """

    approach: str
    why: Mapping[str, Any]
