"""The configuration of ``mars``: its parameters, the two presets, and how many calls they can cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optillm.core.params import FullResponseParams, field
from optillm.core.registry import Sigma

PresetName = Literal["default", "lightweight"]
Extraction = Literal["auto", "code", "math", "none"]
MOST_TOKENS = 1 << 20
LIGHTWEIGHT_LIMIT = 4000
"""Tokens: a limit of so many or fewer means the lightweight preset, unless one is named."""
MOST_GROUPS = 3


@dataclass(frozen=True)
class Preset:
    """Values of the parameters that depend on the preset, under their names."""

    num_agents: int = 3
    max_iterations: int = 5
    verification_passes_required: int = 2
    consensus_threshold: int = 2
    max_verification_attempts: int = 3
    enable_aggregation: bool = True
    enable_strategy_network: bool = True
    max_tokens: int = 64000


def preset_of(name: PresetName) -> Preset:
    """The values of a preset."""
    if name == "default":
        return Preset()
    return Preset(
        num_agents=2,
        max_iterations=2,
        verification_passes_required=1,
        consensus_threshold=1,
        max_verification_attempts=2,
        enable_aggregation=False,
        enable_strategy_network=False,
        max_tokens=4000,
    )


class Params(FullResponseParams):
    """Parameters of ``mars``; what is null is as the preset says."""

    config: Mapping[str, Any] | None = field(
        None, "the parameters below in one object; those given by themselves win"
    )
    preset: PresetName | None = field(
        None,
        "values of what is not set; null: lightweight for token limits of 4000 or less, else default",
    )
    num_agents: int | None = field(None, "agents (A); null: 3 (default), 2 (lightweight)", ge=2, le=16)
    max_iterations: int | None = field(
        None, "rounds of improvement at most (I); null: 5 (default), 2 (lightweight)", ge=0, le=20
    )
    verification_passes_required: int | None = field(
        None,
        "checks in a row that must find a solution correct (v); null: 2 (default), 1 (lightweight)",
        ge=1,
        le=10,
    )
    consensus_threshold: int | None = field(
        None,
        "verified solutions with one answer that end the improvement; null: 2 (default), 1 (lightweight)",
        ge=1,
        le=64,
    )
    min_verified_solutions: int = field(1, "verified solutions that end the improvement", ge=1, le=64)
    max_verification_attempts: int | None = field(
        None, "checks of one solution at most (m); null: 3 (default), 2 (lightweight)", ge=1, le=20
    )
    early_termination: bool = field(True, "stop improving on consensus")
    use_reasoning_api: bool = field(
        True, "send the agents' reasoning_effort, where the client gives none and the model takes it"
    )
    enable_aggregation: bool | None = field(
        None, "fill the population, and aggregate it; null: true (default), false (lightweight)"
    )
    population_size: int = field(6, "solutions in the population (P)", ge=1, le=64)
    aggregation_size: int = field(3, "solutions that are aggregated into one (K)", ge=1, le=16)
    aggregation_loops: int = field(3, "loops of aggregation (T)", ge=0, le=10)
    enable_strategy_network: bool | None = field(
        None, "let the agents learn from each other's strategies; null: true (default), false (lightweight)"
    )
    strategy_extraction_enabled: bool = field(True, "write down the strategy of each agent's solution")
    cross_agent_enhancement: bool = field(
        True, "have each agent write its solution again with the strategies of the others"
    )
    use_thinking_tags: bool = field(
        True, "with return_full_response, put the reasoning between <think> tags; false: the plain solution"
    )
    answer_extraction_mode: Extraction = field(
        "auto", "what is taken out of the solution as the answer; auto: by the kind of the question"
    )
    max_tokens: int | None = field(
        None,
        "token limit of a solution; the client's holds if smaller; null: 64000 (default), 4000 (lightweight)",
        ge=1,
        le=MOST_TOKENS,
    )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """More checks than allowed, groups larger than the population, more verified than there are."""
        passes, attempts = self.verification_passes_required, self.max_verification_attempts
        if passes and attempts and passes > attempts:
            yield (
                "max_verification_attempts",
                f"is {attempts}, fewer than mars_verification_passes_required, which is {passes}",
            )
        config = resolve(self, None)
        if config.aggregates and self.aggregation_size > config.population:
            yield (
                "aggregation_size",
                f"is {self.aggregation_size}, more than the {config.population} solutions of the population",
            )
        if self.min_verified_solutions > config.population:
            yield (
                "min_verified_solutions",
                f"is {self.min_verified_solutions}, more than the {config.population} solutions there are",
            )


@dataclass(frozen=True)
class Config:
    """What a run does, with nothing left open.

    Args:
        preset: which filled in what was not set.
        agents: A, at least 2.
        iterations: I.
        passes: v, at most ``attempts``.
        consensus: verified solutions with one answer.
        min_verified: verified solutions that are enough.
        attempts: m.
        population: solutions there are, at least A.
        groups: g, how many aggregations each loop makes; 0 without aggregation.
        group_size: K.
        loops: T; 0 without aggregation.
        extracts, enhances: the two steps of the strategies.
        max_tokens: of each solution.
        p: the parameters that need no filling in.
    """

    preset: PresetName
    agents: int
    iterations: int
    passes: int
    consensus: int
    min_verified: int
    attempts: int
    population: int
    groups: int
    group_size: int
    loops: int
    extracts: bool
    enhances: bool
    max_tokens: int
    p: Params

    @property
    def aggregates(self) -> bool:
        """Whether there is a population beyond the agents' own solutions."""
        return self.groups > 0


def resolve(p: Params, limit: int | None) -> Config:
    """Fill in what the parameters leave open.

    Args:
        p: the parameters.
        limit: the client's token limit, or None.
    """
    limits = [tokens for tokens in (p.max_tokens, limit) if tokens is not None]
    small = bool(limits) and min(limits) <= LIGHTWEIGHT_LIMIT
    name: PresetName = p.preset or ("lightweight" if small else "default")
    preset = preset_of(name)

    def given(field_name: str) -> Any:
        value = getattr(p, field_name)
        return getattr(preset, field_name) if value is None else value

    agents, aggregates = given("num_agents"), given("enable_aggregation")
    passes, attempts = given("verification_passes_required"), given("max_verification_attempts")
    if p.max_verification_attempts is None:
        attempts = max(passes, attempts)
    network, extracts = given("enable_strategy_network"), p.strategy_extraction_enabled
    population = max(agents, p.population_size) if aggregates else agents
    return Config(
        preset=name,
        agents=agents,
        iterations=given("max_iterations"),
        passes=min(passes, attempts),
        consensus=given("consensus_threshold"),
        min_verified=min(p.min_verified_solutions, population),
        attempts=attempts,
        population=population,
        groups=max(1, min(population // p.aggregation_size, MOST_GROUPS)) if aggregates else 0,
        group_size=p.aggregation_size,
        loops=p.aggregation_loops if aggregates else 0,
        extracts=network and extracts,
        enhances=network and extracts and p.cross_agent_enhancement,
        max_tokens=min(limits, default=preset.max_tokens),
        p=p,
    )


def worst_calls(p: Params, sigma: Sigma) -> int:
    """Nothing is ever verified, no two answers agree: all rounds are made, and the synthesis."""
    c = resolve(p, None)
    prepared = c.population + c.loops * c.groups + c.agents * (c.extracts + c.enhances)
    rounds = c.iterations * c.population * (1 + c.attempts)
    return prepared + c.population * c.attempts + rounds + 1


def worst_depth(p: Params) -> int:
    """The longest chain of calls in that case."""
    c = resolve(p, None)
    checks = c.attempts - c.passes + 1
    return 1 + c.loops + c.extracts + c.enhances + checks + c.iterations * (1 + checks) + 1
