"""Stage `reward`: a scalar head trained on people's rankings."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from configs.schema.base import PositiveInt, Section, refuse
from configs.schema.data import RankingDataConfig
from configs.schema.engine import MODEL, TrainerConfig
from configs.schema.run import ClusterConfig, RunConfig


class RankingTrainingConfig(Section):
    """How long and in what batches."""

    epochs: PositiveInt = 1
    """Passes over the data."""
    groups_per_step: PositiveInt = 16
    """Ranked groups (pairs, where K is 2) of one optimizer step."""
    evaluate_every: PositiveInt = 50
    """Steps between evaluations on the held-out rows; the end always has one."""


class RewardStage(Section):
    """Training of a reward model."""

    stage: Literal["reward"]
    """Which stage this is."""
    run: RunConfig
    """Folder, seed, checkpoints."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray and time limits."""
    data: RankingDataConfig
    """Ranked answers."""
    model: TrainerConfig
    """The reward model: backbone and how it is trained."""
    training: RankingTrainingConfig = RankingTrainingConfig()
    """Epochs, batch, evaluation."""

    @model_validator(mode="after")
    def _model_given(self) -> Self:
        if self.model.model is None:
            raise refuse("model.model", "missing", MODEL)
        return self
