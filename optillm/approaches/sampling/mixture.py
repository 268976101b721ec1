"""Mixture of several models: layers of different models answer, and one fuses their answers.

This is mixture of agents as in its paper (arXiv:2406.04692). Every layer has P proposers, each a different
model; those of the second layer see all answers of the first, are told to combine them critically, and so
on; the last layer is one aggregator, which writes the reply. What one model misses another knows, and
models answer better when they see the answers of others, even of weaker ones.

The paper's shape is the default: 6 proposers and 3 layers, of which the last is the aggregator; 2 layers
are its MoA-Lite. Each model in ``mixture_models`` is called where the server's routes say, so that they may
live with different providers; with fewer models than proposers they take turns. Without the list all
proposers are the request's own model, the paper's single-proposer setting. The aggregator is the request's
model unless ``mixture_aggregator_model`` names another.

A proposer that fails is left out, unless its upstream refuses the request: that is the client's to know. A
layer that fails leaves the one before. When the aggregator fails, or writes nothing, the first complete
proposal is returned.

Use it when several good models are at hand. ``moa`` is the cheap form with one model and a critique.
"""

from __future__ import annotations

from collections.abc import Sequence

from optillm.approaches.sampling.agents import Agents
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply
from optillm.core.task import Task


class Params(ApproachParams):
    """Parameters of ``mixture``."""

    models: tuple[str, ...] = field(
        (), "the models that propose, in turns; empty: the request's model alone", le=16
    )
    proposers: int = field(6, "proposals per layer", ge=2, le=16)
    layers: int = field(3, "layers, of which the last is the aggregator", ge=2, le=5)
    aggregator_model: str | None = field(None, "model that fuses; the request's if null")
    critique: bool = field(False, "criticise the proposals before they are fused")
    temperature: float = field(0.7, "of the proposals", ge=0, le=2)
    final_temperature: float = field(0.7, "of the fusion", ge=0, le=2)

    @property
    def agents(self) -> Agents:
        """What the parameters describe."""
        return Agents(
            "mixture",
            self.proposers,
            self.layers - 1,
            self.models,
            self.aggregator_model,
            self.critique,
            self.temperature,
            self.final_temperature,
        )


async def fuse(task: Task, llm: LLM, p: Params, candidates: Sequence[Reply]) -> Answer:
    """Write one reply from the candidates of others."""
    return await p.agents.aggregate(task, llm, candidates)


@approach(
    "mixture",
    family="sampling",
    title="Mixture of several models",
    paper="arXiv:2406.04692",
    calls="(L−1)·P + 1 ((L−1)·σ(P) + 1 without mixture_models), + 1 with a critique",
    depth="L, + 1 with a critique",
    worst=lambda p, sigma: p.agents.worst(sigma),
    reduce=fuse,
    worst_reduce=lambda p, candidates: p.agents.worst_aggregation(candidates),
)
async def mixture(task: Task, llm: LLM, p: Params) -> Answer:
    """Let layers of models propose, and one fuse what they proposed."""
    return await p.agents.run(task, llm)
