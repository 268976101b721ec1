"""Mixture of agents: several proposals, a critique, one synthesis.

In the paper (arXiv:2406.04692) layers of several models answer, each seeing what the layer before answered,
and one aggregator writes the reply. Patched MOA (arXiv:2407.18521) is the simplification that is this
technique's default: one model, three proposals, one critique of them all, one synthesis.
``moa_preset=paper`` and ``lite`` are the paper's own shapes, with models from ``moa_models``; so is
``mixture``, whose parameters can be set one by one.

Proposals that are empty are dropped. With one left it is returned as it is. A critique that fails is left
out; when the synthesis fails or is empty, the first complete proposal is returned.

Use it for open questions, where several drafts have different merits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from optillm.approaches.sampling.agents import Agents
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply
from optillm.core.task import Task

PROPOSERS, LAYERS, CRITIQUE = 3, 1, True


class Params(ApproachParams):
    """Parameters of ``moa``."""

    preset: Literal["patched", "lite", "paper"] = field(
        "patched",
        "the shape: patched as the other parameters say; of the paper, 6 proposers without a critique, "
        "before the aggregator in one layer (lite) or in two",
    )
    proposers: int = field(PROPOSERS, "proposals per layer", ge=2, le=16)
    layers: int = field(LAYERS, "layers of proposers; each sees the layer before", ge=1, le=4)
    models: tuple[str, ...] = field((), "models to cycle over the proposers; empty: the same", le=16)
    aggregator_model: str | None = field(None, "model of critique and synthesis; the same if null")
    critique: bool = field(CRITIQUE, "criticise the proposals before the synthesis")
    temperature: float = field(1.0, "of the proposals", ge=0, le=2)
    final_temperature: float = field(0.1, "of critique and synthesis", ge=0, le=2)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """A preset is a shape of its own."""
        if self.preset == "patched":
            return
        shape = (("proposers", PROPOSERS), ("layers", LAYERS), ("critique", CRITIQUE))
        for name, default in shape:
            if getattr(self, name) != default:
                yield name, f"is set by moa_preset={self.preset}; 'mixture' takes both"

    @property
    def agents(self) -> Agents:
        """What the parameters describe."""
        # The paper counts the aggregator as a layer: 3 of its layers are 2 of proposers.
        shape = {"patched": (self.proposers, self.layers, self.critique), "lite": (6, 1, False)}
        proposers, layers, critique = shape.get(self.preset, (6, 2, False))
        return Agents(
            "moa",
            proposers,
            layers,
            self.models,
            self.aggregator_model,
            critique,
            self.temperature,
            self.final_temperature,
        )


async def aggregate(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Criticise the candidates of others, then write one reply from them."""
    return await p.agents.aggregate(task, llm, candidates)


@approach(
    "moa",
    family="sampling",
    title="Mixture of agents",
    paper="arXiv:2406.04692, arXiv:2407.18521",
    calls="L·σ(P) + κ + 1 (L·P + κ + 1 with moa_models)",
    depth="L + κ + 1",
    worst=lambda p, sigma: p.agents.worst(sigma),
    reduce=aggregate,
    worst_reduce=lambda p, candidates: p.agents.worst_aggregation(candidates),
)
async def moa(task: Task, llm: LLM, p: Params) -> Answer:
    """Propose in layers, criticise, synthesise."""
    return await p.agents.run(task, llm)
