"""From the command line to a sweep's trials, each of them loaded and planned: a bad value is refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.errors import UserError
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import Config, Pipeline
from configs.schema.ppo import PPOStage
from orchestrator.machine import local_machine
from orchestrator.plan import Machine, make_plan, num_gpus
from orchestrator.sweep.records import Halving, Trial
from orchestrator.sweep.space import Space
from orchestrator.trackers import check_trackers


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All trials and their whole configs."""

    trials: tuple[Trial, ...]
    configs: tuple[Config, ...]


def prepare(path: str, space: Space, drawn: Sequence[tuple[str, ...]], folder: Path, *, share: int | None) -> Prepared:
    """Loads and plans every trial.

    Args:
        path: The config file.
        drawn: Each trial's overrides of the axes.
        folder: The sweep's.
        share: Trials run on this machine, and so many of them at once; None: on a cluster.

    Raises:
        ConfigError, UserError: for what is wrong with a trial, naming it.
    """
    trials, configs = [], []
    machine = None if share is None else local_machine()
    for number, overrides in enumerate(drawn, start=1):
        trial = Trial(number=number, overrides=overrides, gpus=0)
        run_dir = f"run.dir={json.dumps(str(folder / 'trials' / trial.name))}"
        try:
            config = _load(path, [*space.fixed, *overrides, run_dir], machine, share)
            gpus = _gpus(config, machine)
        except ConfigError as error:
            raise ConfigError(f"trial {trial.name} ({' '.join(overrides)}): {error.title}", error.problems) from None
        trials.append(Trial(number=number, overrides=overrides, gpus=gpus))
        configs.append(config)
    return Prepared(trials=tuple(trials), configs=tuple(configs))


def _load(path: str, overrides: list[str], machine: Machine | None, share: int | None) -> Config:
    """On this machine trials share the cores: each gets its part of them, unless it says how many it takes."""
    config = load_config(path, overrides)
    if machine is None or share is None or config.cluster.num_cpus is not None:
        return config
    return load_config(path, [*overrides, f"cluster.num_cpus={max(1, machine.num_cpus // share)}"])


def _gpus(config: Config, machine: Machine | None) -> int:
    """GPUs of a trial; of a pipeline, whose stages take turns, those of the largest."""
    stages = list(config.stages.values()) if isinstance(config, Pipeline) else [config]
    for stage in stages:
        check_trackers(stage.run.trackers)
    return max(num_gpus(make_plan(stage, machine)) for stage in stages)


def check_budget(trials: Sequence[Trial], gpus: int | None) -> None:
    """UserError where a trial alone takes more GPUs than all may."""
    for trial in trials:
        if gpus is not None and trial.gpus > gpus:
            raise UserError(
                f"--gpus: got {gpus}, but trial {trial.name} takes {trial.gpus}; allowed: at least {trial.gpus}"
            )


def halving(config: Config, *, max_steps: int | None, grace_steps: int | None, reduction: int) -> Halving:
    """The rungs of a search with early stopping.

    Raises:
        UserError: where they make no sense.
    """
    if isinstance(config, Pipeline):
        raise UserError("--search asha: got a pipeline; allowed: one stage, whose steps can be compared")
    if max_steps is None and isinstance(config, PPOStage):
        max_steps = config.ppo.steps
    if max_steps is None:
        raise UserError(
            f"--max-steps: missing; allowed: the steps of a whole run, which stage {config.stage} knows only when it has read its data"
        )
    grace_steps = max(1, max_steps // reduction**2) if grace_steps is None else grace_steps
    if not 1 <= grace_steps <= max_steps:
        raise UserError(f"--grace-steps: got {grace_steps}; allowed: a whole number from 1 to --max-steps, {max_steps}")
    if reduction < 2:
        raise UserError(f"--reduction: got {reduction}; allowed: a whole number of at least 2")
    return Halving(max_steps=max_steps, grace_steps=grace_steps, reduction=reduction)
