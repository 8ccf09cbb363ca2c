"""Memory of a rollout engine, item by item: what vLLM 0.32 does with the settings that it is given. docs/estimates.md has the formulas."""

from __future__ import annotations

from dataclasses import dataclass

from configs.gpus import GPUKind
from configs.schema.rollout import RolloutConfig
from orchestrator.estimate.activations import BYTES
from orchestrator.estimate.memory import CUDA_PROCESS_BYTES, HOST_PROCESS_BYTES, counted, process_item
from orchestrator.estimate.numbers import GIB, count_text
from orchestrator.estimate.records import EngineCapacity, Item, RoleMemory
from orchestrator.estimate.shapes import ModelShape
from orchestrator.plan_records import RolePlan

CPU_ENGINE_BYTES = 1.0 * GIB
"""Assumed: an engine's process on CPU before its model."""
ENGINE_WORKING_BYTES = 2.0 * GIB
"""Assumed: what vLLM's profiling run finds an engine to need beside weights and cache, on a GPU."""
GRAPHS_BYTES = 1.0 * GIB
"""Assumed: vLLM's CUDA graphs, where they are on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """What decides the memory of a rollout engine."""

    shape: ModelShape
    rollout: RolloutConfig
    plan: RolePlan
    longest: int
    """Tokens of the longest sequence."""
    gpu: GPUKind | None
    """None on CPU, or where it is not known."""


def engine_memory(
    model: EngineModel, *, sleeps: bool, received: float | None
) -> tuple[RoleMemory, EngineCapacity | None]:
    """One GPU of an engine (or the engine on CPU), and what its cache holds; None where the GPU is not known.

    `received`: bytes of a weight sync's buckets that it holds of its own at once; None where no weights come.
    """
    tensor_parallel = model.rollout.tensor_parallel
    d = BYTES[model.rollout.dtype]
    params = model.shape.num_params
    weights = counted(
        "parameters",
        d * params / tensor_parallel,
        f"{count_text(params)} parameters x {d} bytes" + (f" / {tensor_parallel} GPUs" if tensor_parallel > 1 else ""),
    )
    if model.plan.device == "cpu":
        resident, cache = _cpu_engine(model, weights)
    else:
        resident, cache = _gpu_engine(model, weights)
    host = []
    if model.plan.device == "cuda":
        host.append(counted("process", tensor_parallel * HOST_PROCESS_BYTES, "assumed"))
        if sleeps:
            host.append(counted("asleep", d * params, "weights while others use the GPU"))
    memory = RoleMemory(
        role=model.plan.role,
        resident=resident,
        working_by_phase={"generate": ()} | ({"sync": _received(model, received)} if received is not None else {}),
        sleeps=sleeps and model.plan.device == "cuda",
        asleep_bytes=CUDA_PROCESS_BYTES,
        host=tuple(host),
    )
    return memory, None if cache is None else _capacity(model, cache)


def _received(model: EngineModel, received: float) -> tuple[Item, ...]:
    layer = BYTES[model.rollout.dtype] * model.shape.largest_layer_params / model.rollout.tensor_parallel
    reload = counted("reload", layer, "a layer's new weights beside its old")
    return (counted("weight sync", received, "buckets on their way"), reload) if received else (reload,)


def _cpu_engine(model: EngineModel, weights: Item) -> tuple[tuple[Item, ...], float | None]:
    cache = model.rollout.kv_cache_gib * GIB
    # linear weights are packed for oneDNN: the originals are freed, except a tied head's
    packed = (
        0 if not model.shape.tied else BYTES[model.rollout.dtype] * model.shape.vocab_size * model.shape.hidden_size
    )
    return (
        weights,
        *([counted("packed head", packed, "oneDNN's copy of the tied head")] if packed else []),
        counted("kv_cache", cache, "rollout.kv_cache_gib"),
        counted("process", CPU_ENGINE_BYTES, "vLLM: assumed"),
    ), cache


def _gpu_engine(model: EngineModel, weights: Item) -> tuple[tuple[Item, ...], float | None]:
    process = process_item("cuda")
    if model.gpu is None:
        return (weights, process), None
    taken = model.rollout.gpu_memory_frac * model.gpu.memory_bytes
    cache = taken - weights.amount - ENGINE_WORKING_BYTES - process.amount
    items = [
        weights,
        counted("engine working", ENGINE_WORKING_BYTES, "vLLM's activations at their worst: assumed"),
        process,
        counted("kv_cache", max(0.0, cache), f"what rollout.gpu_memory_frac {model.rollout.gpu_memory_frac} leaves"),
    ]
    if not model.rollout.enforce_eager:
        items.append(counted("cuda graphs", GRAPHS_BYTES, "assumed"))
    return tuple(items), cache * model.rollout.tensor_parallel


def _capacity(model: EngineModel, cache: float) -> EngineCapacity:
    shape, d = model.shape, BYTES[model.rollout.dtype]
    copies = max(1.0, model.rollout.tensor_parallel / shape.cached_heads)
    per_token = shape.kv_elements * shape.num_layers * d * copies
    return EngineCapacity(
        kv_bytes_per_token=per_token, kv_cache_bytes=cache, sequences=cache / (per_token * model.longest)
    )
