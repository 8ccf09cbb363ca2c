"""Stages that learn from a data set: `pretrain`, `sft`, `dpo`. Stage `reward` shares their training section."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import PositiveFloat, PositiveInt, Section, refuse
from configs.schema.data import ConversationDataConfig, RankingDataConfig, TextDataConfig
from configs.schema.engine import MODEL, TrainerConfig
from configs.schema.run import ClusterConfig, RunConfig


class TrainingConfig(Section):
    """How long, and what is kept."""

    epochs: PositiveInt = 1
    """Passes over the data."""
    evaluate_every: PositiveInt = 50
    """Steps between evaluations on the held-out rows; the end always has one."""
    export: Literal["last", "best"] = "last"
    """Which weights become the export: the last, or those of the best evaluation. Both have a checkpoint in any case."""

    @property
    @abstractmethod
    def per_step(self) -> int:
        """Items of one optimizer step."""

    def total_steps(self, num_items: int) -> int:
        """Optimizer steps of the run; the last of an epoch may be smaller."""
        return self.epochs * -(-num_items // self.per_step)


class SequenceTrainingConfig(TrainingConfig):
    """How long and in what batches, where sequences are learned."""

    sequences_per_step: PositiveInt = 32
    """Sequences of one optimizer step."""

    @property
    def per_step(self) -> int:
        return self.sequences_per_step


class RankingTrainingConfig(TrainingConfig):
    """How long and in what batches, where rankings are learned."""

    groups_per_step: PositiveInt = 16
    """Ranked groups (pairs, where K is 2) of one optimizer step."""

    @property
    def per_step(self) -> int:
        return self.groups_per_step


class SupervisedSection(Section):
    """What these stages have in common."""

    run: RunConfig
    """Folder, seed, checkpoints."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray and time limits."""
    model: TrainerConfig
    """The model, and how it is trained."""

    @model_validator(mode="after")
    def _model_given(self) -> Self:
        if self.model.model is None:
            raise refuse("model.model", "missing", MODEL)
        return self


class PretrainStage(SupervisedSection):
    """Next token, on documents."""

    stage: Literal["pretrain"]
    """Which stage this is."""
    data: TextDataConfig
    """Documents."""
    training: SequenceTrainingConfig = SequenceTrainingConfig()
    """Epochs, batch, evaluation."""


class SFTStage(SupervisedSection):
    """Supervised fine-tuning: next token, on the assistant's answers alone."""

    stage: Literal["sft"]
    """Which stage this is."""
    data: ConversationDataConfig
    """Conversations, or prompts with completions."""
    training: SequenceTrainingConfig = SequenceTrainingConfig()
    """Epochs, batch, evaluation."""


class DPOConfig(Section):
    """The loss of direct preference optimisation. The reference is the model that the stage starts from."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: likelihood of the ranking. `ipo`: squared distance of a pair's lead from 1 / (2 beta), per token."""
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; larger is closer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False, strict=True)] = 0.0
    """Share of rankings taken to be wrong (`sigmoid`)."""

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> Self:
        if self.loss == "ipo" and self.label_smoothing:
            raise refuse("label_smoothing", f"got {self.label_smoothing} with loss ipo", "0")
        return self


class DPOStage(SupervisedSection):
    """Direct preference optimisation: the policy learns from rankings, without reward model and rollouts."""

    stage: Literal["dpo"]
    """Which stage this is."""
    data: RankingDataConfig
    """Ranked answers."""
    training: RankingTrainingConfig = RankingTrainingConfig()
    """Epochs, batch, evaluation."""
    dpo: DPOConfig = DPOConfig()
    """The loss."""
