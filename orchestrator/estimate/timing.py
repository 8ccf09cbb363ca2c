"""The whole estimate of a stage: memory, then time where speeds are known, then what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from configs.errors import ConfigError
from configs.schema import Config, Stage
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from orchestrator.estimate.estimate import beneath, estimate, group_kinds, stages_of
from orchestrator.estimate.model_files import find_model
from orchestrator.estimate.records import Estimate
from orchestrator.estimate.roofline import Hardware
from orchestrator.estimate.shapes import UnknownModel
from orchestrator.estimate.steps import Given, Lengths, step_time
from orchestrator.estimate.suggest import suggest
from orchestrator.estimate.work import Head, ModelWork, work_of
from orchestrator.plan_records import Machine, Plan

SCALAR = ("critic", "reward")
"""Roles whose model has a scalar head."""


def full_estimates(
    config: Config,
    plans: Mapping[str, Plan],
    *,
    machines: Mapping[str, Machine | None] | None = None,
    machine_bytes: float | None = None,
    lengths: Lengths | None = None,
) -> dict[str, Estimate]:
    """Memory, time and suggestions of each stage by its name.

    `machines` are what suggestions must be able to run on, by stage; `machine_bytes` is the memory of the one that a run on CPU is on. None
    where that is not known.

    Raises:
        ConfigError: for an unknown GPU kind, and for mean lengths that a stage does not allow.
    """
    names, means = beneath(config), lengths or Lengths()
    problems = [problem for stage in stages_of(config).values() for problem in means.problems(stage)]
    if problems:
        raise ConfigError("no time can be estimated for these lengths", problems)

    found = {}
    for name, stage in stages_of(config).items():
        machine = machines[name] if machines else None
        # a stage that is planned for another machine is not held against this one's memory
        limit = machine_bytes if machines is None or machine is not None else None

        def of(stage: Stage, plan: Plan, limit: float | None = limit) -> Estimate:
            return with_time(estimate(stage, plan, limit, names), stage, plan, names, means)

        whole = of(stage, plans[name])
        found[name] = replace(whole, suggestions=suggest(stage, plans[name], whole, of, machine))
    return found


def with_time(memory: Estimate, stage: Stage, plan: Plan, names: Mapping[str, str], lengths: Lengths) -> Estimate:
    """The same with its time. Where that cannot be told, `unknown` says why; on CPU no speed is known, and nothing is said."""
    if stage.cluster.device == "cpu":
        return memory
    kinds = {name: kind for name, kind in group_kinds(stage, plan).items() if plan.groups[name].gpus_per_bundle}
    # a GPU without a kind and a model without sizes are told of with the memory
    if any(kind is None for kind in kinds.values()):
        return memory
    try:
        works = model_works(stage, plan, names)
    except UnknownModel:
        return memory
    capacity = memory.engines.get("rollout")
    if capacity is not None and capacity.sequences < 1:
        reason = "time of a step: an engine's key-value cache does not hold one longest sequence"
        return replace(memory, unknown=(*memory.unknown, reason))
    clusters = stage.cluster.groups
    hardware = {
        name: Hardware(
            kind=kind,
            gpus_per_node=(clusters[name].gpus_per_node if name in clusters else None) or stage.cluster.gpus_per_node,
        )
        for name, kind in kinds.items()
        if kind is not None
    }
    kv_tokens = capacity.kv_cache_bytes / capacity.kv_bytes_per_token if capacity else None
    given = Given(works=works, hardware=hardware, kv_tokens=kv_tokens, lengths=lengths)
    return replace(memory, time=step_time(stage, plan, given))


def model_works(stage: Stage, plan: Plan, names: Mapping[str, str]) -> dict[str, ModelWork]:
    """By role, of every role with a model.

    Raises:
        UnknownModel: sizes that cannot be told.
    """
    found = {}
    for role, model in role_models(stage).items():
        if role in plan.roles and model is not None:
            head: Head = "scalar" if role in SCALAR else "vocabulary"
            found[role] = work_of(find_model(names.get(model, model)).shape, head)
    return found


def role_models(stage: Stage) -> dict[str, str | None]:
    """The model that each role starts from, as the config names it."""
    if isinstance(stage, RankStage):
        return {"rollout": stage.policy.model}
    if not isinstance(stage, PPOStage):
        return {"reward" if stage.stage == "reward" else "policy": stage.model.model}
    policy, reward = stage.policy.model, stage.reward.model.model if stage.reward.model else None
    return {
        "policy": policy,
        "rollout": policy,
        "reference": stage.reference.model or policy,
        "reward": reward,
        "critic": {"reward": reward, "policy": policy, "model": stage.critic.model}[stage.critic.init_from],
    }
