"""What can be asked for: one pydantic model a stage. Defaults live here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import Section, refuse
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from configs.schema.run import ClusterConfig, RunConfig

Stage = Annotated[PPOStage | RewardStage, Field(discriminator="stage")]

STAGE_PREFIX = "stage:"
"""A model given as `stage:NAME` is the export of that stage of the pipeline."""


def model_references(stage: PPOStage | RewardStage) -> Iterator[tuple[str, str]]:
    """(key, value) of each model that is given as `stage:NAME`."""
    if isinstance(stage, RewardStage):
        models = {"model.model": stage.model.model}
    else:
        models = {
            "policy.model": stage.policy.model,
            "reference.model": stage.reference.model,
            "critic.model": stage.critic.model,
            "reward.model.model": stage.reward.model.model if stage.reward.model else None,
        }
    yield from ((key, model) for key, model in models.items() if model and model.startswith(STAGE_PREFIX))


class Pipeline(Section):
    """Stages one after the other, each in a folder of its own under `run.dir`."""

    stage: Literal["pipeline"]
    """Which stage this is."""
    run: RunConfig
    """Folder, seed, checkpoints; each stage's own `run` starts from it, and its folder is the stage's name in `dir`."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray and time limits; each stage's own `cluster` starts from it."""
    stages: dict[str, Stage] = Field(min_length=1)
    """Name to stage, in order. A model given as `stage:NAME` is the export of an earlier stage."""

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
            for key, model in model_references(stage):
                wanted = [kind] if (kind := _KIND_OF_MODEL.get(key)) else sorted(set(earlier.values()))
                fitting = [f"'{STAGE_PREFIX}{other}'" for other, kind in earlier.items() if kind in wanted]
                if repr(model) not in fitting:
                    listed = f", which here is {' or '.join(fitting)}" if fitting else ", and there is none here"
                    kind_text = (
                        f"an earlier stage of kind {wanted[0]}" if _KIND_OF_MODEL.get(key) else "an earlier stage"
                    )
                    raise refuse(f"stages.{name}.{key}", f"got {model!r}", f"stage:NAME of {kind_text}{listed}")
            earlier[name] = stage.stage
        return self


_KIND_OF_MODEL = {"policy.model": "ppo", "reference.model": "ppo", "reward.model.model": "reward"}
"""Kind of stage whose export can be that model. A critic and a reward model can start from any: a language model gets a fresh head."""

Config = Annotated[PPOStage | RewardStage | Pipeline, Field(discriminator="stage")]
