"""The choice of a judge, declared once for all techniques that score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from optillm.core.params import ApproachParams, field

VERIFICATIONS = 5
"""How often ``verify`` checks a candidate unless told otherwise."""


class ComparisonParams(ApproachParams):
    """How candidates are compared; see :func:`~optillm.core.judges.pairwise.compare`."""

    judge_model: str | None = field(None, "model that judges; the same if null")
    judge_samples: int | None = field(None, "comparisons of each pair, each in both orders", ge=1, le=32)
    judge_temperature: float = field(0.1, "of the judgements", ge=0, le=2)

    @property
    def times(self) -> int:
        """Judgements of each pair."""
        return self.judge_samples or 1


class JudgeParams(ComparisonParams):
    """Which judge scores the candidates, and how."""

    judge: Literal["absolute", "pairwise", "aspects", "verify", "checklist", "tests", "exact", "reward"] = (
        field("absolute", "how candidates are scored; see the page on judges")
    )
    judge_samples: int | None = field(
        None, "judgements per candidate (per pair, per aspect); null: 1, for verify 5", ge=1, le=32
    )
    judge_aspects: tuple[str, ...] = field(
        (), "what aspects checks, one verifier each; empty: five of its own", le=16
    )
    judge_reference: str | None = field(None, "the known answer that exact compares with")

    @property
    def times(self) -> int:
        """Judgements per candidate, pair or aspect."""
        return self.judge_samples or (VERIFICATIONS if self.judge == "verify" else 1)

    @property
    def needs(self) -> frozenset[str]:
        """What the server must have for this judge."""
        return {"tests": frozenset({"sandbox"}), "reward": frozenset({"reward"})}.get(self.judge, frozenset())

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """``exact`` needs its reference."""
        if self.judge == "exact" and self.judge_reference is None:
            yield "judge_reference", "is needed by judge=exact: the known answer"
