"""Memory of one trained or frozen rank, item by item; `orchestrator.estimate.engines` has the engines. What is counted follows the code:
`actors/engine`, `actors/models`, `actors/weight_sync`, and what DeepSpeed 0.19 does with the settings that it is given there.
docs/estimates.md has the formulas and what was measured.

Legend: `P` parameters, `N` ranks, `d` bytes of the compute type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.schema.engine import EngineConfig
from configs.schema.rollout import WeightSyncConfig
from orchestrator.estimate.activations import (
    BYTES,
    largest_layer_bytes,
    logits_bytes,
    passing_bytes,
    saved_bytes,
)
from orchestrator.estimate.numbers import GIB, count_text
from orchestrator.estimate.records import Item, RoleMemory
from orchestrator.estimate.shapes import ModelShape
from orchestrator.plan_records import SyncChannel

MIB = 1024**2
BILLION = 10**9

CUDA_PROCESS_BYTES = 0.75 * GIB
"""Assumed: context, kernels, cuBLAS and NCCL of one process on its GPU. vLLM reports 0.35 GiB without NCCL (its issue 10517, RTX 3090)."""
HOST_PROCESS_BYTES = 2.5 * GIB
"""Assumed: a process of a rank on a GPU, in the node's memory: Python, torch, CUDA's libraries."""
CPU_PROCESS_BYTES = 0.4 * GIB
"""Measured: a rank on CPU with torch, DeepSpeed and transformers, before its model; pages of libraries that all ranks share left out."""

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
STORED_BUCKETS = IN_FLIGHT + 1
SENT = "weight sync"
"""Item of what the policy's rank 0 alone holds."""
"""In Ray's object store, over channel `cpu`: those under way, and the one before, while an engine waits for the rest of a layer in it."""
SENDER_BUCKETS = 2
"""Of rank 0's own: one that it fills while it still has the one before."""
RECEIVER_BUCKETS = {"nccl": 2, "ipc": 2, "cpu": 0}
"""Of an engine's worker: the one that comes, and the one before, while vLLM waits for the rest of a layer in it. Over `cpu` it reads them
in the object store."""

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


def counted(name: str, amount: float, note: str) -> Item:
    """One use of memory, in bytes, and how it comes about."""
    return Item(name=name, amount=amount, note=note)


def process_item(device: Device) -> Item:
    if device == "cpu":
        return counted("process", CPU_PROCESS_BYTES, "torch, DeepSpeed, transformers: measured")
    return counted("process", CUDA_PROCESS_BYTES, "CUDA context and libraries: assumed")


# ------------------------------------------------------------------------------------------------------------ trained, frozen


def trained_memory(model: TrainedModel, *, sleeps: bool, sync: tuple[Item, ...] = ()) -> RoleMemory:
    """A rank that learns. `sync`: what sending its weights takes."""
    states = held(model.params, model.engine, model.num_ranks, model.device)
    process = process_item(model.device)
    host = []
    if model.device == "cuda":
        host = [counted("process", HOST_PROCESS_BYTES, "assumed"), *_offloaded(model), _loading(model)]
        if sleeps:
            host.append(counted("asleep", sum(item.amount for item in states), "its states while engines use the GPU"))
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
    host = (counted("process", HOST_PROCESS_BYTES, "assumed"), _loading(model)) if model.device == "cuda" else ()
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
    stage, count = engine.zero_stage, count_text(params)
    items = [_parameters(params, engine, num_ranks)]
    if stage == 0:
        return (*items, counted("optimizer", 8 * params, f"{count} x 8 bytes: Adam's moments"))
    if not engine.offload_optimizer:
        items.append(counted("masters", 4 * params / num_ranks, f"{count} x 4 bytes / {num_ranks} ranks: fp32 weights"))
        items.append(
            counted("optimizer", 8 * params / num_ranks, f"{count} x 8 bytes / {num_ranks} ranks: Adam's moments")
        )
    if stage == 3 and not engine.offload_optimizer:
        items.append(counted("gradients", 4 * params / num_ranks, f"{count} x 4 bytes / {num_ranks} ranks: fp32"))
    if stage == 1 and engine.dtype == "bf16":
        items.append(counted("gradients", 4 * params, f"{count} x 4 bytes: fp32, whole"))
    if stage == 3:
        items.append(counted("buckets", 4 * BUCKET_ELEMENTS[device], "gradients on their way to other ranks"))
    return tuple(items)


def _parameters(params: float, engine: EngineConfig, num_ranks: int) -> Item:
    d = BYTES[engine.dtype]
    if engine.zero_stage < 3:
        return counted("parameters", d * params, f"{count_text(params)} parameters x {d} bytes")
    return counted(
        "parameters", d * params / num_ranks, f"{count_text(params)} parameters x {d} bytes / {num_ranks} ranks"
    )


def _offloaded(model: TrainedModel) -> tuple[Item, ...]:
    if not model.engine.offload_optimizer:
        return ()
    amount = 16 * model.params / model.num_ranks
    note = f"{count_text(model.params)} x 16 bytes / {model.num_ranks} ranks: fp32 weights, Adam's moments, gradients"
    return (counted("offloaded", amount, note),)


def _loading(model: TrainedModel) -> Item:
    """At the start a model that is not sharded is read to the host first, by every rank."""
    d, stage = model.bytes_per_param, model.engine.zero_stage
    if stage == 3:
        return counted("loading", d * model.shape.largest_tensor, "one parameter at a time, at the start")
    return counted("loading", d * model.params, "the whole model, at the start")


def _gathered(model: TrainedModel) -> tuple[Item, ...]:
    """Under ZeRO-3 parameters that are used again soon stay whole, up to a billion; and the layer at work."""
    if model.engine.zero_stage != 3 or model.num_ranks == 1:
        return ()
    at_work = model.shape.largest_layer_params + model.shape.vocab_size * model.shape.hidden_size
    live = min(model.params, max(LIVE_ELEMENTS, at_work))
    return (counted("gathered", model.bytes_per_param * live, f"{count_text(live)} parameters whole at once"),)


def _forward(model: TrainedModel) -> tuple[Item, ...]:
    tokens, shape, engine = model.engine.micro_batch_tokens, model.shape, model.engine
    items = [counted("activations", passing_bytes(shape, engine, tokens), f"{tokens} tokens, one layer at a time")]
    if not model.scalar:
        items.append(counted("logits", logits_bytes(shape, engine, tokens, backward=False), _chunk_note(model)))
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
        counted("activations", saved_bytes(shape, engine, tokens), f"{tokens} tokens, {how}"),
        counted("layer backward", largest_layer_bytes(shape, engine, tokens) / 2, "gradients within one layer"),
    ]
    if not model.scalar:
        items.append(counted("logits", logits_bytes(shape, engine, tokens, backward=True), _chunk_note(model)))
    # the head's gradient is counted with the logits; no other is on its way yet
    return (*_gathered(model), *items, *_accumulated(model), *_buckets(model, largest=model.scalar))


def _end_of_backward(model: TrainedModel) -> tuple[Item, ...]:
    """The micro-batch's own gradients beside those accumulated; at stage 0 a flat copy of them all is what ranks exchange."""
    params, ranks, stage, d = model.params, model.num_ranks, model.engine.zero_stage, model.bytes_per_param
    layer = largest_layer_bytes(model.shape, model.engine, model.engine.micro_batch_tokens)
    items = [counted("activations", layer, "the first layer's"), *_accumulated(model)]
    if stage == 0:
        flat = 4 * min(params, FLAT_ELEMENTS)
        items.append(counted("gradients, flat", flat, "for the ranks' sum"))
    elif stage == 2:
        items.append(
            counted(
                "gradients of a micro-batch", d * params / ranks, f"{count_text(params)} x {d} bytes / {ranks} ranks"
            )
        )
    return (*_gathered(model), *items, *_buckets(model, largest=True))


def _accumulated(model: TrainedModel) -> tuple[Item, ...]:
    """Gradients between micro-batches, beyond what `held` has for good."""
    params, ranks, stage = model.params, model.num_ranks, model.engine.zero_stage
    count = count_text(params)
    if stage == 0 or (stage == 1 and model.engine.dtype == "fp32"):
        return (counted("gradients", 4 * params, f"{count} x 4 bytes: fp32, whole"),)
    if stage == 1:
        return (counted("gradients bf16", 2 * params, f"{count} x 2 bytes: zeroed, not freed"),)
    if stage == 2 and not model.engine.offload_optimizer:
        return (counted("gradients", 4 * params / ranks, f"{count} x 4 bytes / {ranks} ranks: fp32"),)
    return ()


def _buckets(model: TrainedModel, *, largest: bool) -> tuple[Item, ...]:
    """Gradients on their way to other ranks; the `largest` parameter's is larger than a bucket and goes alone. Stage 3's bucket is there
    for good."""
    stage, alone = model.engine.zero_stage, 4 * model.shape.largest_tensor if largest else 0
    if stage in (0, 1) or (stage == 3 and not largest):
        return ()
    if stage == 3:
        return (counted("gradient of a layer", alone, "the largest parameter's"),)
    bucket = min(4 * BUCKET_ELEMENTS[model.device], 4 * model.params) * (2 if model.device == "cuda" else 1)
    return (counted("buckets", bucket + alone, "gradients on their way to other ranks"),)


def _step(model: TrainedModel) -> tuple[Item, ...]:
    """AdamW steps on one flat tensor under ZeRO 1 to 3: on CPU it makes two more of that size, on CUDA (`foreach`) one. Stage 3
    steps on a billion numbers at a time (`sub_group_size`, left at its default)."""
    params, ranks, stage = model.params, model.num_ranks, model.engine.zero_stage
    if stage == 0:
        temporary = 4 * params if model.device == "cuda" else 8 * model.shape.largest_tensor
        return (
            counted("gradients", 4 * params, f"{count_text(params)} x 4 bytes: fp32, whole"),
            counted("optimizer step", temporary, "AdamW's intermediate results"),
        )
    if model.engine.offload_optimizer:
        return ()
    share = 4 * min(params / ranks, BILLION) if stage == 3 else 4 * params / ranks
    times = 1 if model.device == "cuda" else 2
    items = [
        counted("optimizer step", times * share, f"AdamW's intermediate results, {times} x {count_text(share)} bytes")
    ]
    if stage == 1 and model.engine.dtype == "bf16":
        # the flat fp32 gradients are stepped on as they are; those in bf16 go after the step (BF16_Optimizer.zero_grad)
        return (*items, *_accumulated(model))
    flat = "flat, and as they were accumulated" if model.engine.dtype == "fp32" or stage == 3 else "flat"
    copies = {1: 2, 2: 2, 3: 1}[stage] if model.engine.dtype == "fp32" else 1
    return (*items, counted("gradients", copies * share, f"fp32, {flat}"))


# ---------------------------------------------------------------------------------------------------------------- weight sync


def sync_memory(policy: TrainedModel, sync: WeightSyncConfig, channel: SyncChannel) -> tuple[Item, ...]:
    """Of the policy's rank 0, which sends (over `ipc` every rank does). Over `cpu` buckets are in the node's memory."""
    amounts = [bucket_bytes(sync, policy.shape, policy.engine.dtype, 1 if channel == "ipc" else SENDER_BUCKETS)]
    if channel == "cpu":
        amounts.append(bucket_bytes(sync, policy.shape, policy.engine.dtype, STORED_BUCKETS))
    items = []
    if channel != "cpu" or policy.device == "cpu":
        items.append(counted(SENT, sum(amounts), "buckets on their way"))
    if policy.engine.zero_stage == 3 and policy.num_ranks > 1:
        largest = policy.bytes_per_param * policy.shape.largest_tensor
        items.append(counted("gathered", max(GATHER_BYTES, largest), "parameters whole for weights out"))
    return tuple(items)


def bucket_bytes(sync: WeightSyncConfig, shape: ModelShape, dtype: str, num: int) -> float:
    """`num` buckets in a row, which hold no more than the model. A tensor that is larger than a bucket has one of its own size; embedding
    and head, by far the largest, are not neighbours."""
    d, own = BYTES[dtype], sync.bucket_mib * MIB
    inner = max(layer.largest_tensor for layer in shape.layers)
    return min(d * shape.num_params, max(own, d * shape.largest_tensor) + (num - 1) * max(own, d * inner))
