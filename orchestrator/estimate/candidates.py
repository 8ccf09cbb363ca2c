"""Changes of a config that may help; `orchestrator.estimate.suggest` tries them. Nothing here says that one is allowed or does any good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.schema import Stage
from configs.schema.engine import EngineConfig, FrozenConfig, TrainerConfig
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.rollout import RolloutConfig
from orchestrator.plan import num_gpus
from orchestrator.plan_records import Plan, PPOPlan

Change = dict[str, object]
"""Keys of the stage to their new values."""
MEMORY_FRAC_LIMIT = 0.9
"""Of a GPU, that a suggestion gives to an engine."""
MICRO_BATCH_LIMIT = 65536
"""Tokens of a micro-batch that a suggestion goes up to."""
SECTIONS = {"policy": "policy", "critic": "critic", "reference": "reference", "reward": "reward.model"}
"""Role of a PPO run to the section of its model."""
TRAINED = ("policy", "critic")


def candidates(config: Stage, plan: Plan) -> Iterator[Change]:
    """Every change that is tried by itself."""
    if isinstance(config, PPOStage):
        sections: dict[str, TrainerConfig | FrozenConfig] = {"policy": config.policy, "critic": config.critic}
        if "reference" in plan.roles:
            sections["reference"] = config.reference
        if config.reward.model is not None:
            sections["reward"] = config.reward.model
        every = [
            list(_engine_changes(f"{SECTIONS[role]}.engine", section.engine, trained=role in TRAINED))
            for role, section in sections.items()
        ]
        for changes in every:
            yield from changes
        yield from _of_all(every)
        yield from _rollout_changes(config.rollout)
        yield from _moves(plan)
        yield from _joint(plan)
        assert isinstance(plan, PPOPlan)
        yield _everything_together(config, plan)
    elif isinstance(config, RankStage):
        yield from _rollout_changes(config.rollout)
    else:
        yield from _engine_changes("model.engine", config.model.engine, trained=True)


def trained_section(config: Stage, role: str) -> str | None:
    """Of a role's model, where it learns."""
    if isinstance(config, PPOStage):
        return role if role in TRAINED else None
    return None if isinstance(config, RankStage) else "model"


def _of_all(every: list[list[Change]]) -> Iterator[Change]:
    """The same change of every section that it is known for."""
    alike: dict[tuple[str, object], Change] = {}
    for changes in every:
        for change in changes:
            for key, value in change.items():
                alike.setdefault((key.rpartition(".")[2], value), {})[key] = value
    yield from (change for change in alike.values() if len(change) > 1)


def _engine_changes(key: str, engine: EngineConfig, *, trained: bool) -> Iterator[Change]:
    for stage in (0, 1, 2, 3) if trained else (0, 3):
        yield {f"{key}.zero_stage": stage}
    if trained:
        yield {f"{key}.activation_checkpointing": not engine.activation_checkpointing}
        yield {f"{key}.offload_optimizer": not engine.offload_optimizer}
    if engine.attention != "flash_attention_2":
        yield {f"{key}.attention": "flash_attention_2"}
    for tokens in (engine.micro_batch_tokens // 4, engine.micro_batch_tokens // 2, engine.micro_batch_tokens * 2):
        if 0 < tokens <= MICRO_BATCH_LIMIT:
            yield {f"{key}.micro_batch_tokens": tokens}
    if trained and engine.dtype == "fp32" and engine.zero_stage > 0:
        yield {f"{key}.dtype": "bf16"}


def _rollout_changes(rollout: RolloutConfig) -> Iterator[Change]:
    if rollout.enforce_eager:
        yield {"rollout.enforce_eager": False}
    for step in (-0.2, -0.1, 0.1, 0.2):
        share = round(rollout.gpu_memory_frac + step, 2)
        if 0 < share <= MEMORY_FRAC_LIMIT:
            yield {"rollout.gpu_memory_frac": share}
    for prompts in (rollout.prompts_per_wave // 2, rollout.prompts_per_wave * 2):
        if prompts:
            yield {"rollout.prompts_per_wave": prompts}
    engines, size = rollout.num_engines, rollout.tensor_parallel
    if engines % 2 == 0:
        yield {"rollout.num_engines": engines // 2, "rollout.tensor_parallel": size * 2}
    if size % 2 == 0:
        yield {"rollout.num_engines": engines * 2, "rollout.tensor_parallel": size // 2}


def _num_ranks_key(role: str) -> str:
    return "rollout.num_engines" if role == "rollout" else f"{SECTIONS[role]}.placement.num_ranks"


def _group_key(role: str) -> str:
    return "rollout.group" if role == "rollout" else f"{SECTIONS[role]}.placement.group"


def _moves(plan: Plan) -> Iterator[Change]:
    """GPUs from one group to another: as many as the other's next rank takes; and groups one bundle smaller."""
    groups = [group for group in plan.groups.values() if group.gpus_per_bundle]
    for giver in groups:
        if giver.num_bundles == 1:
            continue
        smaller: Change = {_num_ranks_key(role): giver.num_bundles - 1 for role in giver.roles}
        yield dict(smaller)
        for taker in groups:
            if taker != giver and taker.gpus_per_bundle == giver.gpus_per_bundle:
                yield smaller | {_num_ranks_key(role): taker.num_bundles + 1 for role in taker.roles}


def _joint(plan: Plan) -> Iterator[Change]:
    """One group's roles on another's GPUs, with as many ranks as that has."""
    groups = [group for group in plan.groups.values() if group.gpus_per_bundle]
    for guest in groups:
        for host in groups:
            if guest != host and "rollout" not in guest.roles:
                joined: Change = {_group_key(role): host.name for role in guest.roles}
                yield joined | {_num_ranks_key(role): host.num_bundles for role in guest.roles}


def _everything_together(config: PPOStage, plan: PPOPlan) -> Change:
    """All roles on all GPUs, taking turns; what leaves its GPU must be of a stage that can."""
    count = num_gpus(plan)
    on_gpus = [role for role, placed in plan.roles.items() if placed.gpus_per_rank]
    change: Change = {_group_key(role): "all" for role in on_gpus}
    change |= {_num_ranks_key(role): count for role in on_gpus}
    for role in TRAINED:
        change |= {f"{role}.engine.zero_stage": 2, f"{role}.engine.offload_optimizer": False}
    waves = min(config.rollout.prompts_per_wave, max(1, plan.prompts_per_step // count))
    return change | {"rollout.tensor_parallel": 1, "rollout.prompts_per_wave": waves}


def more_gpus(config: Stage, plan: Plan, lacking: Mapping[str, float]) -> Iterator[Change]:
    """Twice the ranks for the roles of groups that lack memory, frozen ones then sharded; engines of more GPUs."""
    if not isinstance(config, PPOStage | RankStage):
        yield {"model.placement.num_ranks": 2 * config.model.placement.num_ranks}
        return
    for group in plan.groups.values():
        if group.name in lacking and isinstance(config, PPOStage):
            more: Change = {_num_ranks_key(role): 2 * group.num_bundles for role in group.roles}
            yield dict(more)
            yield more | {
                f"{SECTIONS[role]}.engine.zero_stage": 3 for role in group.roles if role not in (*TRAINED, "rollout")
            }
    size = config.rollout.tensor_parallel
    for larger in (2 * size, 4 * size, 8 * size):
        if larger <= config.cluster.gpus_per_node:
            yield {"rollout.tensor_parallel": larger}
