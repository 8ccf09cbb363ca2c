"""Stage `reward`: a scalar head trained on people's rankings."""

from __future__ import annotations

from typing import Literal

from configs.schema.data import RankingDataConfig
from configs.schema.supervised import RankingTrainingConfig, SupervisedSection


class RewardStage(SupervisedSection):
    """Training of a reward model."""

    stage: Literal["reward"]
    """Which stage this is."""
    data: RankingDataConfig
    """Ranked answers."""
    training: RankingTrainingConfig = RankingTrainingConfig()
    """Epochs, batch, evaluation."""
