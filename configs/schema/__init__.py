"""What can be asked for: one pydantic model a stage. Defaults live here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import Section, refuse
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.reward import RewardStage
from configs.schema.run import ClusterConfig, RunConfig
from configs.schema.supervised import DPOStage, PretrainStage, SFTStage

SupervisedStage = PretrainStage | SFTStage | DPOStage | RewardStage
Stage = PretrainStage | SFTStage | DPOStage | RewardStage | PPOStage | RankStage

STAGE_PREFIX = "stage:"
"""A model or data given as `stage:NAME` is the export of that stage of the pipeline."""
DATA_KEY = "data.path"


def stage_models(stage: Stage) -> dict[str, str]:
    """Every model that the stage names, by its key; the one that is trained first."""
    models: dict[str, str | None]
    if isinstance(stage, RankStage):
        models = {"policy.model": stage.policy.model}
    elif not isinstance(stage, PPOStage):
        models = {"model.model": stage.model.model}
    else:
        models = {
            "policy.model": stage.policy.model,
            "reference.model": stage.reference.model,
            "critic.model": stage.critic.model,
            "reward.model.model": stage.reward.model.model if stage.reward.model else None,
        }
    return {key: model for key, model in models.items() if model is not None}


def references(stage: Stage) -> Iterator[tuple[str, str]]:
    """(key, value) of each model, and of the data, that is given as `stage:NAME`."""
    named = stage_models(stage)
    if isinstance(stage, RewardStage | DPOStage):
        named[DATA_KEY] = stage.data.path
    yield from ((key, value) for key, value in named.items() if value.startswith(STAGE_PREFIX))


class Pipeline(Section):
    """Stages one after the other, each in a folder of its own under `run.dir`."""

    stage: Literal["pipeline"]
    """Which stage this is."""
    run: RunConfig
    """Folder, seed, checkpoints; each stage's own `run` starts from it, and its folder is the stage's name in `dir`."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray and time limits; each stage's own `cluster` starts from it."""
    stages: dict[str, Annotated[Stage, Field(discriminator="stage")]] = Field(min_length=1)
    """Name to stage, in order. A model or data given as `stage:NAME` is the export of an earlier stage."""

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        earlier: dict[str, str] = {}
        for name, stage in self.stages.items():
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
                got = f"got the name {name!r}"
                raise refuse(
                    f"stages.{name}",
                    got,
                    "a letter, then letters, digits, - and _, all lower case: it is a folder's name",
                )
            for key, value in references(stage):
                wanted = _kinds_of_reference(stage, key)
                fitting = [f"'{STAGE_PREFIX}{other}'" for other, kind in earlier.items() if kind in wanted]
                if repr(value) not in fitting:
                    listed = f", which here is {' or '.join(fitting)}" if fitting else ", and there is none here"
                    kinds = " or ".join(filter(None, (", ".join(wanted[:-1]), wanted[-1])))
                    allowed = f"stage:NAME of an earlier {kinds} stage{listed}"
                    raise refuse(f"stages.{name}.{key}", f"got {value!r}", allowed)
            earlier[name] = stage.stage
        return self


LANGUAGE_MODELS = ("pretrain", "sft", "dpo", "ppo")
"""Stages that export a language model."""


def _kinds_of_reference(stage: Stage, key: str) -> tuple[str, ...]:
    """Kinds of stage whose export can be that model or data. A critic and a reward model can start from any: a language model gets a fresh
    head."""
    if key == DATA_KEY:
        return ("rank",)
    if key == "reward.model.model":
        return ("reward",)
    if key in ("policy.model", "reference.model") or isinstance(stage, PretrainStage | SFTStage | DPOStage):
        return LANGUAGE_MODELS
    return (*LANGUAGE_MODELS, "reward")


Config = Annotated[Stage | Pipeline, Field(discriminator="stage")]
