"""Everything derived from a config, computed once: ranks, GPUs, threads, groups, waves, batch arithmetic.

Pure: it imports neither torch nor ray, starts nothing and asks the machine nothing. A config that can't run on the machine is refused
here, before anything starts, with all its problems at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from configs.errors import ConfigError, Problem
from configs.schema import Config, Pipeline, Stage, SupervisedStage
from configs.schema.compare import CompareConfig
from configs.schema.engine import FrozenConfig, TrainerConfig
from configs.schema.ppo import FixedKLConfig, PPOStage
from configs.schema.rank import RankStage
from configs.schema.reward import RewardStage
from configs.schema.rewards import FunctionConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.run import ClusterConfig
from configs.schema.supervised import DPOStage
from orchestrator.plan_checks import compare_problems, ppo_problems, rank_problems, supervised_problems
from orchestrator.plan_records import (
    ComparePlan,
    Device,
    GroupPlan,
    Machine,
    Plan,
    PPOPlan,
    RankPlan,
    RolePlan,
    Strategy,
    SupervisedPlan,
    SyncChannel,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "CPUS_PER_RANK",
    "ComparePlan",
    "GroupPlan",
    "Machine",
    "PPOPlan",
    "Plan",
    "RankPlan",
    "RolePlan",
    "SupervisedPlan",
    "check_groups",
    "describe_plan",
    "logical_cpus",
    "made_by",
    "make_plan",
    "num_gpus",
    "plan_json",
]

CPUS_PER_RANK = 0.25
"""Ray's logical CPUs that a rank asks for. They only count processes. What a rank may use is its `threads`, and roles that wait for each
other use the same cores: asking for whole cores would leave most of a run unplaced on a small machine."""


STRATEGIES: dict[str, Strategy] = {
    "pack": "PACK",
    "spread": "SPREAD",
    "strict_pack": "STRICT_PACK",
    "strict_spread": "STRICT_SPREAD",
}
"""Of `cluster.groups.NAME.strategy`."""


def make_plan(config: Stage | CompareConfig, machine: Machine | None) -> Plan:
    """The plan of a stage, or of a comparison.

    `machine` is what it will run on; None where that is not known, and then nothing is checked against it, and a rank has one thread
    unless `cluster.num_cpus` or its own section says otherwise.

    Raises:
        ConfigError: with every problem: its key, what was got, what is allowed.
    """
    plan, problems = _worked_out(config, machine)
    if problems:
        where = f" on {machine.where}" if machine else ""
        what = "the comparison" if isinstance(config, CompareConfig) else f"stage {config.stage}"
        raise ConfigError(f"{what} can't run{where}", problems)
    return plan


def _worked_out(config: Stage | CompareConfig, machine: Machine | None) -> tuple[Plan, list[Problem]]:
    """The plan, and what keeps it from running."""
    cores = config.cluster.num_cpus or (machine.num_cpus if machine else None)
    plan: Plan
    if isinstance(config, PPOStage):
        ppo = _plan_ppo(config, cores)
        plan, problems = ppo, ppo_problems(config, ppo, machine)
    elif isinstance(config, RankStage):
        rank = _plan_rank(config, cores)
        plan, problems = rank, rank_problems(config, rank, machine)
    elif isinstance(config, CompareConfig):
        comparison = _plan_compare(config, cores)
        plan, problems = comparison, compare_problems(config, comparison, machine)
    else:
        supervised = _plan_supervised(config, cores)
        plan, problems = supervised, supervised_problems(config, supervised, machine)
    return plan, problems


def check_groups(config: Config) -> None:
    """Refuses names in `cluster.groups` that no stage has a group for: they would place nothing.

    Raises:
        ConfigError: naming them, and the groups that there are.
    """
    stages = list(config.stages.values()) if isinstance(config, Pipeline) else [config]
    known = list(dict.fromkeys(name for stage in stages for name in _worked_out(stage, None)[0].groups))
    named = dict.fromkeys(name for stage in stages for name in stage.cluster.groups)
    problems = [
        Problem(key=f"cluster.groups.{name}", got="got a group that no role is in", allowed=", ".join(known))
        for name in named
        if name not in known
    ]
    if problems:
        raise ConfigError("cluster.groups does not fit the roles", problems)


def logical_cpus(plan: Plan) -> float:
    """Ray's logical CPUs that all groups of a plan ask for together."""
    return sum(group.num_bundles * group.cpus_per_bundle for group in plan.groups.values())


def num_gpus(plan: Plan) -> int:
    """GPUs that all groups of a plan take together."""
    return sum(group.num_bundles * group.gpus_per_bundle for group in plan.groups.values())


def _plan_ppo(config: PPOStage, cores: int | None) -> PPOPlan:
    ppo, rollout, controller = config.ppo, config.rollout, config.ppo.kl.controller
    needs_reference = not isinstance(controller, FixedKLConfig) or controller.coef > 0
    roles = _ppo_roles(config, needs_reference, cores)
    groups = _groups(roles, config.cluster)
    shared = len(groups[roles["rollout"].group].roles) > 1
    trajectories = ppo.prompts_per_step * rollout.responses_per_prompt
    updates = ppo.epochs * ppo.minibatches
    starts = range(0, ppo.prompts_per_step, rollout.prompts_per_wave)
    return PPOPlan(
        roles=roles,
        groups=groups,
        waves=tuple(tuple(range(s, min(s + rollout.prompts_per_wave, ppo.prompts_per_step))) for s in starts),
        prompts_per_step=ppo.prompts_per_step,
        trajectories_per_step=trajectories,
        trajectories_per_minibatch=trajectories // ppo.minibatches,
        updates_per_step=updates,
        total_updates=ppo.steps * updates,
        policy_updates=(ppo.steps - config.critic.warmup_steps) * updates,
        rollout_shares_gpu=shared,
        needs_reference=needs_reference,
        sync_channel=_sync_channel(config, same_group=roles["rollout"].group == roles["policy"].group),
    )


def _plan_supervised(config: SupervisedStage, cores: int | None) -> SupervisedPlan:
    role = made_by(config)
    roles = {role: _model_role(role, config.model, config.cluster, cores)}
    ranked = isinstance(config, RewardStage | DPOStage)
    return SupervisedPlan(
        role=role,
        roles=roles,
        groups=_groups(roles, config.cluster),
        items="ranked groups" if ranked else "sequences",
        items_per_step=config.training.per_step,
    )


def _plan_rank(config: RankStage, cores: int | None) -> RankPlan:
    engines = _engine_role(config.rollout, config.cluster.device, cores)
    roles = {"rollout": engines, "annotator": _function_role("annotator", config.annotator)}
    return RankPlan(
        roles=roles,
        groups=_groups(roles, config.cluster),
        prompts_per_wave=config.rollout.prompts_per_wave,
        answers_per_prompt=config.rollout.responses_per_prompt,
    )


def _plan_compare(config: CompareConfig, cores: int | None) -> ComparePlan:
    roles = [replace(_engine_role(config.rollout, config.cluster.device, cores), role=f"rollout_{x}") for x in "ab"]
    if config.reward is not None:
        roles.append(_model_role("reward", config.reward.model, config.cluster, cores))
    if config.annotator is not None:
        roles.append(_function_role("annotator", config.annotator))
    largest = max(roles, key=lambda role: (role.num_ranks * role.gpus_per_rank, role.num_ranks))
    group = GroupPlan(
        name="compare",
        num_bundles=largest.num_ranks,
        gpus_per_bundle=largest.gpus_per_rank,
        cpus_per_bundle=max(role.num_ranks for role in roles) * CPUS_PER_RANK,
        roles=tuple(role.role for role in roles),
    )
    return ComparePlan(roles={role.role: replace(role, group=group.name) for role in roles}, groups={group.name: group})


def made_by(config: Stage) -> str:
    """The role whose work a stage's export is: in a supervised stage, who learns."""
    return {"reward": "reward", "rank": "annotator"}.get(config.stage, "policy")


def _ppo_roles(config: PPOStage, needs_reference: bool, cores: int | None) -> dict[str, RolePlan]:
    sections: dict[str, TrainerConfig | FrozenConfig] = {"policy": config.policy, "critic": config.critic}
    if needs_reference:
        sections["reference"] = config.reference
    if config.reward.model is not None:
        sections["reward"] = config.reward.model
    roles = {role: _model_role(role, section, config.cluster, cores) for role, section in sections.items()}
    roles["rollout"] = _engine_role(config.rollout, config.cluster.device, cores)
    for i, function in enumerate(config.reward.functions):
        name = f"reward_function_{i}"
        roles[name] = _function_role(name, function)
    if config.evaluation.judge is not None:
        roles["judge"] = _function_role("judge", config.evaluation.judge)
    return roles


def _engine_role(rollout: RolloutConfig, device: Device, cores: int | None) -> RolePlan:
    return RolePlan(
        role="rollout",
        num_ranks=rollout.num_engines,
        gpus_per_rank=rollout.tensor_parallel if device == "cuda" else 0,
        threads=rollout.threads_per_engine or _share(cores, rollout.num_engines),
        group=rollout.group or "rollout",
        device=device,
    )


def _function_role(name: str, function: FunctionConfig) -> RolePlan:
    return RolePlan(role=name, num_ranks=function.num_workers, gpus_per_rank=0, threads=1, group=name, device="cpu")


def _model_role(
    role: str, section: TrainerConfig | FrozenConfig, cluster: ClusterConfig, cores: int | None
) -> RolePlan:
    placement, device = section.placement, cluster.device
    return RolePlan(
        role=role,
        num_ranks=placement.num_ranks,
        gpus_per_rank=1 if device == "cuda" else 0,
        threads=placement.threads_per_rank or _share(cores, placement.num_ranks),
        group=placement.group or role,
        device=device,
    )


def _share(cores: int | None, num_ranks: int) -> int:
    return max(1, cores // num_ranks) if cores else 1


def _groups(roles: dict[str, RolePlan], cluster: ClusterConfig) -> dict[str, GroupPlan]:
    """Groups in the order in which roles first name them. Roles of one group have equally many ranks, and engines that share a group one
    GPU each (checked)."""
    members: dict[str, list[RolePlan]] = {}
    for role in roles.values():
        members.setdefault(role.group, []).append(role)
    groups = {}
    for name, group in members.items():
        num_bundles = min(role.num_ranks for role in group)
        ranks_in_bundle = sum(role.num_ranks // num_bundles for role in group)
        groups[name] = GroupPlan(
            name=name,
            num_bundles=num_bundles,
            gpus_per_bundle=max(role.gpus_per_rank for role in group),
            cpus_per_bundle=ranks_in_bundle * CPUS_PER_RANK,
            roles=tuple(role.role for role in group),
            strategy=_strategy(name, group, cluster),
            resource=cluster.groups[name].resource if name in cluster.groups else None,
        )
    return groups


def _strategy(name: str, roles: list[RolePlan], cluster: ClusterConfig) -> Strategy:
    """Ranks talk to each other in every micro-batch and are packed; engines that are alone in their group hardly do and are spread."""
    asked = cluster.groups[name].strategy if name in cluster.groups else "auto"
    if asked == "auto":
        return "SPREAD" if [role.role for role in roles] == ["rollout"] else "PACK"
    return STRATEGIES[asked]


def _sync_channel(config: PPOStage, *, same_group: bool) -> SyncChannel:
    if config.weight_sync.channel != "auto":
        return config.weight_sync.channel
    device: Device = config.cluster.device
    if device == "cpu":
        return "cpu"
    return "ipc" if same_group else "nccl"


def plan_json(plan: Plan) -> str:
    """The plan as JSON."""
    return json.dumps(asdict(plan), indent=2)


def describe_plan(plan: Plan) -> RenderableType:
    """The plan for people: a table of roles and the batch arithmetic under it."""
    from rich.console import Group
    from rich.table import Table

    table = Table("role", "ranks", "device", "threads", "group", "shares with", box=None, pad_edge=False)
    for role in plan.roles.values():
        others = [name for name in plan.groups[role.group].roles if name != role.role]
        gpus = role.num_ranks * role.gpus_per_rank
        device = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "cpu"
        table.add_row(
            role.role, str(role.num_ranks), device, f"{role.threads} a rank", role.group, ", ".join(others) or "-"
        )
    return Group(table, "", *_arithmetic(plan))


def _arithmetic(plan: Plan) -> list[str]:
    laid = [
        f"{group.name} {group.strategy.lower()}{f' on {group.resource}' if group.resource else ''}"
        for group in plan.groups.values()
    ]
    total = f"GPUs {num_gpus(plan)}, placement groups {len(plan.groups)}: {', '.join(laid)}"
    if isinstance(plan, RankPlan):
        return [f"step: {plan.prompts_per_wave} prompts x {plan.answers_per_prompt} answers, ranked", total]
    if isinstance(plan, ComparePlan):
        return [f"one role after the other: {', '.join(plan.roles)}", total]
    if isinstance(plan, SupervisedPlan):
        return [f"step: {plan.items_per_step} {plan.items}, 1 update", total]
    sizes = sorted({len(wave) for wave in plan.waves}, reverse=True)
    per_step, epochs = plan.trajectories_per_step, plan.updates_per_step * plan.trajectories_per_minibatch
    return [
        f"step: {plan.prompts_per_step} prompts x {per_step // plan.prompts_per_step} responses = {per_step} trajectories "
        f"in {len(plan.waves)} waves of {' or '.join(map(str, sizes))} prompts",
        f"update: {plan.trajectories_per_minibatch} trajectories a minibatch, {plan.updates_per_step} updates a step "
        f"({epochs // per_step} epochs), {plan.total_updates} in the run ({plan.policy_updates} of the policy)",
        f"reference: {'yes' if plan.needs_reference else 'no'}, weight sync: {plan.sync_channel}",
        total,
    ]
