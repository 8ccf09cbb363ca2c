"""Memory of a rank: worked out by hand, and what must hold whatever the config."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import actors.engine.engine
import actors.weight_sync.channel
from actors.engine.sharding import CPU_BUCKET_ELEMENTS, CUDA_BUCKET_ELEMENTS
from actors.weight_sync.bucket import Bucket
from actors.weight_sync.channel import Deadline, Engines
from actors.weight_sync.cpu import CpuChannel
from actors.weight_sync.sender import WeightSender
from benchmarks.estimates import DEEPSEEK_V3
from configs.gpus import gpu_kind
from configs.schema.engine import EngineConfig
from configs.schema.rollout import RolloutConfig, WeightSyncConfig
from orchestrator.estimate.activations import layer_bytes, logits_bytes, saved_bytes
from orchestrator.estimate.engines import ENGINE_WORKING_BYTES, EngineModel, engine_memory
from orchestrator.estimate.memory import (
    BUCKET_ELEMENTS,
    CUDA_PROCESS_BYTES,
    GATHER_BYTES,
    IN_FLIGHT,
    RECEIVER_BUCKETS,
    SENDER_BUCKETS,
    TrainedModel,
    bucket_bytes,
    frozen_memory,
    sync_memory,
    trained_memory,
)
from orchestrator.estimate.model_files import find_model
from orchestrator.estimate.records import RoleMemory
from orchestrator.estimate.roofline import Sharded
from orchestrator.estimate.shapes import model_shape
from orchestrator.estimate.work import work_of
from orchestrator.plan_records import RolePlan
from tests.orchestrator.estimate.step_cases import hardware
from tests.rank_contexts import rank_context

GIB = 2**30
QWEN = find_model("Qwen/Qwen3-8B").shape
MIXTURE = find_model("Qwen/Qwen3-30B-A3B").shape
DEEPSEEK = model_shape(DEEPSEEK_V3, "DeepSeek-V3")
SMALL = model_shape(
    {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small",
)


def model(
    shape: Any = QWEN, *, num_ranks: int = 8, device: Any = "cuda", scalar: bool = False, **engine: Any
) -> TrainedModel:
    return TrainedModel(
        role="policy",
        shape=shape,
        scalar=scalar,
        engine=EngineConfig.model_validate({"dtype": "bf16", "zero_stage": 3} | engine),
        num_ranks=num_ranks,
        device=device,
    )


def most(memory: RoleMemory) -> float:
    return memory.resident_bytes + memory.working_bytes


def amounts(memory: RoleMemory) -> dict[str, float]:
    return {item.name: item.amount for item in memory.resident}


# ------------------------------------------------------------------------------------------------------------ by hand


def test_states_of_an_8b_over_8_ranks_by_hand() -> None:
    # Qwen3-8B has 8,190,735,360 parameters: 2 + 4 + 8 + 4 bytes each over 8 ranks, and a bucket of 1e8 fp32 numbers
    held = amounts(trained_memory(model(), sleeps=False))
    share = 8_190_735_360 / 8
    assert held == {
        "parameters": 2 * share,
        "masters": 4 * share,
        "optimizer": 8 * share,
        "gradients": 4 * share,
        "buckets": 4e8,
        "process": CUDA_PROCESS_BYTES,
    }


def test_activations_of_a_small_layer_by_hand() -> None:
    engine = EngineConfig(micro_batch_tokens=10, attention="sdpa")
    layer = SMALL.layers[0]
    # fp32, 64 wide, 4 heads of 16: two norms of 3 tensors each; queries, repeated keys and values, result twice; 4 of the MLP
    of_a_token = 4 * (2 * 3 * 64 + 5 * 64 + 4 * 160)
    assert layer_bytes(SMALL, layer, engine, 10) == 10 * of_a_token + 4 * 10 * 10
    outer = 10 * 64 * (4 + 12)
    assert saved_bytes(SMALL, engine, 10) == outer + 2 * layer_bytes(SMALL, layer, engine, 10)
    checkpointed = engine.model_copy(update={"activation_checkpointing": True})
    assert saved_bytes(SMALL, checkpointed, 10) == outer + 2 * 10 * 64 * 4 + layer_bytes(SMALL, layer, engine, 10)


def test_logits_by_hand() -> None:
    engine = EngineConfig(micro_batch_tokens=4096, logits_chunk_tokens=128)
    assert logits_bytes(SMALL, engine, 4096, backward=False) == 2 * 128 * 1000 * 4
    assert logits_bytes(SMALL, engine, 4096, backward=True) == 2 * 128 * 1000 * 4 + 1000 * 64 * 4
    assert logits_bytes(SMALL, engine, 100, backward=False) == 2 * 100 * 1000 * 4


def test_scalar_head_has_no_logits() -> None:
    critic = trained_memory(model(scalar=True), sleeps=False)
    assert all(item.name != "logits" for items in critic.working_by_phase.values() for item in items)
    assert critic.resident_bytes < trained_memory(model(), sleeps=False).resident_bytes


def test_offloaded_optimizer_is_in_the_node() -> None:
    memory = trained_memory(model(zero_stage=2, offload_optimizer=True), sleeps=False)
    assert not {"masters", "optimizer"} & amounts(memory).keys()
    (offloaded,) = (item for item in memory.host if item.name == "offloaded")
    assert offloaded.amount == 16 * QWEN.num_params / 8


def test_sleeping_trainer_leaves_its_context_alone() -> None:
    memory = trained_memory(model(zero_stage=2), sleeps=True)
    states = memory.resident_bytes - CUDA_PROCESS_BYTES
    assert (memory.sleeps, memory.asleep_bytes) == (True, CUDA_PROCESS_BYTES)
    assert next(item.amount for item in memory.host if item.name == "asleep") == states
    on_cpu = trained_memory(model(zero_stage=2, device="cpu"), sleeps=True)
    assert (on_cpu.sleeps, on_cpu.host) == (False, ())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", [False, True])
def test_a_turn_moves_what_sleeps(stage: int, dtype: str, offload: bool) -> None:
    """The bytes of time's turn are those that memory puts into the node, whatever the stage; by hand for those that can sleep."""
    slow = hardware(pcie_bytes_per_s=1.0)
    for scalar in (False, True):
        asleep = model(zero_stage=stage, dtype=dtype, offload_optimizer=offload, scalar=scalar)
        (moved,) = (item.amount for item in trained_memory(asleep, sleeps=True).host if item.name == "asleep")
        work = work_of(QWEN, "scalar" if scalar else "vocabulary")
        timed = Sharded(work=work, engine=asleep.engine, num_ranks=8, head="vocabulary", hardware=slow)
        assert timed.move().seconds == pytest.approx(moved)
        by_hand = {(0, "fp32"): 12, (1, "fp32"): 4 + 12 / 8, (2, "fp32"): 4 + 12 / 8, (2, "bf16"): 2 + 12 / 8}
        if (stage, dtype) in by_hand and not offload:
            assert moved == pytest.approx(by_hand[stage, dtype] * asleep.params)


def test_bf16_gradients_of_stage_1_are_there_while_the_optimizer_steps() -> None:
    """DeepSpeed's BF16_Optimizer frees them after the step: 4 bytes of AdamW's and 2 of theirs, more than a backward pass of one token."""
    few = model(num_ranks=1, zero_stage=1, micro_batch_tokens=1, scalar=True)
    stepping = {item.name: item.amount for item in trained_memory(few, sleeps=False).working_by_phase["update"]}
    assert stepping == {"optimizer step": 4 * few.params, "gradients bf16": 2 * few.params}


def test_frozen_model_holds_its_weights() -> None:
    memory = frozen_memory(model(zero_stage=0, num_ranks=2))
    assert amounts(memory) == {"parameters": 2 * QWEN.num_params, "process": CUDA_PROCESS_BYTES}


def test_a_tensor_larger_than_a_bucket_travels_alone() -> None:
    # the embedding of Qwen3-8B: 151,936 x 4,096 x 2 bytes
    embedding, sync = 151_936 * 4_096 * 2, WeightSyncConfig(bucket_mib=256)
    (buckets, gathered) = sync_memory(model(), sync, "nccl")
    assert (buckets.amount, gathered.amount) == (embedding + 256 * 2**20, embedding)
    assert sync_memory(model(zero_stage=2), sync, "ipc")[0].amount == embedding
    # over channel `cpu` they are in the node; on a machine without GPUs that is where the rank is, and the object store too
    assert sync_memory(model(zero_stage=2), sync, "cpu") == ()
    assert (
        sync_memory(model(zero_stage=2, device="cpu"), sync, "cpu")[0].amount == 2 * embedding + (1 + 2) * 256 * 2**20
    )


def engine(
    gpu: str | None = "h100-80gb",
    *,
    tensor_parallel: int = 1,
    longest: int = 2048,
    received: float | None = None,
    shape: Any = QWEN,
    **rollout: Any,
) -> Any:
    settings = RolloutConfig.model_validate({"dtype": "bf16", "tensor_parallel": tensor_parallel} | rollout)
    placed = RolePlan(
        role="rollout",
        num_ranks=1,
        gpus_per_rank=tensor_parallel if gpu else 0,
        threads=1,
        group="rollout",
        device="cuda" if gpu else "cpu",
    )
    return engine_memory(
        EngineModel(shape=shape, rollout=settings, plan=placed, longest=longest, gpu=gpu_kind(gpu) if gpu else None),
        sleeps=False,
        received=received,
    )


def test_engine_takes_its_part_of_the_gpu_and_the_cache_the_rest() -> None:
    memory, capacity = engine(gpu_memory_frac=0.5)
    # 36 layers x 2 x 8 heads x 128 x 2 bytes
    assert capacity.kv_bytes_per_token == 147_456
    taken = 0.5 * 79.1 * GIB
    assert memory.resident_bytes == pytest.approx(taken)
    assert capacity.kv_cache_bytes == pytest.approx(
        taken - 2 * QWEN.num_params - ENGINE_WORKING_BYTES - CUDA_PROCESS_BYTES
    )
    assert capacity.sequences == pytest.approx(capacity.kv_cache_bytes / (147_456 * 2048))


def test_tensor_parallel_shares_weights_and_adds_up_caches() -> None:
    one, two = engine(gpu_memory_frac=0.5), engine(gpu_memory_frac=0.5, tensor_parallel=2)
    assert amounts(two[0])["parameters"] == amounts(one[0])["parameters"] / 2
    assert two[1].kv_cache_bytes > 2 * one[1].kv_cache_bytes
    # more GPUs than heads of keys and values: these are copied
    assert engine(tensor_parallel=16)[1].kv_bytes_per_token == 2 * 147_456
    # latent attention (DeepSeek-V2, section 2.1) has no heads to share out: every GPU holds the 512 + 64 numbers of a token
    latent = engine(tensor_parallel=8, shape=DEEPSEEK)[1]
    assert latent.kv_bytes_per_token == 8 * 61 * (512 + 64) * 2


def test_numbers_taken_from_the_actors_are_theirs() -> None:
    assert BUCKET_ELEMENTS == {"cuda": CUDA_BUCKET_ELEMENTS, "cpu": CPU_BUCKET_ELEMENTS}
    assert GATHER_BYTES == actors.engine.engine.GATHER_BYTES
    assert IN_FLIGHT == actors.weight_sync.channel.IN_FLIGHT


def test_a_sender_holds_as_many_buckets_as_are_counted() -> None:
    arrays: list[weakref.ref[Any]] = []
    most = 0

    class Nobody(Engines):
        def call(self, method: Callable[..., Any], *args: Any, deadline: Deadline) -> list[Any]:
            return []

    class Kept(CpuChannel):
        """Of whose buckets those that are still referred to are counted; nothing leaves it."""

        def allocate(self, num_bytes: int) -> torch.Tensor:
            nonlocal most
            array = np.empty(num_bytes, np.uint8)
            arrays.append(weakref.ref(array))
            most = max(most, sum(each() is not None for each in arrays))
            return torch.from_numpy(array)

        def push(self, bucket: Bucket, payload: torch.Tensor, deadline: Deadline) -> None: ...

    sender = WeightSender(WeightSyncConfig(bucket_mib=1), rank_context("/nowhere", role="policy"))
    sender.connect_by(Kept(Nobody([])))
    sender.send(((f"w{i}", torch.zeros(2**18)) for i in range(6)), 1)
    assert (len(arrays), most) == (6, SENDER_BUCKETS)


def test_buckets_hold_no_more_than_the_model() -> None:
    weight_sync = WeightSyncConfig(bucket_mib=256)
    assert bucket_bytes(weight_sync, QWEN, "bf16", 3) > 3 * 256 * 2**20
    assert bucket_bytes(WeightSyncConfig(bucket_mib=10**6), QWEN, "bf16", 3) == 2 * QWEN.num_params


def test_an_engine_needs_room_for_the_buckets_it_is_said_to_hold() -> None:
    layer = 2 * QWEN.largest_layer_params
    for received in (3e9, 0):
        memory, _ = engine(received=received)
        assert sum(item.amount for item in memory.working_by_phase["sync"]) == received + layer
    assert RECEIVER_BUCKETS == {"nccl": 2, "ipc": 2, "cpu": 0}


def test_engine_on_cpu_has_the_cache_that_it_is_given() -> None:
    _, capacity = engine(None, kv_cache_gib=3.0)
    assert capacity.kv_cache_bytes == 3 * GIB


# ------------------------------------------------------------------------------------------------------------ properties

ENGINES = st.fixed_dictionaries(
    {
        "zero_stage": st.sampled_from([1, 2, 3]),
        "dtype": st.sampled_from(["fp32", "bf16"]),
        "micro_batch_tokens": st.integers(1, 40_000),
        "logits_chunk_tokens": st.integers(1, 8_000),
        "activation_checkpointing": st.booleans(),
        "attention": st.sampled_from(["sdpa", "flash_attention_2", "eager"]),
        "offload_optimizer": st.booleans(),
    }
)
SHAPES = st.sampled_from([QWEN, MIXTURE, SMALL])
DEVICES = st.sampled_from(["cpu", "cuda"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=SHAPES,
    values=ENGINES,
    num_ranks=st.integers(2, 600),  # one rank gathers nothing
    more=st.integers(1, 600),
    device=DEVICES,
    scalar=st.booleans(),
)
def test_more_ranks_never_need_more_of_one(
    shape: Any, values: dict[str, Any], num_ranks: int, more: int, device: str, scalar: bool
) -> None:
    few = trained_memory(model(shape, num_ranks=num_ranks, device=device, scalar=scalar, **values), sleeps=False)
    many = trained_memory(
        model(shape, num_ranks=num_ranks + more, device=device, scalar=scalar, **values), sleeps=False
    )
    assert most(many) <= most(few)
    assert many.host_bytes <= few.host_bytes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shape=SHAPES, values=ENGINES, num_ranks=st.integers(1, 600), device=DEVICES)
def test_higher_stage_never_holds_more_states(shape: Any, values: dict[str, Any], num_ranks: int, device: str) -> None:
    """Of what every rank holds for good, DeepSpeed's buckets left out, with gradients counted where they are for good."""
    held = []
    for stage in (1, 2, 3):
        memory = trained_memory(
            model(shape, num_ranks=num_ranks, device=device, **values | {"zero_stage": stage}), sleeps=False
        )
        resident = sum(item.amount for item in memory.resident if item.name != "buckets")
        accumulated = sum(
            item.amount for item in memory.working_by_phase["update"] if item.name in ("gradients", "gradients bf16")
        )
        held.append(resident + (accumulated if stage < 3 else 0))
    assert held[0] >= held[1] - 1 or values["offload_optimizer"]
    assert held[2] <= held[0] + 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shape=SHAPES, values=ENGINES, num_ranks=st.integers(1, 64), device=DEVICES)
def test_checkpointing_never_needs_more(shape: Any, values: dict[str, Any], num_ranks: int, device: str) -> None:
    without, with_it = (
        trained_memory(
            model(shape, num_ranks=num_ranks, device=device, **values | {"activation_checkpointing": on}), sleeps=False
        )
        for on in (False, True)
    )
    # inputs of layers and one layer whole, against all layers: of a single layer that would be its input more
    assert shape.num_layers > 1
    assert most(with_it) <= most(without)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=SHAPES,
    values=ENGINES,
    more=st.integers(1, 40_000),
    key=st.sampled_from(["micro_batch_tokens", "logits_chunk_tokens"]),
)
def test_longer_micro_batches_and_chunks_never_need_less(
    shape: Any, values: dict[str, Any], more: int, key: str
) -> None:
    short = trained_memory(model(shape, **values), sleeps=False)
    long = trained_memory(model(shape, **values | {key: values[key] + more}), sleeps=False)
    for phase in short.working_by_phase:
        assert sum(i.amount for i in long.working_by_phase[phase]) >= sum(
            i.amount for i in short.working_by_phase[phase]
        )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values=ENGINES, num_ranks=st.integers(1, 64), device=DEVICES)
def test_offload_never_needs_more_on_the_gpu(values: dict[str, Any], num_ranks: int, device: str) -> None:
    here, offloaded = (
        trained_memory(model(num_ranks=num_ranks, device=device, **values | {"offload_optimizer": on}), sleeps=False)
        for on in (False, True)
    )
    assert most(offloaded) <= most(here)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(frac=st.floats(0.01, 0.99), more=st.floats(0.0, 0.5), longest=st.integers(1, 10**6))
def test_more_of_a_gpu_never_holds_fewer_sequences(frac: float, more: float, longest: int) -> None:
    _, few = engine(gpu_memory_frac=frac, longest=longest)
    _, many = engine(gpu_memory_frac=min(1.0, frac + more), longest=longest)
    assert many.sequences >= few.sequences
