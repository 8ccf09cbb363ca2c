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
from orchestrator.estimate.preflight import check_memory
from orchestrator.flat import flat
from orchestrator.machine import local_machine
from orchestrator.plan import Machine, check_groups, make_plan, num_gpus
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
            raise _of_trial(trial, error) from None
        trials.append(Trial(number=number, overrides=overrides, gpus=gpus))
        configs.append(config)
    return Prepared(trials=tuple(trials), configs=tuple(configs))


def _of_trial(trial: Trial, error: ConfigError, more: str = "") -> ConfigError:
    return ConfigError(f"trial {trial.name} ({' '.join(trial.overrides)}){more}: {error.title}", error.problems)


def check_memories(prepared: Prepared, *, here: bool) -> None:
    """Refuses a sweep with trials that need more memory than there is: each trial by itself, of alike ones the first. `here`: trials run on
    this machine.

    Raises:
        ConfigError: naming the first such trial, how many more there are, and what does not fit.
    """
    alike: dict[str, list[int]] = {}
    for index, config in enumerate(prepared.configs):
        alike.setdefault(_matters(config), []).append(index)
    refused: list[tuple[int, ConfigError]] = []
    num_refused = 0
    for indices in alike.values():
        try:
            check_memory(prepared.configs[indices[0]], here=here)
        except ConfigError as error:
            refused.append((indices[0], error))
            num_refused += len(indices)
    if refused:
        index, first = refused[0]
        more = f" and {num_refused - 1} more" if num_refused > 1 else ""
        raise _of_trial(prepared.trials[index], first, more)


def _matters(config: Config) -> str:
    """What memory depends on, as text. Where a run lies and the numbers of optimizers and losses leave it as it is; a trial that is wrongly
    taken for alike is still checked when it starts."""
    values = flat(config.model_dump())
    return json.dumps(
        {key: value for key, value in values.items() if not _leaves_memory(key.split("."), value)}, default=str
    )


def _leaves_memory(parts: Sequence[str], value: object) -> bool:
    return "run" in parts or (isinstance(value, float) and ("optimizer" in parts or "ppo" in parts))


def _load(path: str, overrides: list[str], machine: Machine | None, share: int | None) -> Config:
    """On this machine trials share the cores: each gets its part of them, unless it says how many it takes."""
    config = load_config(path, overrides)
    if machine is None or share is None or config.cluster.num_cpus is not None:
        return config
    return load_config(path, [*overrides, f"cluster.num_cpus={max(1, machine.num_cpus // share)}"])


def _gpus(config: Config, machine: Machine | None) -> int:
    """GPUs of a trial; of a pipeline, whose stages take turns, those of the largest."""
    check_groups(config)
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
