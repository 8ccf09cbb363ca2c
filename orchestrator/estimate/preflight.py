"""Plans and estimates of all stages of a config, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from configs.errors import ConfigError, Problem
from configs.schema import Config, Stage
from orchestrator.estimate.estimate import stages_of
from orchestrator.estimate.fits import check_fits
from orchestrator.estimate.records import Estimate
from orchestrator.estimate.steps import Lengths
from orchestrator.estimate.timing import full_estimates
from orchestrator.machine import local_machine, local_memory_bytes
from orchestrator.plan import check_groups, make_plan
from orchestrator.plan_records import Machine, Plan
from orchestrator.surroundings import cluster_address


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """What would run where, and what it needs."""

    config: Stage
    machine: Machine | None
    """That it is planned for; None where it is known only when a cluster is joined, or where this machine cannot run it."""
    lacking: tuple[Problem, ...]
    """What keeps it from running on this machine, where that is why it is planned for another."""
    plan: Plan
    estimate: Estimate

    @property
    def where(self) -> str:
        """In words."""
        if self.machine is not None:
            return f"{self.machine.where} ({self.machine.num_cpus} cores, {self.machine.num_gpus} GPUs)"
        address = cluster_address(self.config.cluster)
        if address is not None:
            return f"the Ray cluster at {address}"
        if self.config.cluster.device == "cpu":
            return "a larger machine than this one"
        groups = self.config.cluster.groups
        kinds = [groups[name].gpu if name in groups else None for name in self.plan.groups] + [self.config.cluster.gpu]
        return f"another machine than this one (GPUs of kind {', '.join(dict.fromkeys(filter(None, kinds))) or '(not given)'})"

    @property
    def refusal(self) -> str | None:
        """What `preceptor run` would say here, in one line; None where nothing speaks against it."""
        if not self.lacking:
            return None
        return f"`preceptor run` would refuse it on this machine: {'; '.join(map(str, self.lacking))}"


def plan_stages(config: Config, lengths: Lengths | None = None) -> dict[str, PlannedStage]:
    """By the stage's name in a pipeline, else by its kind, for this machine where it can run it, else for what the config asks for.
    `lengths`: mean tokens, where the user gave them.

    Raises:
        ConfigError: where a stage cannot run anywhere, or the config names groups that there are not, or an unknown kind of GPU.
    """
    check_groups(config)
    machines, lacking = dict[str, Machine | None](), dict[str, tuple[Problem, ...]]()
    for name, stage in stages_of(config).items():
        machines[name], lacking[name] = _this_machine(stage), ()
        try:
            make_plan(stage, machines[name])
        except ConfigError as error:
            if not _runs_elsewhere(stage):
                raise
            machines[name], lacking[name] = None, error.problems
    return _planned(config, machines, lacking, lengths)


def _planned(
    config: Config,
    machines: Mapping[str, Machine | None],
    lacking: Mapping[str, tuple[Problem, ...]],
    lengths: Lengths | None = None,
) -> dict[str, PlannedStage]:
    stages = stages_of(config)
    plans = {name: make_plan(stage, machines[name]) for name, stage in stages.items()}
    memory_bytes = local_memory_bytes() if any(machines.values()) else None
    estimates = full_estimates(config, plans, machines=machines, machine_bytes=memory_bytes, lengths=lengths)
    return {
        name: PlannedStage(
            config=stage,
            machine=machines[name],
            lacking=lacking[name],
            plan=plans[name],
            estimate=estimates[name],
        )
        for name, stage in stages.items()
    }


def _runs_elsewhere(stage: Stage) -> bool:
    try:
        make_plan(stage, None)
    except ConfigError:
        return False
    return True


def _this_machine(stage: Stage) -> Machine | None:
    """None where the stage joins a cluster."""
    return local_machine() if cluster_address(stage.cluster) is None else None


def check_memory(config: Config, *, here: bool = True) -> None:
    """Refuses a config one of whose stages needs more GPUs or memory than there are. What is not known is not refused.

    `here`: whether it is this machine that starts it; else nothing of this one is held against it.

    Raises:
        ConfigError: naming what does not fit.
    """
    check_groups(config)
    stages = stages_of(config)
    machines = {name: _this_machine(stage) if here else None for name, stage in stages.items()}
    for name, stage in _planned(config, machines, dict.fromkeys(stages, ())).items():
        check_fits(stage.estimate, stage.plan, stage=name)
