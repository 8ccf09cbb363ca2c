"""What `preceptor compare` is asked for. Its options fill the keys that they name; the others are changed as `key=value`."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from configs.schema.base import Section, refuse
from configs.schema.data import PromptDataConfig
from configs.schema.rank import AnnotatorConfig
from configs.schema.rewards import RewardModelConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.run import ClusterConfig, RunConfig


class JudgeConfig(Section):
    """The reward model that judges; its tokenizer need not be theirs."""

    model: RewardModelConfig
    """The model. Its scores are normalised where it has the statistics for it."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.model.model is None:
            raise refuse("model.model", "missing", "a folder or hub name of a reward model (--reward-model)")
        return self


class CompareConfig(Section):
    """Two models' answers to the same prompts."""

    models: tuple[str, str]
    """Folders or hub names of the models that answer: A and B."""
    run: RunConfig
    """Folder for logs, seed."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray and time limits."""
    data: PromptDataConfig
    """Prompts; each is answered by both."""
    rollout: RolloutConfig
    """How they answer."""
    reward: JudgeConfig | None = None
    """The reward model that judges."""
    annotator: AnnotatorConfig | None = None
    """The function that judges, in place of a reward model."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.reward is not None and self.annotator is not None:
            raise refuse("annotator", "got a function beside a reward model", "one judge, or none")
        return self
