"""What `preceptor plan` predicts of memory, against figures that others published. `python -m benchmarks.estimates` writes the table.

Every prediction is made by the code that the plan uses, with nothing fitted. Where ours is another thing than theirs, the row says so.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.table import Cell, Table
from configs.gpus import GPUKind, gpu_kind
from configs.schema.engine import EngineConfig
from configs.schema.rollout import RolloutConfig
from orchestrator.estimate.activations import layer_bytes
from orchestrator.estimate.engines import EngineModel, engine_memory
from orchestrator.estimate.memory import TrainedModel, trained_memory
from orchestrator.estimate.model_files import find_model
from orchestrator.estimate.records import EngineCapacity, Item, RoleMemory
from orchestrator.estimate.shapes import ModelShape, model_shape
from orchestrator.plan_records import RolePlan

GB, GIB, KIB = 1e9, 2**30, 2**10
ZERO = "ZeRO, arXiv 1910.02054, figure 1"
PAGED = "PagedAttention, arXiv 2309.06180, section 3"
INSIGHTS = "Insights into DeepSeek-V3, arXiv 2505.09343, table 1"
KORTHIKANTI = "Korthikanti et al., arXiv 2205.05198, section 4"
VLLM_ISSUE = "vllm-project/vllm issue 10517 (RTX 3090, 20,000 tokens)"
TORCHTITAN = "torchtitan docs, performance on Llama 3.1, table 2"

DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
LLAMA_405B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
}
QWEN_72B: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
GPT_22B: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 51200,
    "n_embd": 6144,
    "n_layer": 48,
    "n_head": 64,
    "n_positions": 2048,
}
"""Korthikanti et al., table 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published number and ours."""

    what: str
    source: str
    unit: str
    published: float
    predicted: float
    note: str = ""
    """Why ours is another, where it is."""

    @property
    def off(self) -> float:
        return self.predicted / self.published - 1


def figures() -> list[Figure]:
    """All of them."""
    return [*_zero(), *_caches(), *_engine(), *_activations(), *_counts(), _peak()]


# ----------------------------------------------------------------------------------------------------------- training states


def _sized(num_params: int) -> ModelShape:
    """A model of that many parameters: of GPT-2's build, only its count is looked at."""
    shape = model_shape(GPT_22B, "GPT")
    layer = replace(shape.layers[0], count=1)
    rest = num_params - shape.embedding_params - shape.outer_params
    return replace(shape, layers=(replace(layer, params=rest, active_params=rest),))


def _states(stage: int, dtype: str, num_params: int, num_ranks: int) -> float:
    """Bytes of parameters, gradients, masters and moments."""
    engine = EngineConfig.model_validate({"zero_stage": stage, "dtype": dtype, "micro_batch_tokens": 1})
    model = TrainedModel(
        role="policy", shape=_sized(num_params), scalar=False, engine=engine, num_ranks=num_ranks, device="cuda"
    )
    memory = trained_memory(model, sleeps=False)
    return _named(memory.resident, ("parameters", "masters", "optimizer", "gradients")) + _named(
        memory.working_by_phase["update"], ("gradients", "gradients bf16", "gradients of a micro-batch")
    )


def _named(items: tuple[Item, ...], names: tuple[str, ...]) -> float:
    return sum(item.amount for item in items if item.name in names)


def _zero() -> list[Figure]:
    cases = (
        (0, "fp32", 120.0, "theirs bf16 with fp32 masters, ours fp32: 16 bytes a parameter either way"),
        (1, "bf16", 31.4, "ours holds whole fp32 gradients, and bf16 ones: DeepSpeed's BF16_Optimizer"),
        (2, "bf16", 16.6, "ours adds gradients up in fp32"),
        (3, "bf16", 1.88, "ours adds gradients up in fp32, and copies them flat for the step"),
    )
    return [
        Figure(
            what=f"7.5B on 64 GPUs, ZeRO {stage}: states a GPU",
            source=ZERO,
            unit="GB",
            published=published,
            predicted=_states(stage, dtype, 7_500_000_000, 64) / GB,
            note=note,
        )
        for stage, dtype, published, note in cases
    ]


# ------------------------------------------------------------------------------------------------------------------- engines


def _engine_of(shape: ModelShape, gpu: GPUKind, frac: float, longest: int) -> tuple[RoleMemory, EngineCapacity]:
    rollout = RolloutConfig(dtype="bf16", gpu_memory_frac=frac)
    placed = RolePlan(role="rollout", num_ranks=1, gpus_per_rank=1, threads=1, group="rollout", device="cuda")
    model = EngineModel(shape=shape, rollout=rollout, plan=placed, longest=longest, gpu=gpu)
    memory, capacity = engine_memory(model, sleeps=False, received=None)
    assert capacity is not None, "the GPU is known"
    return memory, capacity


def _cache_per_token(shape: ModelShape) -> float:
    return _engine_of(shape, gpu_kind("b200"), 1.0, 1)[1].kv_bytes_per_token


def _caches() -> list[Figure]:
    cases = (
        ("OPT-13B", find_model("facebook/opt-13b").shape, PAGED, "KiB", 800.0, KIB),
        ("DeepSeek-V3", model_shape(DEEPSEEK_V3, "DeepSeek-V3"), INSIGHTS, "kB", 70.272, 1e3),
        ("Qwen2.5-72B", model_shape(QWEN_72B, "Qwen2.5-72B"), INSIGHTS, "kB", 327.680, 1e3),
        ("Llama-3.1-405B", model_shape(LLAMA_405B, "Llama-3.1-405B"), INSIGHTS, "kB", 516.096, 1e3),
    )
    return [
        Figure(
            what=f"{name}: key-value cache a token, bf16",
            source=source,
            unit=unit,
            published=published,
            predicted=_cache_per_token(shape) / scale,
        )
        for name, shape, source, unit, published, scale in cases
    ]


def _engine() -> list[Figure]:
    llama, opt = find_model("meta-llama/Llama-3.1-8B").shape, find_model("facebook/opt-13b").shape
    rtx3090 = gpu_kind("rtx4090").model_copy(update={"memory_gib": 23.58})
    memory, capacity = _engine_of(llama, rtx3090, 0.9, 20_000)
    weights = _named(memory.resident, ("parameters",))
    opt_weights = _named(_engine_of(opt, gpu_kind("a100-40gb"), 0.9, 2048)[0].resident, ("parameters",))
    return [
        Figure(
            what="OPT-13B: weights in an engine", source=PAGED, unit="GB", published=26.0, predicted=opt_weights / GB
        ),
        Figure(
            what="Llama-3.1-8B: weights in an engine",
            source=VLLM_ISSUE,
            unit="GiB",
            published=14.9888,
            predicted=weights / GIB,
        ),
        Figure(
            what="Llama-3.1-8B: cache that 0.9 of the GPU leaves",
            source=VLLM_ISSUE,
            unit="GiB",
            published=3.81,
            predicted=capacity.kv_cache_bytes / GIB,
            note="ours assumes 2.75 GiB beside weights and cache; there 2.4 GiB",
        ),
        Figure(
            what="Llama-3.1-8B: sequences of 20,000 tokens in that cache",
            source=VLLM_ISSUE,
            unit="",
            published=1.56,
            predicted=capacity.sequences,
            note="as above",
        ),
    ]


# --------------------------------------------------------------------------------------------------------------- activations


def _activations() -> list[Figure]:
    shape, tokens, hidden, heads = model_shape(GPT_22B, "GPT"), 2048, 6144, 64
    found = []
    for attention, factor, note in (
        (
            "eager",
            34 + 5 * heads * tokens / hidden,
            "theirs has dropout masks; ours keeps probabilities in fp32 too",
        ),
        ("flash_attention_2", 34.0, "theirs: attention recomputed, with dropout masks"),
    ):
        engine = EngineConfig.model_validate({"zero_stage": 2, "dtype": "bf16", "attention": attention})
        found.append(
            Figure(
                what=f"GPT 22B: what one layer saves of a sequence of 2,048, {attention}",
                source=KORTHIKANTI,
                unit="GB",
                published=tokens * hidden * factor / GB,
                predicted=layer_bytes(shape, shape.layers[0], engine, tokens) / GB,
                note=note,
            )
        )
    return found


def _peak() -> Figure:
    engine = EngineConfig.model_validate(
        {
            "zero_stage": 3,
            "dtype": "bf16",
            "micro_batch_tokens": 32_768,
            "logits_chunk_tokens": 32_768,
            "activation_checkpointing": True,
            "attention": "flash_attention_2",
        }
    )
    model = TrainedModel(
        role="policy",
        shape=find_model("meta-llama/Llama-3.1-8B").shape,
        scalar=False,
        engine=engine,
        num_ranks=8,
        device="cuda",
    )
    memory = trained_memory(model, sleeps=False)
    needed = memory.resident_bytes + sum(item.amount for item in memory.working_by_phase["update"])
    return Figure(
        what="Llama-3.1-8B on 8 H100, a sequence of 32,768, full checkpointing: peak a GPU",
        source=TORCHTITAN,
        unit="GiB",
        published=83.9,
        predicted=needed / GIB,
        note="theirs FSDP2, compiled, float8, whole logits; ours ZeRO 3, with a chunk of logits as long: so close by chance",
    )


# -------------------------------------------------------------------------------------------------------------------- counts


def _counts() -> list[Figure]:
    deepseek, mixtral = model_shape(DEEPSEEK_V3, "DeepSeek-V3"), find_model("mistralai/Mixtral-8x7B-v0.1").shape
    qwen = find_model("Qwen/Qwen3-30B-A3B").shape
    cases = (
        ("DeepSeek-V3: parameters", "arXiv 2412.19437, abstract", 671.0, deepseek.num_params, ""),
        ("DeepSeek-V3: of them met by a token", "arXiv 2412.19437, abstract", 37.0, deepseek.active_params, ""),
        ("Mixtral 8x7B: parameters", "arXiv 2401.04088, section 1", 47.0, mixtral.num_params, ""),
        ("Mixtral 8x7B: of them met by a token", "arXiv 2401.04088, section 1", 13.0, mixtral.active_params, ""),
        (
            "Qwen3-30B-A3B: of them met by a token",
            "arXiv 2505.09388, table 2",
            3.3,
            qwen.active_params,
            "theirs rounds, and may count the embedding",
        ),
    )
    return [
        Figure(what=what, source=source, unit="billion", published=published, predicted=ours / 1e9, note=note)
        for what, source, published, ours, note in cases
    ]


def table() -> Table:
    """As docs/estimates.md has it."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            figure.what,
            f"{figure.published:.4g} {figure.unit}".strip(),
            f"{figure.predicted:.4g} {figure.unit}".strip(),
            f"{figure.off:+.1%}",
            figure.source,
            figure.note,
        )
        for figure in figures()
    )
    return Table(
        title="Against published figures",
        columns=("what", "published", "predicted", "off", "source", "why"),
        rows=rows,
        note="Made by `python -m benchmarks.estimates`.",
    )


def main() -> None:
    """The table as Markdown, on stdout."""
    argparse.ArgumentParser(prog="benchmarks.estimates", description=__doc__).parse_args()
    print(table().markdown())


if __name__ == "__main__":
    main()
