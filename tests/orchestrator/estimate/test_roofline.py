"""Times of the parts of a step, against numbers worked out by hand on a GPU of round numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema.engine import EngineConfig
from configs.schema.rollout import RolloutConfig
from orchestrator.estimate.efficiencies import Efficiencies
from orchestrator.estimate.roofline import Engines, Hardware, Sharded, weight_sync
from orchestrator.estimate.shapes import model_shape
from orchestrator.estimate.work import Batch, Head, ModelWork, Passes, flops, work_of
from tests.orchestrator.estimate.step_cases import EIGHT_B, PERFECT, hardware


def sharded(num_ranks: int = 1, head: Head = "vocabulary", on: Hardware | None = None, **engine: object) -> Sharded:
    values = {"dtype": "bf16", "zero_stage": 2, "attention": "flash_attention_2", "micro_batch_tokens": 4096} | engine
    config = EngineConfig.model_validate(values)
    return Sharded(work=EIGHT_B, engine=config, num_ranks=num_ranks, head=head, hardware=on or hardware())


def engines(
    kv_tokens: float = 1e6, on: Hardware | None = None, work: ModelWork = EIGHT_B, **rollout: object
) -> Engines:
    config = RolloutConfig.model_validate({"dtype": "bf16", **rollout})
    return Engines(work=work, rollout=config, kv_tokens=kv_tokens, hardware=on or hardware())


BATCH = Batch(num_sequences=8, length=1024, budget=4096)

# -------------------------------------------------------------------------------------------------------------- operations


def test_operations_of_a_forward_pass() -> None:
    """2 a parameter and token, and of attention 2 x L² x width a layer: scores and values, half of each."""
    linear = 2 * 8 * 1024 * (7e9 + 5e8)
    attention = 8 * 32 * 2 * 1024**2 * 4096
    assert flops(
        EIGHT_B, BATCH, passes=Passes.forward(), head="vocabulary", attention="flash_attention_2"
    ) == pytest.approx(linear + attention)


def test_a_dense_mask_makes_attention_pay_for_every_pair_of_a_micro_batch() -> None:
    assert BATCH.attended("flash_attention_2") == 8 * 1024**2 / 2
    assert BATCH.attended("sdpa") == 2 * 4096**2
    assert Batch(num_sequences=5, length=1000, budget=4096).attended("sdpa") == 4000**2 + 1000**2


def test_a_scalar_head_costs_next_to_nothing_and_recomputation_a_forward_pass() -> None:
    plain = flops(
        EIGHT_B, BATCH, passes=Passes.training(checkpointing=False), head="scalar", attention="flash_attention_2"
    )
    again = flops(
        EIGHT_B, BATCH, passes=Passes.training(checkpointing=True), head="scalar", attention="flash_attention_2"
    )
    assert again / plain == pytest.approx(4 / 3, rel=1e-5)


def test_training_takes_three_passes_of_the_body_and_four_of_the_head() -> None:
    """The head's logits are not kept: the backward pass computes them again."""
    found = flops(EIGHT_B, BATCH, passes=Passes.training(checkpointing=False), head="vocabulary", attention="sdpa")
    assert found == pytest.approx(2 * 8192 * (3 * 7e9 + 4 * 5e8) + 3 * 4 * 4096 * 32 * 2 * 4096**2)


def test_how_sequences_fill_micro_batches() -> None:
    assert (BATCH.sequences_per_micro_batch, BATCH.num_micro_batches) == (4, 2)
    assert Batch(num_sequences=9, length=1024, budget=4096).num_micro_batches == 3
    assert Batch(num_sequences=0, length=1024, budget=4096).num_micro_batches == 1  # the dummy of lockstep


def test_the_work_of_a_mixture_by_its_published_sizes() -> None:
    """Mixtral 8x7B: 46.7e9 parameters, of which a token meets 12.9e9, embedding and head (32,000 x 4,096 each) included; 8 experts of
    3 x 4,096 x 14,336 in each of 32 layers."""
    path = Path("configs/facts/models/mistralai--Mixtral-8x7B-v0.1.json")
    work = work_of(model_shape(json.loads(path.read_text("utf-8")), "Mixtral"), "vocabulary")
    assert work.total_parameters == 46_702_792_704
    assert work.head_parameters == 32_000 * 4096
    assert work.body_parameters + 2 * work.head_parameters == pytest.approx(12.88e9, rel=1e-3)
    assert work.expert_parameters == pytest.approx(32 * 8 * 3 * 4096 * 14_336)
    assert (work.num_experts, work.experts_per_token) == (8, 2)
    assert (work.attention_width, work.kv_width) == (4096, 2 * 8 * 128)
    # one token reads what it meets, many read everything but the embedding
    assert work.read_parameters(1) == pytest.approx(work.body_parameters + work.head_parameters)
    assert work.read_parameters(500) == pytest.approx(work.total_parameters - work.head_parameters)


# ---------------------------------------------------------------------------------------------------------------- training


def test_a_forward_pass_is_bound_by_compute_with_many_tokens_and_by_memory_with_few() -> None:
    many = sharded().forward(BATCH)
    assert many.bound == "compute"
    assert many.seconds == pytest.approx((2 * 8192 * 7.5e9 + 8 * 32 * 2 * 1024**2 * 4096) / 1e15)
    few = sharded().forward(Batch(num_sequences=1, length=4, budget=4096))
    assert few.bound == "memory"
    assert few.seconds == pytest.approx(16e9 / 1e12)


def test_stage_3_gathers_its_weights_in_every_micro_batch() -> None:
    """16 GB over 4 ranks at 1e11 bytes/s: 0.12 s a gather. With 16 tokens nothing else counts."""
    one = Batch(num_sequences=1, length=16, budget=16)
    assert sharded(4, zero_stage=3).forward(one).seconds == pytest.approx(16e9 * 3 / 4 / 1e11)
    three = Batch(num_sequences=3, length=16, budget=16)
    assert sharded(4, zero_stage=3).forward(three).seconds == pytest.approx(3 * 16e9 * 3 / 4 / 1e11)


@pytest.mark.parametrize(
    ("stage", "checkpointing", "per_micro_batch", "once"),
    [
        (1, False, 0, 2 * 32e9 + 16e9),
        (2, False, 32e9, 16e9),
        (3, False, 2 * 16e9 + 32e9, 0),
        (3, True, 3 * 16e9 + 32e9, 0),
    ],
)
def test_what_an_update_moves_between_ranks(
    stage: int, checkpointing: bool, per_micro_batch: float, once: float
) -> None:
    """fp32 gradients, 32 GB; bf16 weights, 16 GB. A slow link, so that only it counts."""
    slow = hardware(nvlink_bytes_per_s=1e6)
    batch = Batch(num_sequences=2, length=16, budget=16)
    update = sharded(4, on=slow, zero_stage=stage, activation_checkpointing=checkpointing).update(batch)
    assert update.bound == "network"
    assert update.seconds == pytest.approx((2 * per_micro_batch + once) * 3 / 4 / 1e6, rel=1e-4)


def test_what_links_carry_within_a_node_and_beyond() -> None:
    """Beyond a node of 4 GPUs a collective has 4 links of 1e10 bytes/s, and one sender its own."""
    within, beyond = hardware(gpus_per_node=8), hardware(gpus_per_node=4)
    assert (within.link_bytes_per_s(8), within.sending_bytes_per_s(8)) == (1e11, 1e11)
    assert (beyond.link_bytes_per_s(8), beyond.sending_bytes_per_s(8)) == (4e10, 1e10)
    assert hardware(nvlink_bytes_per_s=0, pcie_bytes_per_s=5e9).link_bytes_per_s(2) == 5e9


def test_an_optimizer_in_host_memory_pays_for_pcie_and_the_cpu() -> None:
    """8e9 parameters over 4 ranks of one node: 6 bytes each at 1e10 bytes/s, and 1e9 parameters/s for the node's 8e9."""
    one = Batch(num_sequences=1, length=16, budget=16)
    on_host = sharded(4, offload_optimizer=True).update(one).seconds
    on_gpu = sharded(4).update(one).seconds
    assert on_host - on_gpu == pytest.approx(2e9 * 6 / 1e10 + 8e9 / 1e9 - 2e9 * 30 / 1e12)


def test_fp32_is_as_much_slower_as_the_table_says() -> None:
    slow = sharded(dtype="fp32").forward(BATCH).seconds
    assert slow == pytest.approx(16 * sharded().forward(BATCH).seconds)


# -------------------------------------------------------------------------------------------------------------- generation


def test_a_decode_step_reads_weights_and_the_cache() -> None:
    """7.5e9 weights of 2 bytes, and 64 x 1,000 tokens of 32 x 2,048 numbers of 2 bytes, at 1e12 bytes/s."""
    step = engines(enforce_eager=False).decode_step(64, 1000)
    assert step.bound == "memory"
    assert step.seconds == pytest.approx((15e9 + 64 * 1000 * 131072) / 1e12)


def test_the_cache_limits_how_many_answers_are_decoded_at_once() -> None:
    """100 answers of 1,000 + 1,000 tokens in a cache of 60,000 tokens: 30 at once, 3 1/3 rounds."""
    small = engines(kv_tokens=60_000, responses_per_prompt=10, enforce_eager=False)
    assert small.at_once(100, 2000) == 30
    by_hand = 100 / 30 * 1000 * (15e9 + 30 * 1500 * 131072) / 1e12
    found = small.generate(10, 1000, 1000)
    assert found.seconds == pytest.approx(by_hand + small.prefill(10, 1000).seconds)
    assert found.note == "100 answers, 30 at once"


def test_a_prompt_is_read_once_for_all_its_answers() -> None:
    """10 prompts of 1,000 tokens through 7e9 parameters, and their attention: 2 x L² x width a layer."""
    by_hand = (2 * 7e9 * 10_000 + 10 * 32 * 2 * 1000**2 * 4096) / 1e15
    assert engines(responses_per_prompt=10).prefill(10, 1000).seconds == pytest.approx(by_hand)


def test_vllm_decodes_at_most_256_sequences_at_once() -> None:
    assert engines(kv_tokens=1e9).at_once(1000, 100) == 256


def test_tensor_parallelism_divides_reading_and_adds_all_reduces() -> None:
    """4 GPUs: a quarter of the bytes each, and 64 all-reduces of 64 x 4,096 x 2 bytes, each moving 2 x 3/4 of them."""
    step = engines(tensor_parallel=4, enforce_eager=False).decode_step(64, 1000)
    read = (15e9 + 64 * 1000 * 131072) / 4e12
    assert step.seconds == pytest.approx(read + 64 * (2 * 64 * 4096 * 2 * 3 / 4) / 1e11)


def test_a_mixture_reads_the_experts_that_some_token_goes_to() -> None:
    """8 experts, 2 a token, 6e9 parameters of experts: one token reads 2 of 8, two tokens 1 - (6/8)² of them, many all."""
    mixture = replace(EIGHT_B, body_parameters=1e9 + 1.5e9, expert_parameters=6e9, num_experts=8, experts_per_token=2)
    assert mixture.read_parameters(1) == pytest.approx(1e9 + 5e8 + 1.5e9)
    assert mixture.read_parameters(2) == pytest.approx(1e9 + 5e8 + 6e9 * (1 - 0.75**2))
    assert mixture.read_parameters(1000) == pytest.approx(1e9 + 5e8 + 6e9)


def test_kernels_launched_one_by_one_bound_a_small_model() -> None:
    eager = hardware(Efficiencies(eager_layer_s=1e-3))
    assert engines(on=eager).decode_step(1, 100).bound == "overhead"
    assert engines(on=eager, enforce_eager=False).decode_step(1, 100).bound == "memory"


# ------------------------------------------------------------------------------------------------------------- weight sync


@pytest.mark.parametrize(
    ("channel", "num_gpus", "seconds"),
    [("nccl", 8, 16e9 / 1e11), ("nccl", 16, 16e9 / 1e10), ("ipc", 8, 16e9 / 1e12), ("cpu", 8, 16e9 / 1e9)],
)
def test_a_sync_takes_its_bytes_over_the_channel(channel: str, num_gpus: int, seconds: float) -> None:
    sync = weight_sync(sharded(), engines(), channel=channel, bucket_bytes=1e9, num_gpus=num_gpus, probe_tokens=0)
    assert sync.seconds == pytest.approx(seconds)


def test_a_sync_waits_for_its_gathers_its_buckets_and_its_probe() -> None:
    gathered = weight_sync(
        sharded(4, zero_stage=3, on=hardware(nvlink_bytes_per_s=1e9)),
        engines(),
        channel="ipc",
        bucket_bytes=1e9,
        num_gpus=4,
        probe_tokens=0,
    )
    assert gathered.seconds == pytest.approx(16e9 * 3 / 4 / 1e9)
    many = hardware(replace(PERFECT, bucket_s=1.0))
    small = weight_sync(sharded(on=many), engines(), channel="ipc", bucket_bytes=1e9, num_gpus=4, probe_tokens=10)
    assert small.seconds == pytest.approx(16 + 10 * engines().decode_step(4, 10).seconds)
