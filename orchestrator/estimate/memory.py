"""Memory of one rank of each role, item by item. What is counted follows the code: `actors/engine`, `actors/models`, `actors/weight_sync`,
and what DeepSpeed 0.19 and vLLM 0.32 do with the settings that they are given there. docs/estimates.md has the formulas and what was
measured.

Legend: `P` parameters, `N` ranks, `d` bytes of the compute type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.gpus import GPUKind
from configs.schema.engine import EngineConfig
from configs.schema.rollout import RolloutConfig, WeightSyncConfig
from orchestrator.estimate.activations import (
    BYTES,
    largest_layer_bytes,
    logits_bytes,
    passing_bytes,
    saved_bytes,
)
from orchestrator.estimate.numbers import GIB
from orchestrator.estimate.records import EngineCapacity, Item, RoleMemory
from orchestrator.estimate.shapes import ModelShape
from orchestrator.plan_records import RolePlan, SyncChannel

MIB = 1024**2
BILLION = 10**9

CUDA_PROCESS_BYTES = 0.75 * GIB
"""Assumed: context, kernels, cuBLAS and NCCL of one process on its GPU. vLLM reports 0.35 GiB without NCCL (its issue 10517, RTX 3090)."""
HOST_PROCESS_BYTES = 2.5 * GIB
"""Assumed: a process of a rank on a GPU, in the node's memory: Python, torch, CUDA's libraries."""
CPU_PROCESS_BYTES = 0.4 * GIB
"""Measured: a rank on CPU with torch, DeepSpeed and transformers, before its model; pages of libraries that all ranks share left out."""
CPU_ENGINE_BYTES = 1.0 * GIB
"""Assumed: an engine's process on CPU before its model."""
ENGINE_WORKING_BYTES = 2.0 * GIB
"""Assumed: what vLLM's profiling run finds an engine to need beside weights and cache, on a GPU."""
GRAPHS_BYTES = 1.0 * GIB
"""Assumed: vLLM's CUDA graphs, where they are on."""

BUCKET_ELEMENTS = {"cuda": 100_000_000, "cpu": 1_000_000}
"""Of gradients on their way to other ranks, as `actors/engine/sharding.py` sets it."""
FLAT_ELEMENTS = 500_000_000
"""Of gradients that ranks sum at once at stage 0: DeepSpeed's own."""
LIVE_ELEMENTS = BILLION
"""Gathered parameters that ZeRO-3 keeps until their next use: DeepSpeed's `stage3_max_live_parameters`, left at its default."""
GATHER_BYTES = 256 * MIB
"""Gathered at once for weights out, as in `actors/engine/engine.py`."""
IN_FLIGHT = 2
"""Buckets of a weight sync under way, as in `actors/weight_sync/channel.py`."""

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """What decides the memory of a trained or frozen model's rank."""

    role: str
    shape: ModelShape
    scalar: bool
    """A head of one number a token in place of the output head."""
    engine: EngineConfig
    num_ranks: int
    device: Device

    @property
    def params(self) -> int:
        return self.shape.num_scalar_params if self.scalar else self.shape.num_params

    @property
    def bytes_per_param(self) -> int:
        return BYTES[self.engine.dtype]


def _item(name: str, amount: float, note: str) -> Item:
    return Item(name=name, amount=amount, note=note)


def _count(number: float) -> str:
    """`8.19e9`"""
    return f"{number:.3g}" if number < 1e5 else f"{number:.2e}".replace("e+0", "e").replace("e+", "e")


def process_item(device: Device) -> Item:
    if device == "cpu":
        return _item("process", CPU_PROCESS_BYTES, "torch, DeepSpeed, transformers: measured")
    return _item("process", CUDA_PROCESS_BYTES, "CUDA context and libraries: assumed")


# ------------------------------------------------------------------------------------------------------------ trained, frozen


def trained_memory(model: TrainedModel, *, sleeps: bool, sync: tuple[Item, ...] = ()) -> RoleMemory:
    """A rank that learns. `sync`: what sending its weights takes."""
    states = held(model.params, model.engine, model.num_ranks, model.device)
    process = process_item(model.device)
    host = []
    if model.device == "cuda":
        host = [_item("process", HOST_PROCESS_BYTES, "assumed"), *_offloaded(model), _loading(model)]
        if sleeps:
            host.append(_item("asleep", sum(item.amount for item in states), "its states while engines use the GPU"))
    working = {"score": _forward(model), "update": _update(model)}
    return RoleMemory(
        role=model.role,
        resident=(*states, process),
        working_by_phase=working | ({"sync": sync} if sync else {}),
        sleeps=sleeps and model.device == "cuda",
        asleep_bytes=process.amount,
        host=tuple(host),
    )


def frozen_memory(model: TrainedModel) -> RoleMemory:
    """A rank that only answers."""
    host = (_item("process", HOST_PROCESS_BYTES, "assumed"), _loading(model)) if model.device == "cuda" else ()
    return RoleMemory(
        role=model.role,
        resident=(_parameters(model.params, model.engine, model.num_ranks), process_item(model.device)),
        working_by_phase={"score": _forward(model)},
        sleeps=False,
        asleep_bytes=0.0,
        host=host,
    )


def held(params: float, engine: EngineConfig, num_ranks: int, device: Device) -> tuple[Item, ...]:
    """What lasts from update to update on a trained rank: weights, masters, moments, and the buffers of gradients that DeepSpeed allocates
    once. It is also what leaves the GPU, and comes back, where engines share it."""
    stage, count = engine.zero_stage, _count(params)
    items = [_parameters(params, engine, num_ranks)]
    if stage == 0:
        return (*items, _item("optimizer", 8 * params, f"{count} x 8 bytes: Adam's moments"))
    if not engine.offload_optimizer:
        items.append(_item("masters", 4 * params / num_ranks, f"{count} x 4 bytes / {num_ranks} ranks: fp32 weights"))
        items.append(_item("optimizer", 8 * params / num_ranks, f"{count} x 8 bytes / {num_ranks} ranks: Adam's moments"))
    if stage == 3 and not engine.offload_optimizer:
        items.append(_item("gradients", 4 * params / num_ranks, f"{count} x 4 bytes / {num_ranks} ranks: fp32"))
    if stage == 1 and engine.dtype == "bf16":
        items.append(_item("gradients", 4 * params, f"{count} x 4 bytes: fp32, whole"))
    if stage == 3:
        items.append(_item("buckets", 4 * BUCKET_ELEMENTS[device], "gradients on their way to other ranks"))
    return tuple(items)


def _parameters(params: float, engine: EngineConfig, num_ranks: int) -> Item:
    d = BYTES[engine.dtype]
    if engine.zero_stage < 3:
        return _item("parameters", d * params, f"{_count(params)} parameters x {d} bytes")
    return _item("parameters", d * params / num_ranks, f"{_count(params)} parameters x {d} bytes / {num_ranks} ranks")


def _offloaded(model: TrainedModel) -> tuple[Item, ...]:
    if not model.engine.offload_optimizer:
        return ()
    amount = 16 * model.params / model.num_ranks
    note = f"{_count(model.params)} x 16 bytes / {model.num_ranks} ranks: fp32 weights, Adam's moments, gradients"
    return (_item("offloaded", amount, note),)


def _loading(model: TrainedModel) -> Item:
    """At the start a model that is not sharded is read to the host first, by every rank."""
    d, stage = model.bytes_per_param, model.engine.zero_stage
    if stage == 3:
        return _item("loading", d * model.shape.largest_tensor, "one parameter at a time, at the start")
    return _item("loading", d * model.params, "the whole model, at the start")


def _gathered(model: TrainedModel) -> tuple[Item, ...]:
    """Under ZeRO-3 parameters that are used again soon stay whole, up to a billion; and the layer at work."""
    if model.engine.zero_stage != 3 or model.num_ranks == 1:
        return ()
    at_work = model.shape.largest_layer_params + model.shape.vocab_size * model.shape.hidden_size
    live = min(model.params, max(LIVE_ELEMENTS, at_work))
    return (_item("gathered", model.bytes_per_param * live, f"{_count(live)} parameters whole at once"),)


def _forward(model: TrainedModel) -> tuple[Item, ...]:
    tokens, shape, engine = model.engine.micro_batch_tokens, model.shape, model.engine
    items = [_item("activations", passing_bytes(shape, engine, tokens), f"{tokens} tokens, one layer at a time")]
    if not model.scalar:
        items.append(_item("logits", logits_bytes(shape, engine, tokens, backward=False), _chunk_note(model)))
    return (*_gathered(model), *items)


def _chunk_note(model: TrainedModel) -> str:
    chunk = min(model.engine.logits_chunk_tokens, model.engine.micro_batch_tokens)
    return f"{chunk} tokens x {model.shape.vocab_size} words"


def _update(model: TrainedModel) -> tuple[Item, ...]:
    """The worse of the last backward pass and of the optimizer's step."""
    return max(_backward(model), _step(model), key=lambda items: sum(item.amount for item in items))


def _backward(model: TrainedModel) -> tuple[Item, ...]:
    """Of the second micro-batch or a later one: where it begins, or where it ends and gradients go to other ranks."""
    return max(_begin_of_backward(model), _end_of_backward(model), key=lambda items: sum(item.amount for item in items))


def _begin_of_backward(model: TrainedModel) -> tuple[Item, ...]:
    tokens, shape, engine = model.engine.micro_batch_tokens, model.shape, model.engine
    how = "inputs of layers and one layer whole" if engine.activation_checkpointing else "all layers"
    items = [
        _item("activations", saved_bytes(shape, engine, tokens), f"{tokens} tokens, {how}"),
        _item("layer backward", largest_layer_bytes(shape, engine, tokens) / 2, "gradients within one layer"),
    ]
    if not model.scalar:
        items.append(_item("logits", logits_bytes(shape, engine, tokens, backward=True), _chunk_note(model)))
    # the head's gradient is counted with the logits; no other is on its way yet
    return (*_gathered(model), *items, *_accumulated(model), *_buckets(model, largest=model.scalar))


def _end_of_backward(model: TrainedModel) -> tuple[Item, ...]:
    """The micro-batch's own gradients beside those accumulated; at stage 0 a flat copy of them all is what ranks exchange."""
    params, ranks, stage, d = model.params, model.num_ranks, model.engine.zero_stage, model.bytes_per_param
    layer = largest_layer_bytes(model.shape, model.engine, model.engine.micro_batch_tokens)
    items = [_item("activations", layer, "the first layer's"), *_accumulated(model)]
    if stage == 0:
        flat = 4 * min(params, FLAT_ELEMENTS)
        items.append(_item("gradients, flat", flat, "for the ranks' sum"))
    elif stage == 2:
        items.append(
            _item("gradients of a micro-batch", d * params / ranks, f"{_count(params)} x {d} bytes / {ranks} ranks")
        )
    return (*_gathered(model), *items, *_buckets(model, largest=True))


def _accumulated(model: TrainedModel) -> tuple[Item, ...]:
    """Gradients between micro-batches, beyond what `held` has for good."""
    params, ranks, stage = model.params, model.num_ranks, model.engine.zero_stage
    count = _count(params)
    if stage == 0 or (stage == 1 and model.engine.dtype == "fp32"):
        return (_item("gradients", 4 * params, f"{count} x 4 bytes: fp32, whole"),)
    if stage == 1:
        return (_item("gradients bf16", 2 * params, f"{count} x 2 bytes: zeroed, not freed"),)
    if stage == 2 and not model.engine.offload_optimizer:
        return (_item("gradients", 4 * params / ranks, f"{count} x 4 bytes / {ranks} ranks: fp32"),)
    return ()


def _buckets(model: TrainedModel, *, largest: bool) -> tuple[Item, ...]:
    """Gradients on their way to other ranks; the `largest` parameter's is larger than a bucket and goes alone. Stage 3's bucket is there
    for good."""
    stage, alone = model.engine.zero_stage, 4 * model.shape.largest_tensor if largest else 0
    if stage in (0, 1) or (stage == 3 and not largest):
        return ()
    if stage == 3:
        return (_item("gradient of a layer", alone, "the largest parameter's"),)
    bucket = min(4 * BUCKET_ELEMENTS[model.device], 4 * model.params) * (2 if model.device == "cuda" else 1)
    return (_item("buckets", bucket + alone, "gradients on their way to other ranks"),)


def _step(model: TrainedModel) -> tuple[Item, ...]:
    """AdamW steps on one flat tensor under ZeRO 1 to 3: on CPU it makes two more of that size, on CUDA (`foreach`) one. Stage 3
    steps on a billion numbers at a time (`sub_group_size`, left at its default)."""
    params, ranks, stage = model.params, model.num_ranks, model.engine.zero_stage
    if stage == 0:
        temporary = 4 * params if model.device == "cuda" else 8 * model.shape.largest_tensor
        return (
            _item("gradients", 4 * params, f"{_count(params)} x 4 bytes: fp32, whole"),
            _item("optimizer step", temporary, "AdamW's intermediate results"),
        )
    if model.engine.offload_optimizer:
        return ()
    share = 4 * min(params / ranks, BILLION) if stage == 3 else 4 * params / ranks
    times = 1 if model.device == "cuda" else 2
    items = [_item("optimizer step", times * share, f"AdamW's intermediate results, {times} x {_count(share)} bytes")]
    if stage == 1 and model.engine.dtype == "bf16":
        # the flat fp32 gradients are stepped on as they are; those in bf16 go after the step (BF16_Optimizer.zero_grad)
        return (*items, *_accumulated(model))
    flat = "flat, and as they were accumulated" if model.engine.dtype == "fp32" or stage == 3 else "flat"
    copies = {1: 2, 2: 2, 3: 1}[stage] if model.engine.dtype == "fp32" else 1
    return (*items, _item("gradients", copies * share, f"fp32, {flat}"))


# ---------------------------------------------------------------------------------------------------------------- weight sync


def sync_memory(policy: TrainedModel, sync: WeightSyncConfig, channel: SyncChannel) -> tuple[Item, ...]:
    """Of the policy's rank 0, which sends (over `ipc` every rank does)."""
    d = policy.bytes_per_param
    largest = d * policy.shape.largest_tensor
    bucket = max(sync.bucket_mib * MIB, largest)
    buckets = 1 if channel == "ipc" else IN_FLIGHT + 1
    items = [_item("weight sync", buckets * bucket, f"{buckets} buckets of {bucket / MIB:.0f} MiB")]
    if policy.engine.zero_stage == 3 and policy.num_ranks > 1:
        items.append(_item("gathered", max(GATHER_BYTES, largest), "parameters whole for weights out"))
    return tuple(items)


def bucket_bytes(sync: WeightSyncConfig, shape: ModelShape, dtype: str) -> float:
    return max(sync.bucket_mib * MIB, BYTES[dtype] * shape.largest_tensor)


# -------------------------------------------------------------------------------------------------------------------- engines


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
    model: EngineModel, *, sleeps: bool, bucket: float | None
) -> tuple[RoleMemory, EngineCapacity | None]:
    """One GPU of an engine (or the engine on CPU), and what its cache holds; None where the GPU is not known.

    `bucket`: bytes of one bucket of a weight sync; None where no weights come.
    """
    tensor_parallel = model.rollout.tensor_parallel
    d = BYTES[model.rollout.dtype]
    params = model.shape.num_params
    weights = _item(
        "parameters",
        d * params / tensor_parallel,
        f"{_count(params)} parameters x {d} bytes" + (f" / {tensor_parallel} GPUs" if tensor_parallel > 1 else ""),
    )
    if model.plan.device == "cpu":
        resident, cache = _cpu_engine(model, weights)
    else:
        resident, cache = _gpu_engine(model, weights)
    sync = {}
    if bucket is not None:
        layer = d * model.shape.largest_layer_params / tensor_parallel
        sync = {
            "sync": (
                _item("weight sync", bucket, "a bucket"),
                _item("reload", layer, "a layer's new weights beside its old"),
            )
        }
    host = []
    if model.plan.device == "cuda":
        host.append(_item("process", tensor_parallel * HOST_PROCESS_BYTES, "assumed"))
        if sleeps:
            host.append(_item("asleep", d * params, "weights while others use the GPU"))
    memory = RoleMemory(
        role=model.plan.role,
        resident=resident,
        working_by_phase={"generate": (), **sync},
        sleeps=sleeps and model.plan.device == "cuda",
        asleep_bytes=CUDA_PROCESS_BYTES,
        host=tuple(host),
    )
    return memory, None if cache is None else _capacity(model, cache)


def _cpu_engine(model: EngineModel, weights: Item) -> tuple[tuple[Item, ...], float | None]:
    cache = model.rollout.kv_cache_gib * GIB
    # linear weights are packed for oneDNN: the originals are freed, except a tied head's
    packed = (
        0 if not model.shape.tied else BYTES[model.rollout.dtype] * model.shape.vocab_size * model.shape.hidden_size
    )
    return (
        weights,
        *([_item("packed head", packed, "oneDNN's copy of the tied head")] if packed else []),
        _item("kv_cache", cache, "rollout.kv_cache_gib"),
        _item("process", CPU_ENGINE_BYTES, "vLLM: assumed"),
    ), cache


def _gpu_engine(model: EngineModel, weights: Item) -> tuple[tuple[Item, ...], float | None]:
    process = process_item("cuda")
    if model.gpu is None:
        return (weights, process), None
    taken = model.rollout.gpu_memory_frac * model.gpu.memory_bytes
    cache = taken - weights.amount - ENGINE_WORKING_BYTES - process.amount
    items = [
        weights,
        _item("engine working", ENGINE_WORKING_BYTES, "vLLM's activations at their worst: assumed"),
        process,
        _item("kv_cache", max(0.0, cache), f"what rollout.gpu_memory_frac {model.rollout.gpu_memory_frac} leaves"),
    ]
    if not model.rollout.enforce_eager:
        items.append(_item("cuda graphs", GRAPHS_BYTES, "assumed"))
    return tuple(items), cache * model.rollout.tensor_parallel


def _capacity(model: EngineModel, cache: float) -> EngineCapacity:
    shape, d = model.shape, BYTES[model.rollout.dtype]
    copies = max(1.0, model.rollout.tensor_parallel / shape.num_kv_heads)
    per_token = shape.kv_elements * shape.num_layers * d * copies
    return EngineCapacity(
        kv_bytes_per_token=per_token, kv_cache_bytes=cache, sequences=cache / (per_token * model.longest)
    )
