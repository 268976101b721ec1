"""A routing model: what each technique is expected to score on a prompt, and to cost.

Per candidate a logistic regression over the features, calibrated by a table of steps (isotonic regression),
for the score; a linear one over the counts and flags for the logarithm of the cost. Costs are in plain
replies: 1 is what one reply without a technique costs. A further logistic curve tells how likely a choice
is to do at least as well as the fall-back.

The file is JSON; ``optillm train-router`` writes it, and reading it takes no library.
"""

from __future__ import annotations

import binascii
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from optillm.core.routing.features import BUCKETS, DENSE, WORDS, Features
from optillm.core.routing.features import VERSION as FEATURES

FORMAT = "optillm-router"
VERSION = 1
FALLBACK = "self_consistency"
"""What runs when the model is not sure of its choice."""

SHIPPED = Path(__file__).parent / "model.json"


class ModelFileError(ValueError):
    """A model file that cannot be used; the message is one sentence for people."""


@dataclass(frozen=True)
class Estimate:
    """What is expected of one candidate.

    Args:
        approach: a slug or a composition.
        score: 0 to 1.
        cost: in plain replies.
    """

    approach: str
    score: float
    cost: float


@dataclass(frozen=True)
class Head:
    """The weights of one candidate.

    Args:
        approach: a slug or a composition.
        bias, dense, hashed: of the raw score, by the order of the features.
        steps: raw scores and what they turned out to mean, both rising.
        cost_bias, cost_dense: of the logarithm of the cost.
        cost_range: the least and the greatest cost that was seen.
    """

    approach: str
    bias: float
    dense: tuple[float, ...]
    hashed: tuple[float, ...]
    steps: tuple[tuple[float, float], ...]
    cost_bias: float
    cost_dense: tuple[float, ...]
    cost_range: tuple[float, float]

    def estimate(self, f: Features) -> Estimate:
        """What is expected on a prompt."""
        raw = self.bias + dot(self.dense, f.dense)
        raw += sum([self.hashed[bucket] * value for bucket, value in f.hashed.items()])
        logarithm = self.cost_bias + dot(self.cost_dense, f.dense)
        least, most = self.cost_range
        cost = math.exp(min(max(logarithm, math.log(least)), math.log(most)))
        return Estimate(self.approach, between(self.steps, raw), cost)


@dataclass(frozen=True)
class Confidence:
    """How sure a choice is: a logistic curve of its margin and of how familiar the prompt is."""

    bias: float
    margin: float
    familiar: float

    def of(self, margin: float, familiar: float) -> float:
        """The chance, 0 to 1, that a choice does at least as well as its rival."""
        return logistic(self.bias + self.margin * margin + self.familiar * familiar)


@dataclass(frozen=True)
class RoutingModel:
    """Estimates for every candidate that it was trained on.

    Args:
        heads: the candidates.
        baseline: the one that stands for a single plain reply.
        confidence: of choices.
        seen: words that stood in training prompts, as bits.
        metadata: what it was trained on, when, and how well it did.
    """

    heads: tuple[Head, ...]
    baseline: str
    confidence: Confidence
    seen: bytes
    metadata: Mapping[str, Any]

    @cached_property
    def approaches(self) -> tuple[str, ...]:
        """The candidates, as they are written in requests."""
        return tuple(head.approach for head in self.heads)

    def estimates(self, f: Features) -> tuple[Estimate, ...]:
        """What is expected of every candidate, in the order of the file."""
        return tuple([head.estimate(f) for head in self.heads])

    def familiar(self, f: Features) -> float:
        """The share of a prompt's words that stood in training prompts, 0 to 1."""
        if not f.words:
            return 0.0
        return sum(self.seen[w >> 3] >> (w & 7) & 1 for w in f.words) / len(f.words)


class ModelFile:
    """The model of a process, read when it is first wanted.

    Args:
        path: of the file; empty for the one that comes with the package.
    """

    def __init__(self, path: str = "") -> None:
        self.path = Path(path).expanduser() if path else SHIPPED

    @cached_property
    def loaded(self) -> RoutingModel | ModelFileError:
        """The model, or what is wrong with its file."""
        try:
            return load(self.path)
        except ModelFileError as error:
            return error


def load(path: Path) -> RoutingModel:
    """The model of a file.

    Raises:
        ModelFileError: it cannot be read, is of another version, or is not well formed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read the routing model {path}: {error.strerror}") from None
    try:
        return parse(data)
    except ModelFileError as error:
        raise ModelFileError(f"the routing model {path} {error}") from None


def parse(data: bytes) -> RoutingModel:
    """The model that is written in JSON.

    Raises:
        ModelFileError: a sentence without its subject, the file.
    """
    try:
        head = msgspec.json.decode(data, type=_Kind)
    except msgspec.MsgspecError as error:
        raise ModelFileError(f"is not a routing model: {error}") from None
    if head.format != FORMAT:
        raise ModelFileError(f"is not a routing model: its format is '{head.format[:60]}', not '{FORMAT}'")
    if head.version != VERSION or head.features != FEATURES:
        raise ModelFileError(
            f"has version {head.version} with features {head.features}, and this version of OptiLLM reads "
            f"version {VERSION} with features {FEATURES}: train it again with 'optillm train-router'"
        )
    try:
        written = msgspec.json.decode(data, type=Written)
        return _model(written)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelFileError(f"is damaged: {error}") from None


def render(model: RoutingModel) -> bytes:
    """The file of a model, a line per candidate; equal models give equal files."""
    heads = [
        {
            "approach": h.approach,
            "bias": h.bias,
            "dense": h.dense,
            "hashed": {str(i): w for i, w in enumerate(h.hashed) if w},
            "steps": h.steps,
            "cost_bias": h.cost_bias,
            "cost_dense": h.cost_dense,
            "cost_range": h.cost_range,
        }
        for h in model.heads
    ]
    c = model.confidence
    rest = {
        "format": FORMAT,
        "version": VERSION,
        "features": FEATURES,
        "baseline": model.baseline,
        "confidence": {"bias": c.bias, "margin": c.margin, "familiar": c.familiar},
        "dense": DENSE,
        "seen": model.seen.hex(),
        "metadata": model.metadata,
    }
    lines = [b"%s:%s" % (_json(k), _json(v)) for k, v in rest.items()]
    lines.append(b'"candidates":[\n' + b",\n".join(_json(h) for h in heads) + b"\n]")
    return b"{" + b",\n".join(lines) + b"}\n"


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """The scalar product."""
    return sum([x * y for x, y in zip(a, b, strict=True)])


def logistic(x: float) -> float:
    """1 / (1 + e^-x), for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def between(steps: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x on the line through the points; beyond its ends, that of the end."""
    at = bisect_right(steps, x, key=lambda s: s[0])
    if at in (0, len(steps)):
        return steps[min(at, len(steps) - 1)][1]
    (x0, y0), (x1, y1) = steps[at - 1], steps[at]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


class _Kind(msgspec.Struct):
    format: str
    version: int
    features: int


class _Curve(msgspec.Struct):
    bias: float
    margin: float
    familiar: float


class _Candidate(msgspec.Struct):
    approach: str
    bias: float
    dense: tuple[float, ...]
    hashed: dict[str, float]
    steps: tuple[tuple[float, float], ...]
    cost_bias: float
    cost_dense: tuple[float, ...]
    cost_range: tuple[float, float]


class Written(msgspec.Struct):
    """The file, as it is written."""

    baseline: str
    confidence: _Curve
    dense: tuple[str, ...]
    seen: str
    metadata: dict[str, Any]
    candidates: list[_Candidate]


def _model(w: Written) -> RoutingModel:
    if w.dense != DENSE:
        raise ValueError("its features have other names")
    names = [c.approach for c in w.candidates]
    if len(set(names)) < len(names) or w.baseline not in names:
        raise ValueError(f"candidates must differ and include the baseline '{w.baseline}': {names}")
    try:
        seen = binascii.unhexlify(w.seen)
    except binascii.Error:
        seen = b""
    if len(seen) != WORDS // 8:
        raise ValueError(f"'seen' must be {WORDS // 4} hexadecimal digits")
    c = w.confidence
    return RoutingModel(
        tuple(map(_head, w.candidates)),
        w.baseline,
        Confidence(c.bias, c.margin, c.familiar),
        seen,
        MappingProxyType(w.metadata),
    )


def _head(c: _Candidate) -> Head:
    if len(c.dense) != len(DENSE) or len(c.cost_dense) != len(DENSE):
        raise ValueError(f"'{c.approach}' needs {len(DENSE)} weights of each kind")
    if not c.steps or any(a[0] >= b[0] for a, b in pairwise(c.steps)):
        raise ValueError(f"the steps of '{c.approach}' must rise")
    if not 0 < c.cost_range[0] <= c.cost_range[1]:
        raise ValueError(f"the costs of '{c.approach}' must be over 0")
    hashed = [0.0] * BUCKETS
    for bucket, weight in c.hashed.items():
        if not (bucket.isdigit() and int(bucket) < BUCKETS):
            raise ValueError(f"'{c.approach}' has a weight for bucket '{bucket}'")
        hashed[int(bucket)] = weight
    return Head(c.approach, c.bias, c.dense, tuple(hashed), c.steps, c.cost_bias, c.cost_dense, c.cost_range)


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=dict)
