"""Configs, models and GPUs whose times can be worked out by hand."""

from functools import cache

from configs.gpus import GPUKind
from configs.load import load_config
from configs.schema import Pipeline, Stage
from orchestrator.estimate.efficiencies import Efficiencies
from orchestrator.estimate.records import StepTime
from orchestrator.estimate.roofline import Hardware
from orchestrator.estimate.steps import Given, Lengths, step_time
from orchestrator.estimate.work import ModelWork
from orchestrator.plan import make_plan
from orchestrator.plan_records import Plan

PPO_8B = "configs/recipes/ppo-8b-8gpu.yaml"

EIGHT_B = ModelWork(
    total_parameters=8e9,
    body_parameters=7e9,
    head_parameters=5e8,
    num_layers=32,
    hidden=4096,
    attention_width=4096,
    kv_width=2048,
)


def gpu(**changes: float) -> GPUKind:
    """Round numbers: 1e15 operations, 1e12 bytes of memory, 1e11 of NVLink, 1e10 of network and PCIe a second."""
    rates = {
        "memory_gib": 80.0,
        "bf16_flops": 1e15,
        "memory_bytes_per_s": 1e12,
        "nvlink_bytes_per_s": 1e11,
        "pcie_bytes_per_s": 1e10,
        "network_bytes_per_s": 1e10,
        "host_gib": 100.0,
    }
    return GPUKind(**(rates | changes), kubernetes_product="none", sources=("made up",))


PERFECT = Efficiencies(
    training=1.0,
    scoring=1.0,
    prefill=1.0,
    decode=1.0,
    streaming=1.0,
    collective=1.0,
    pcie=1.0,
    cpu_adam=1e9,
    decode_step_s=0.0,
    eager_layer_s=0.0,
    all_reduce_s=0.0,
    bucket_s=0.0,
)
"""Everything reaches its peak, so that numbers stay round."""


def hardware(efficiencies: Efficiencies = PERFECT, gpus_per_node: int = 8, **changes: float) -> Hardware:
    return Hardware(kind=gpu(**changes), gpus_per_node=gpus_per_node, efficiencies=efficiencies)


@cache
def planned(*overrides: str, recipe: str = PPO_8B) -> tuple[Stage, Plan]:
    config = load_config(recipe, overrides)
    assert not isinstance(config, Pipeline)
    return config, make_plan(config, None)


def time_of(
    *overrides: str,
    recipe: str = PPO_8B,
    on: Hardware | None = None,
    work: ModelWork = EIGHT_B,
    kv_tokens: float = 300_000,
    lengths: Lengths | None = None,
) -> StepTime:
    """Of a recipe with keys changed, every role with the same model on the same kind of GPU."""
    config, plan = planned(*overrides, recipe=recipe)
    given = Given(
        works=dict.fromkeys(plan.roles, work),
        hardware=dict.fromkeys(plan.groups, on or hardware()),
        kv_tokens=kv_tokens,
        lengths=lengths or Lengths(),
    )
    return step_time(config, plan, given)


TOGETHER = (
    *(f"{role}.placement.group=all" for role in ("policy", "critic", "reference", "reward.model")),
    *(f"{role}.placement.num_ranks=4" for role in ("policy", "critic", "reference", "reward.model")),
    *(f"{role}.engine.zero_stage=2" for role in ("policy", "critic")),
    "rollout.group=all",
    "rollout.num_engines=4",
)
"""All roles on 4 GPUs, taking turns."""
