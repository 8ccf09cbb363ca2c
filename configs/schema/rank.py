"""Stage `rank`: a model's own answers, ranked: several to each prompt, ordered by what a function says of them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import NonNegativeFloat, Section, refuse
from configs.schema.data import PromptDataConfig
from configs.schema.rewards import FunctionConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.run import ClusterConfig, RunConfig


class SampledModelConfig(Section):
    """The model that answers."""

    model: str = Field(min_length=1)
    """Folder or hub name of a Hugging Face model."""


class AnnotatorConfig(FunctionConfig):
    """Who ranks: a function called as a reward function is. Of two answers the one with the larger number is the better."""

    tie_margin: NonNegativeFloat = 0.0
    """Answers that lie no further apart than this are tied."""


class RankStage(Section):
    """Answers sampled from a model and ranked, as data for stages `reward` and `dpo`."""

    stage: Literal["rank"]
    """Which stage this is."""
    run: RunConfig
    """Folder, seed."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray and time limits."""
    data: PromptDataConfig
    """Prompts; each is answered once."""
    policy: SampledModelConfig
    """The model that answers."""
    rollout: RolloutConfig
    """How it answers; `responses_per_prompt` is how many answers are ranked together."""
    annotator: AnnotatorConfig
    """Who ranks them."""

    @model_validator(mode="after")
    def _something_to_rank(self) -> Self:
        if self.rollout.responses_per_prompt < 2:
            raise refuse("rollout.responses_per_prompt", f"got {self.rollout.responses_per_prompt}", "at least 2")
        return self
