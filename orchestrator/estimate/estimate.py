"""The estimate of a stage: sizes of its models, memory of its roles, peaks of its groups over the phases of a step.

| phase | who works | who sleeps, where engines share GPUs with others |
| --- | --- | --- |
| generate | engines | policy, critic |
| score | policy, critic, reference, reward | engines |
| update | policy, critic (at the same time) | engines |
| sync | policy, engines; the critic still updates where nobody sleeps | critic |

Reference and reward never leave their GPU. Roles that share no GPU with engines never sleep.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs.gpus import GPUKind, gpu_kind
from configs.schema import STAGE_PREFIX, Config, Pipeline, Stage
from configs.schema.engine import FrozenConfig, TrainerConfig
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.reward import RewardStage
from orchestrator.estimate.engines import EngineModel, engine_memory
from orchestrator.estimate.groups import group_memories, machine_memory, tight_fits
from orchestrator.estimate.memory import (
    RECEIVER_BUCKETS,
    STORED_BUCKETS,
    TrainedModel,
    bucket_bytes,
    frozen_memory,
    sync_memory,
    trained_memory,
)
from orchestrator.estimate.model_files import find_model
from orchestrator.estimate.records import EngineCapacity, Estimate, RoleMemory
from orchestrator.estimate.shapes import ModelShape, UnknownModel
from orchestrator.plan_records import Plan, PPOPlan, RankPlan, SupervisedPlan


def stages_of(config: Config) -> dict[str, Stage]:
    """By name; one that is no pipeline's has its own."""
    return dict(config.stages) if isinstance(config, Pipeline) else {str(config.stage): config}


def beneath(config: Config) -> dict[str, str]:
    """`stage:NAME` to the model that the stage starts from: its sizes are those of the export."""
    names: dict[str, str] = {}
    if isinstance(config, Pipeline):
        for name, stage in config.stages.items():
            trained = stage.policy.model if isinstance(stage, PPOStage | RankStage) else stage.model.model
            assert trained is not None, "checked by the schema"
            names[STAGE_PREFIX + name] = names.get(trained, trained)
    return names


def estimate(stage: Stage, plan: Plan, machine_bytes: float | None, names: Mapping[str, str]) -> Estimate:
    """Memory of one stage. `names`: which model a `stage:NAME` is, beneath its weights.

    Raises:
        ConfigError: for an unknown GPU kind.
    """
    kinds = group_kinds(stage, plan)
    models = _Models(names)
    if isinstance(stage, PPOStage):
        assert isinstance(plan, PPOPlan)
        roles, engines = _ppo(stage, plan, kinds, models)
    elif isinstance(stage, RankStage):
        assert isinstance(plan, RankPlan)
        roles, engines = _rank(stage, plan, kinds, models)
    else:
        assert isinstance(plan, SupervisedPlan)
        roles, engines = _supervised(stage, plan, models)
    on_cpu = stage.cluster.device == "cpu"
    groups = group_memories(stage, plan, roles, kinds, stored=_buckets(stage, models, STORED_BUCKETS))
    machine = machine_memory(plan, roles, machine_bytes) if on_cpu and stage.cluster.address is None else None
    if not on_cpu and any(kinds[name] is None for name, group in plan.groups.items() if group.gpus_per_bundle):
        models.unknown.append("the kind of GPU is not given (cluster.gpu): nothing is held against its memory")
    return Estimate(
        roles=roles,
        groups=groups,
        engines=engines,
        time=None,
        suggestions=(),
        machine=machine,
        warnings=tuple(tight_fits(groups, plan, kinds)),
        unknown=tuple(dict.fromkeys(models.unknown)),
    )


def group_kinds(stage: Stage, plan: Plan) -> dict[str, GPUKind | None]:
    """Kind of each group's GPUs; None where it is not said, or the group has none.

    Raises:
        ConfigError: unknown kind.
    """
    found: dict[str, GPUKind | None] = {}
    for name, group in plan.groups.items():
        own = stage.cluster.groups[name].gpu if name in stage.cluster.groups else None
        key = f"cluster.groups.{name}.gpu" if own else "cluster.gpu"
        kind = own or stage.cluster.gpu
        found[name] = gpu_kind(kind, key) if kind and group.gpus_per_bundle else None
    return found


class _Models:
    """Sizes by name, and what is unknown."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.unknown: list[str] = []

    def shape(self, role: str, model: str) -> ModelShape | None:
        """None where it is unknown: then it is noted."""
        try:
            return find_model(self.names.get(model, model)).shape
        except UnknownModel as error:
            self.unknown.append(f"memory of {role}: {error}")
            return None


Memories = tuple[dict[str, RoleMemory], dict[str, EngineCapacity]]


def _trained(
    models: _Models, plan: Plan, role: str, section: TrainerConfig | FrozenConfig, model: str, *, scalar: bool
) -> TrainedModel | None:
    shape = models.shape(role, model)
    if shape is None:
        return None
    placed = plan.roles[role]
    return TrainedModel(
        role=role,
        shape=shape,
        scalar=scalar,
        engine=section.engine,
        num_ranks=placed.num_ranks,
        device=placed.device,
    )


def _ppo(stage: PPOStage, plan: PPOPlan, kinds: Mapping[str, GPUKind | None], models: _Models) -> Memories:
    policy, reward = stage.policy.model, stage.reward.model
    assert policy is not None
    critic = {"reward": reward.model if reward else None, "policy": policy, "model": stage.critic.model}
    sections: dict[str, tuple[TrainerConfig | FrozenConfig, str | None]] = {
        "policy": (stage.policy, policy),
        "critic": (stage.critic, critic[stage.critic.init_from]),
        "reference": (stage.reference, stage.reference.model or policy),
    }
    if reward is not None:
        sections["reward"] = (reward, reward.model)
    roles: dict[str, RoleMemory] = {}
    for role, (section, model) in sections.items():
        if role not in plan.roles or model is None:
            continue
        found = _trained(models, plan, role, section, model, scalar=role in ("critic", "reward"))
        if found is None:
            continue
        if isinstance(section, FrozenConfig):
            roles[role] = frozen_memory(found)
            continue
        sent = sync_memory(found, stage.weight_sync, plan.sync_channel) if role == "policy" else ()
        roles[role] = trained_memory(found, sleeps=plan.rollout_shares_gpu, sync=sent)
    engines: dict[str, EngineCapacity] = {}
    shape = models.shape("rollout", policy)
    if shape is not None:
        engine = EngineModel(
            shape=shape,
            rollout=stage.rollout,
            plan=plan.roles["rollout"],
            longest=stage.data.max_prompt_tokens + stage.rollout.max_response_tokens,
            gpu=kinds[plan.roles["rollout"].group],
        )
        received = _buckets(stage, models, RECEIVER_BUCKETS[plan.sync_channel])
        roles["rollout"], capacity = engine_memory(engine, sleeps=plan.rollout_shares_gpu, received=received)
        engines = {} if capacity is None else {"rollout": capacity}
    return roles, engines


def stored_weights(stage: Stage, names: Mapping[str, str]) -> float:
    """Bytes of a weight sync that are in Ray's object store at once over channel `cpu`; 0 where the model is not known."""
    return _buckets(stage, _Models(names), STORED_BUCKETS)


def _buckets(stage: Stage, models: _Models, num: int) -> float:
    """Bytes of so many of a weight sync's; 0 where there is none, or the model is not known."""
    if not isinstance(stage, PPOStage) or num == 0:
        return 0.0
    assert stage.policy.model is not None
    shape = models.shape("rollout", stage.policy.model)
    return bucket_bytes(stage.weight_sync, shape, stage.policy.engine.dtype, num) if shape else 0.0


def _rank(stage: RankStage, plan: RankPlan, kinds: Mapping[str, GPUKind | None], models: _Models) -> Memories:
    assert stage.policy.model is not None
    shape = models.shape("rollout", stage.policy.model)
    if shape is None:
        return {}, {}
    engine = EngineModel(
        shape=shape,
        rollout=stage.rollout,
        plan=plan.roles["rollout"],
        longest=stage.data.max_prompt_tokens + stage.rollout.max_response_tokens,
        gpu=kinds[plan.roles["rollout"].group],
    )
    memory, capacity = engine_memory(engine, sleeps=False, received=None)
    return {"rollout": memory}, {} if capacity is None else {"rollout": capacity}


def _supervised(stage: Stage, plan: SupervisedPlan, models: _Models) -> Memories:
    assert not isinstance(stage, PPOStage | RankStage)
    assert stage.model.model is not None
    found = _trained(models, plan, plan.role, stage.model, stage.model.model, scalar=isinstance(stage, RewardStage))
    return ({plan.role: trained_memory(found, sleeps=False)} if found else {}), {}
