"""The configurations of ``cepo``: its parameters, and the three presets that fill in what is not set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal

from optillm.core.params import ApproachParams, field

Rating = Literal["absolute", "pairwise", "majority"]
LIMIT = 1 << 20
"""Most tokens that a call may be given."""


@dataclass(frozen=True)
class Preset:
    """Values of the parameters that depend on the preset, under their names."""

    bestofn_temperature: float = 0.1
    bestofn_max_tokens: int = 4096
    bestofn_rating_type: Rating = "absolute"
    planning_n: int = 3
    planning_m: int = 6
    planning_temperature_step1: float = 0.55
    planning_temperature_step2: float = 0.25
    planning_temperature_direct_resp: float = 0.1
    planning_temperature_step3: float = 0.1
    planning_temperature_step4: float = 0.0
    planning_max_tokens_step1: int = 4096
    planning_max_tokens_step2: int = 4096
    planning_max_tokens_direct_resp: int = 4096
    planning_max_tokens_step3: int = 4096
    planning_max_tokens_step4: int = 4096
    use_reasoning_fallback: bool = False
    num_of_retries: int = 0
    print_output: bool = False


@dataclass(frozen=True)
class Qwen3(Preset):
    """For the Qwen3 models."""

    bestofn_temperature: float = 0.6
    bestofn_max_tokens: int = 20480
    bestofn_rating_type: Rating = "majority"
    planning_n: int = 2
    planning_m: int = 4
    planning_temperature_step1: float = 0.8
    planning_temperature_step2: float = 0.8
    planning_temperature_direct_resp: float = 0.6
    planning_temperature_step3: float = 0.8
    planning_temperature_step4: float = 0.8
    planning_max_tokens_step1: int = 28672
    planning_max_tokens_step2: int = 24576
    planning_max_tokens_direct_resp: int = 32768
    planning_max_tokens_step3: int = 20481
    planning_max_tokens_step4: int = 20482


@dataclass(frozen=True)
class GptOss(Preset):
    """For the gpt-oss models."""

    bestofn_temperature: float = 0.6
    bestofn_max_tokens: int = 40960
    planning_n: int = 2
    planning_m: int = 4
    planning_temperature_step1: float = 1.0
    planning_temperature_step2: float = 1.0
    planning_temperature_direct_resp: float = 0.6
    planning_temperature_step3: float = 1.0
    planning_temperature_step4: float = 0.5
    planning_max_tokens_step1: int = 40960
    planning_max_tokens_step2: int = 40960
    planning_max_tokens_direct_resp: int = 32768
    planning_max_tokens_step3: int = 40960
    planning_max_tokens_step4: int = 40960
    use_reasoning_fallback: bool = True
    num_of_retries: int = 2
    print_output: bool = True


PRESETS = MappingProxyType({"default": Preset, "qwen3": Qwen3, "gptoss": GptOss})


def by_preset(name: str, help: str) -> str:
    """The help of a parameter whose default is the preset's."""
    values = [str(getattr(preset, name)).lower() for preset in PRESETS.values()]
    told = ", ".join(f"{v} ({p})" for p, v in zip(PRESETS, values, strict=True))
    return f"{help}; null: {values[0] if len(set(values)) == 1 else told}"


class Params(ApproachParams):
    """Parameters of ``cepo``; what is null is as the preset says."""

    preset: Literal["default", "qwen3", "gptoss"] = field("default", "values of what is not set")
    bestofn_n: int = field(3, "completions, of which the best is the answer", ge=1, le=32)
    bestofn_temperature: float | None = field(
        None, by_preset("bestofn_temperature", "of the ratings"), ge=0, le=2
    )
    bestofn_max_tokens: int | None = field(
        None, by_preset("bestofn_max_tokens", "token limit of a rating"), ge=1, le=LIMIT
    )
    bestofn_rating_type: Rating | None = field(
        None,
        by_preset(
            "bestofn_rating_type", "how the best completion is found: rated, compared in pairs, or by vote"
        ),
    )
    planning_n: int | None = field(
        None, by_preset("planning_n", "plans to carry out to their end"), ge=1, le=32
    )
    planning_m: int | None = field(
        None, by_preset("planning_m", "attempts at most to get so many plans carried out"), ge=1, le=64
    )
    planning_temperature_step1: float | None = field(
        None, by_preset("planning_temperature_step1", "of the plans"), ge=0, le=2
    )
    planning_temperature_step2: float | None = field(
        None, by_preset("planning_temperature_step2", "of carrying them out"), ge=0, le=2
    )
    planning_temperature_direct_resp: float | None = field(
        None,
        by_preset("planning_temperature_direct_resp", "of the direct answer when no plan was carried out"),
        ge=0,
        le=2,
    )
    planning_temperature_step3: float | None = field(
        None, by_preset("planning_temperature_step3", "of reconciling what came of the plans"), ge=0, le=2
    )
    planning_temperature_step4: float | None = field(
        None, by_preset("planning_temperature_step4", "of the reply that is written from it"), ge=0, le=2
    )
    planning_max_tokens_step1: int | None = field(
        None,
        by_preset("planning_max_tokens_step1", "token limit of a plan; 0 works without plans"),
        ge=0,
        le=LIMIT,
    )
    planning_max_tokens_step2: int | None = field(
        None, by_preset("planning_max_tokens_step2", "token limit of carrying a plan out"), ge=1, le=LIMIT
    )
    planning_max_tokens_direct_resp: int | None = field(
        None, by_preset("planning_max_tokens_direct_resp", "token limit of the direct answer"), ge=1, le=LIMIT
    )
    planning_max_tokens_step3: int | None = field(
        None,
        by_preset("planning_max_tokens_step3", "token limit of reconciling; 0 takes the first"),
        ge=0,
        le=LIMIT,
    )
    planning_max_tokens_step4: int | None = field(
        None,
        by_preset("planning_max_tokens_step4", "token limit of the reply; 0 returns what step 3 wrote"),
        ge=0,
        le=LIMIT,
    )
    use_plan_diversity: bool = field(False, "have each completion plan along an approach of its own")
    temperature_step0: float = field(0.7, "of listing those approaches", ge=0, le=2)
    max_tokens_step0: int = field(1024, "token limit of listing them", ge=1, le=LIMIT)
    launch: Literal["eager", "lazy"] = field(
        "eager", "begin all attempts at once, or one more when one fails: quicker, or cheaper"
    )
    rating_model: str | None = field(None, "model that rates; the same if null")
    use_reasoning: bool = field(True, "ask for high reasoning effort, where the model takes it")
    use_reasoning_fallback: bool | None = field(
        None,
        by_preset("use_reasoning_fallback", "ask again with less effort when a call is cut off or fails"),
    )
    num_of_retries: int | None = field(
        None, by_preset("num_of_retries", "further tries of a call that fails or is empty"), ge=0, le=10
    )
    print_output: bool | None = field(
        None, by_preset("print_output", "put what each step wrote into the trace")
    )

    @property
    def config(self) -> Preset:
        """The values in force: the preset's, but for what is set."""
        own = {f.name: getattr(self, f.name) for f in fields(Preset)}
        return PRESETS[self.preset](**{k: v for k, v in own.items() if v is not None})

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """So many plans need at least as many attempts."""
        c = self.config
        if c.planning_n > c.planning_m:
            name = "planning_n" if self.planning_n is not None else "planning_m"
            yield name, f"does not fit: {c.planning_n} plans in at most {c.planning_m} attempts (planning_m)"
