"""The choice of a judge, declared once for all techniques that score."""

from __future__ import annotations

from typing import Literal

from optillm.core.params import ApproachParams, field


class JudgeParams(ApproachParams):
    """Which judge scores the candidates, and how."""

    judge: Literal["absolute"] = field("absolute", "how candidates are scored")
    judge_model: str | None = field(None, "model that judges; the same if null")
    judge_samples: int = field(1, "ratings per candidate; their mean counts", ge=1, le=9)
    judge_temperature: float = field(0.1, "of the ratings", ge=0, le=2)
