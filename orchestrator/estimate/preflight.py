"""Plans and estimates of all stages of a config, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

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
    """None where it is known only when a cluster is joined, or where GPUs of a kind are asked for that this machine does not have."""
    plan: Plan
    estimate: Estimate

    @property
    def where(self) -> str:
        """In words."""
        if self.machine is not None:
            return f"{self.machine.where} ({self.machine.num_cpus} cores, {self.machine.num_gpus} GPUs)"
        address = cluster_address(self.config.cluster)
        return (
            f"the Ray cluster at {address}"
            if address
            else f"GPUs of kind {self.config.cluster.gpu} (this machine has none)"
        )


def plan_stages(config: Config, lengths: Lengths | None = None, *, here: bool = True) -> dict[str, PlannedStage]:
    """By the stage's name in a pipeline, else by its kind. `lengths`: mean tokens, where the user gave them.

    `here`: whether the run would be started by this machine; else nothing of this one is held against it.

    Raises:
        ConfigError: where a stage cannot run on this machine, or the config names groups that there are not, or an unknown kind of GPU.
    """
    check_groups(config)
    stages = stages_of(config)
    machines = {name: _machine_for(stage) if here else None for name, stage in stages.items()}
    plans = {name: make_plan(stage, machines[name]) for name, stage in stages.items()}
    memory_bytes = local_memory_bytes() if here else None
    estimates = full_estimates(config, plans, machines=machines, machine_bytes=memory_bytes, lengths=lengths)
    return {
        name: PlannedStage(config=stage, machine=machines[name], plan=plans[name], estimate=estimates[name])
        for name, stage in stages.items()
    }


def _machine_for(stage: Stage) -> Machine | None:
    """This machine, where the stage is to run on it. A stage whose kind of GPU is named can be planned where there is none."""
    if cluster_address(stage.cluster) is not None:
        return None
    machine = local_machine()
    elsewhere = stage.cluster.device == "cuda" and machine.num_gpus == 0 and stage.cluster.gpu is not None
    return None if elsewhere else machine


def check_memory(config: Config, *, here: bool = True) -> None:
    """Refuses a config one of whose stages needs more memory than its GPUs, or this machine, have. What is not known is not refused.

    `here`: as `plan_stages` has it.

    Raises:
        ConfigError: naming what does not fit.
    """
    for name, stage in plan_stages(config, here=here).items():
        check_fits(stage.estimate, stage.plan, stage=name)
