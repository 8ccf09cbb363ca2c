"""What makes a plan impossible. Each check returns problems: the key, what was got, what is allowed."""

from __future__ import annotations

from collections.abc import Iterator

from actors.algorithms.kl_controller import AdaptiveKLController
from configs.errors import Problem
from configs.schema import Stage, SupervisedStage
from configs.schema.compare import CompareConfig
from configs.schema.engine import FrozenConfig, TrainerConfig
from configs.schema.ppo import AdaptiveKLConfig, PPOStage
from configs.schema.rank import RankStage
from configs.schema.reward import RewardStage
from configs.schema.supervised import DPOStage
from orchestrator.plan_records import ComparePlan, Machine, Plan, PPOPlan, RankPlan, SupervisedPlan

Sections = dict[str, TrainerConfig | FrozenConfig]
"""Models of a stage, by the path of their section."""


def ppo_problems(config: PPOStage, plan: PPOPlan, machine: Machine | None) -> list[Problem]:
    """Everything that keeps stage `ppo` from running on `machine`."""
    sections: Sections = {"policy": config.policy, "critic": config.critic}
    if plan.needs_reference:
        sections["reference"] = config.reference
    if config.reward.model is not None:
        sections["reward.model"] = config.reward.model
    return [
        *_machine(config, plan, machine),
        *_threads(sections, _cores(config, machine)),
        *_shared_groups(plan),
        *_minibatches(config, plan),
        *_lengths(config, sections),
        *_schedules(config, plan),
        *_kl_controller(config, plan),
        *_channel(config, plan),
        *_device(config.cluster.device, sections),
        *_engines(config, plan, _cores(config, machine)),
        *_turns(config, plan),
    ]


def supervised_problems(config: SupervisedStage, plan: SupervisedPlan, machine: Machine | None) -> list[Problem]:
    """Everything that keeps a supervised stage from running on `machine`."""
    num_ranks, budget, longest = (
        plan.roles[plan.role].num_ranks,
        config.model.engine.micro_batch_tokens,
        config.data.max_tokens,
    )
    problems = [
        *_machine(config, plan, machine),
        *_threads({"model": config.model}, _cores(config, machine)),
        *_device(config.cluster.device, {"model": config.model}),
    ]
    ranked = isinstance(config, RewardStage | DPOStage)
    if plan.items_per_step < num_ranks:
        key = "training.groups_per_step" if ranked else "training.sequences_per_step"
        allowed = f"at least {num_ranks}, one for each rank (model.placement.num_ranks)"
        problems.append(_problem(key, plan.items_per_step, allowed))
    if ranked and budget < 2 * longest:
        allowed = f"at least {2 * longest}, two answers of data.max_tokens: a group is compared within a micro-batch"
        problems.append(_problem("model.engine.micro_batch_tokens", budget, allowed))
    if not ranked and budget < longest:
        allowed = f"at least {longest}, the longest sequence (data.max_tokens)"
        problems.append(_problem("model.engine.micro_batch_tokens", budget, allowed))
    return problems


def rank_problems(config: RankStage, plan: RankPlan, machine: Machine | None) -> list[Problem]:
    """Everything that keeps stage `rank` from running on `machine`."""
    return [*_machine(config, plan, machine), *_engine_size(config, _cores(config, machine))]


def compare_problems(config: CompareConfig, plan: ComparePlan, machine: Machine | None) -> list[Problem]:
    """Everything that keeps a comparison from running on `machine`."""
    sections: Sections = {"reward.model": config.reward.model} if config.reward is not None else {}
    cores = _cores(config, machine)
    return [
        *_machine(config, plan, machine),
        *_threads(sections, cores),
        *_device(config.cluster.device, sections),
        *_engine_size(config, cores),
    ]


def _problem(key: str, got: object, allowed: str) -> Problem:
    return Problem(key=key, got=f"got {got}", allowed=allowed)


def _cores(config: Stage | CompareConfig, machine: Machine | None) -> int | None:
    return config.cluster.num_cpus or (machine.num_cpus if machine else None)


def _machine(config: Stage | CompareConfig, plan: Plan, machine: Machine | None) -> Iterator[Problem]:
    if machine is None:
        return
    there = f"{machine.where} has {machine.num_cpus} CPU cores"
    if config.cluster.num_cpus and config.cluster.num_cpus > machine.num_cpus:
        yield _problem("cluster.num_cpus", config.cluster.num_cpus, f"at most {machine.num_cpus}: {there}")
    if config.cluster.device == "cpu":
        return
    if machine.num_gpus == 0:
        yield _problem("cluster.device", "'cuda'", f"'cpu': {machine.where} has no GPU")
        return
    groups = [group for group in plan.groups.values() if group.gpus_per_bundle]
    sizes = {group.name: group.num_bundles * group.gpus_per_bundle for group in groups}
    if sum(sizes.values()) > machine.num_gpus:
        listed = " + ".join(f"{name} {size}" for name, size in sizes.items())
        allowed = (
            f"{machine.num_gpus}: {machine.where} has no more; roles that name the same placement.group share GPUs"
        )
        yield Problem(
            key="cluster.device", got=f"the groups take {sum(sizes.values())} GPUs ({listed})", allowed=allowed
        )


def _threads(sections: Sections, cores: int | None) -> Iterator[Problem]:
    for key, section in sections.items():
        given, num_ranks = section.placement.threads_per_rank, section.placement.num_ranks
        yield from _too_many_threads(f"{key}.placement.threads_per_rank", given, num_ranks, cores)


def _too_many_threads(key: str, given: int | None, num_ranks: int, cores: int | None) -> Iterator[Problem]:
    if given and cores and given > max(1, cores // num_ranks):
        ranks = "1 rank has" if num_ranks == 1 else f"{num_ranks} ranks share"
        yield _problem(key, given, f"at most {max(1, cores // num_ranks)}: {ranks} {cores} cores")


def _engines(config: PPOStage, plan: PPOPlan, cores: int | None) -> Iterator[Problem]:
    """Number, threads and device of the rollout engines."""
    rollout = config.rollout
    yield from _engine_size(config, cores)
    if len(plan.waves) < rollout.num_engines:
        waves = (
            f"{plan.prompts_per_step} prompts a step in waves of {rollout.prompts_per_wave} (rollout.prompts_per_wave)"
        )
        yield _problem("rollout.num_engines", rollout.num_engines, f"at most {len(plan.waves)}: {waves}")


def _engine_size(config: PPOStage | RankStage | CompareConfig, cores: int | None) -> Iterator[Problem]:
    rollout = config.rollout
    yield from _too_many_threads("rollout.threads_per_engine", rollout.threads_per_engine, rollout.num_engines, cores)
    if config.cluster.device == "cpu" and rollout.tensor_parallel > 1:
        yield _problem("rollout.tensor_parallel", rollout.tensor_parallel, "1 with cluster.device cpu")


def _shared_groups(plan: PPOPlan) -> Iterator[Problem]:
    for role in plan.roles.values():
        of_functions = role.group.startswith("reward_function_") or role.group == "judge"
        if of_functions and role.group != role.role:
            allowed = "another name: groups reward_function_... and judge belong to the workers of functions"
            yield Problem(key=f"group of {role.role}", got=f"got {role.group!r}", allowed=allowed)
    for group in plan.groups.values():
        roles = [plan.roles[role] for role in group.roles]
        if any(role.gpus_per_rank > 1 for role in roles) and len(roles) > 1:
            # Ray gives each role a part of one GPU, and shows an engine no second one
            allowed = f"1 in the group {group.name!r}, which others share, or a rollout.group of the engines' own"
            yield _problem("rollout.tensor_parallel", max(role.gpus_per_rank for role in roles), allowed)
        elif len({role.num_ranks for role in roles}) > 1:
            sizes = ", ".join(f"{role.role} {role.num_ranks}" for role in roles)
            allowed = "roles of one group have the same number of ranks"
            yield Problem(key=f"group {group.name!r}", got=f"got {sizes}", allowed=allowed)


def _turns(config: PPOStage, plan: PPOPlan) -> Iterator[Problem]:
    """Engines that share GPUs take turns with policy and critic, whose memory then goes to the host and comes back."""
    if config.cluster.device == "cpu" or not plan.rollout_shares_gpu:
        return
    where = f"the engines share the GPUs of group {plan.roles['rollout'].group!r}, and this model's memory leaves its GPU in their turn"
    for key, section in {"policy": config.policy, "critic": config.critic}.items():
        engine = section.engine
        if engine.zero_stage == 1 and engine.dtype == "bf16":
            # DeepSpeed's optimizer for this pair has no way to move its states
            yield _problem(f"{key}.engine.zero_stage", "1 with engine.dtype bf16", f"2: {where}")
        if engine.zero_stage == 3:
            # DeepSpeed moves a stage 3 optimizer only where it is its own FusedAdam
            yield _problem(f"{key}.engine.zero_stage", 3, f"2, or a group of its own: {where}")
        if engine.offload_optimizer:
            yield _problem(f"{key}.engine.offload_optimizer", "true", f"false: {where}")


def _minibatches(config: PPOStage, plan: PPOPlan) -> Iterator[Problem]:
    num, trajectories = config.ppo.minibatches, plan.trajectories_per_step
    parts = f"ppo.prompts_per_step {plan.prompts_per_step} x rollout.responses_per_prompt {config.rollout.responses_per_prompt}"
    product = f"{trajectories} trajectories ({parts})"
    if trajectories % num:
        yield _problem("ppo.minibatches", num, f"a divisor of the step's {product}")
        return
    for role in ("policy", "critic"):
        ranks = plan.roles[role].num_ranks
        if plan.trajectories_per_minibatch < ranks:
            allowed = f"at most {plan.trajectories_per_minibatch}, the trajectories of a minibatch: {product} in {num} minibatches"
            yield _problem(f"{role}.placement.num_ranks", ranks, allowed)


def _lengths(config: PPOStage, sections: Sections) -> Iterator[Problem]:
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    for key, section in sections.items():
        budget = section.engine.micro_batch_tokens
        if budget < prompt + response:
            parts = f"data.max_prompt_tokens {prompt} + rollout.max_response_tokens {response}"
            allowed = f"at least {prompt + response}, the longest sequence: {parts}"
            yield _problem(f"{key}.engine.micro_batch_tokens", budget, allowed)


def _schedules(config: PPOStage, plan: PPOPlan) -> Iterator[Problem]:
    if config.critic.warmup_steps >= config.ppo.steps:
        allowed = f"less than ppo.steps ({config.ppo.steps}): the policy learns in none otherwise"
        yield _problem("critic.warmup_steps", config.critic.warmup_steps, allowed)
        return
    for role, section, updates in (
        ("policy", config.policy, plan.policy_updates),
        ("critic", config.critic, plan.total_updates),
    ):
        if section.optimizer.warmup_steps >= updates:
            allowed = f"less than {updates}, the optimizer steps of the run"
            yield _problem(f"{role}.optimizer.warmup_steps", section.optimizer.warmup_steps, allowed)


def _kl_controller(config: PPOStage, plan: PPOPlan) -> Iterator[Problem]:
    """The controller multiplies its coefficient by as little as 1 - limit x trajectories / horizon, which must stay above 0."""
    controller = config.ppo.kl.controller
    if not isinstance(controller, AdaptiveKLConfig):
        return
    if 1.0 - AdaptiveKLController.MAX_ERROR * plan.trajectories_per_step / controller.horizon <= 0:
        least = AdaptiveKLController.MAX_ERROR * plan.trajectories_per_step
        allowed = (
            f"more than {least:g}, {AdaptiveKLController.MAX_ERROR:g} x the step's {plan.trajectories_per_step} trajectories: "
            "the KL coefficient could fall to 0 in one step otherwise"
        )
        yield _problem("ppo.kl.controller.horizon", controller.horizon, allowed)


def _channel(config: PPOStage, plan: PPOPlan) -> Iterator[Problem]:
    channel = config.weight_sync.channel
    if channel in ("auto", "cpu"):
        return
    same_group = plan.roles["rollout"].group == plan.roles["policy"].group
    if config.cluster.device == "cpu":
        yield _problem("weight_sync.channel", repr(channel), "'auto' or 'cpu' with cluster.device cpu")
    elif channel == "ipc" and not same_group:
        allowed = "'auto', 'nccl' or 'cpu': rollout and policy are in different groups"
        yield _problem("weight_sync.channel", "'ipc'", allowed)
    elif channel == "nccl" and same_group:
        allowed = "'auto', 'ipc' or 'cpu': rollout and policy share the GPUs of one group"
        yield _problem("weight_sync.channel", "'nccl'", allowed)


def _device(device: str, sections: Sections) -> Iterator[Problem]:
    if device != "cpu":
        return
    for key, section in sections.items():
        if section.engine.offload_optimizer:
            yield _problem(f"{key}.engine.offload_optimizer", "true", "false with cluster.device cpu")
        if section.engine.attention == "flash_attention_2":
            yield _problem(
                f"{key}.engine.attention", "'flash_attention_2'", "'sdpa' or 'eager' with cluster.device cpu"
            )
