"""Estimated times against published ones: how far the roofline of `orchestrator.estimate` is from what others measured.

`python -m benchmarks.estimates_time` works the tables out and puts them into docs/estimates-time.md. Nothing is fitted to them row by row:
the same shares of `Efficiencies` stand behind every row, and they are chosen for this project's software, which none of the rows ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.table import Cell, Table
from configs.gpus import gpu_kind
from configs.schema.engine import EngineConfig
from configs.schema.rollout import RolloutConfig
from orchestrator.estimate.efficiencies import Efficiencies
from orchestrator.estimate.roofline import Engines, Hardware, Sharded
from orchestrator.estimate.work import Batch, ModelWork

PAGE = Path(__file__).parent.parent / "docs" / "estimates-time.md"
BEGIN, END = "<!-- tables: python -m benchmarks.estimates_time -->", "<!-- end of tables -->"

MOSAIC = "[1]"
TITAN_H100, TITAN_A100 = "[2]", "[3]"
LMDEPLOY, VLLM_A100, VLLM_H100, VLLM_70B = "[4]", "[5]", "[6]", "[7]"
SOURCES = """Sources:

1. FSDP, MPT models, fused attention: https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md
2. FSDP without compilation, H100 with 2.4 TB/s at 500 W; its selective recomputation is counted as none:
   https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md
3. Likewise, on A100, in 2024: https://github.com/pytorch/torchtitan/blob/main/docs/performance.md
4. Not vLLM but a comparable engine, version 0.1.0a1: https://github.com/InternLM/lmdeploy/blob/main/docs/en/benchmark/a100_fp16.md
5. vLLM 0.23, 1,024 tokens in, 128 out: https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on
6. vLLM 0.21, lengths not given, a context of 512 tokens is assumed: https://yobitelcomm.github.io/bench/recipes/concurrency-sweep/
7. vLLM of 2023: https://github.com/rkooo567/llm_benchmark"""


def dense(
    num_layers: int, hidden: int, *, inner: int, vocabulary: int, heads: int, kv_heads: int, gated: bool = True
) -> ModelWork:
    """A transformer by its published sizes; gated: Llama's build with a head of its own, else GPT's with a tied one."""
    width = hidden // heads
    layer = 2 * hidden * hidden + 2 * hidden * kv_heads * width + (3 if gated else 2) * hidden * inner
    table = hidden * vocabulary
    return ModelWork(
        total_parameters=num_layers * layer + (2 if gated else 1) * table,
        body_parameters=num_layers * layer,
        head_parameters=table,
        num_layers=num_layers,
        hidden=hidden,
        attention_width=hidden,
        kv_width=2 * kv_heads * width,
    )


def mpt(num_layers: int, hidden: int) -> ModelWork:
    heads = hidden // 128
    return dense(num_layers, hidden, inner=4 * hidden, vocabulary=50368, heads=heads, kv_heads=heads, gated=False)


MODELS = {
    "MPT 1B": mpt(24, 2048),
    "MPT 7B": mpt(32, 4096),
    "MPT 13B": mpt(40, 5120),
    "MPT 30B": mpt(48, 7168),
    "MPT 70B": mpt(80, 8192),
    "Llama 2 7B": dense(32, 4096, inner=11008, vocabulary=32000, heads=32, kv_heads=32),
    "Llama 2 13B": dense(40, 5120, inner=13824, vocabulary=32000, heads=40, kv_heads=40),
    "Llama 2 70B": dense(80, 8192, inner=28672, vocabulary=32000, heads=64, kv_heads=8),
    "Llama 3 8B": dense(32, 4096, inner=14336, vocabulary=128256, heads=32, kv_heads=8),
    "Llama 3 70B": dense(80, 8192, inner=28672, vocabulary=128256, heads=64, kv_heads=8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A published throughput of training."""

    source: str
    model: str
    gpu: str
    num_gpus: int
    length: int
    micro_batch: int
    """Sequences."""
    per_gpu: int
    """Sequences of an optimizer step."""
    checkpointing: bool
    published: float
    """Tokens a second and GPU."""

    def estimated(self) -> float:
        engine = EngineConfig(
            zero_stage=3,
            dtype="bf16",
            attention="flash_attention_2",
            activation_checkpointing=self.checkpointing,
            micro_batch_tokens=self.micro_batch * self.length,
        )
        batch = Batch(num_sequences=self.per_gpu, length=self.length, budget=engine.micro_batch_tokens)
        model = Sharded(
            work=MODELS[self.model],
            engine=engine,
            num_ranks=self.num_gpus,
            head="vocabulary",
            hardware=hardware(self.gpu),
        )
        return batch.num_tokens / model.update(batch).seconds


def _train(
    source: str, model: str, gpu: str, shape: tuple[int, int, int, int], published: float, *, again: bool
) -> Training:
    """`shape`: GPUs, tokens of a sequence, sequences of a micro-batch and of a step's part on one GPU."""
    num_gpus, length, micro_batch, per_gpu = shape
    return Training(
        source=source,
        model=model,
        gpu=gpu,
        num_gpus=num_gpus,
        length=length,
        micro_batch=micro_batch,
        per_gpu=per_gpu,
        checkpointing=again,
        published=published,
    )


H100, A100, A100_40 = "h100-80gb", "a100-80gb", "a100-40gb"
TRAINED = (
    _train(MOSAIC, "MPT 1B", H100, (8, 2048, 14, 14), 45455, again=False),
    _train(MOSAIC, "MPT 7B", H100, (8, 2048, 6, 6), 10643, again=False),
    _train(MOSAIC, "MPT 7B", H100, (8, 8192, 8, 16), 6935, again=True),
    _train(MOSAIC, "MPT 7B", H100, (8, 32768, 2, 4), 3318, again=True),
    _train(MOSAIC, "MPT 13B", H100, (64, 2048, 2, 2), 4800, again=False),
    _train(MOSAIC, "MPT 30B", H100, (8, 2048, 3, 63), 2002, again=True),
    _train(MOSAIC, "MPT 30B", H100, (32, 2048, 14, 42), 2308, again=True),
    _train(MOSAIC, "MPT 70B", H100, (64, 2048, 8, 32), 1039, again=True),
    _train(MOSAIC, "MPT 7B", A100, (8, 2048, 6, 12), 4641, again=False),
    _train(MOSAIC, "MPT 13B", A100, (8, 4096, 10, 30), 2060, again=True),
    _train(MOSAIC, "MPT 70B", A100, (64, 2048, 8, 32), 410, again=True),
    _train(TITAN_H100, "Llama 3 8B", H100, (8, 8192, 2, 2), 5762, again=False),
    _train(TITAN_H100, "Llama 3 8B", H100, (128, 8192, 2, 2), 5605, again=False),
    _train(TITAN_A100, "Llama 3 8B", A100, (64, 8192, 1, 1), 2973, again=False),
    _train(TITAN_A100, "Llama 3 70B", A100, (64, 8192, 1, 1), 331, again=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """A published throughput of generation with equal lengths, or the time of one token (`response` 0)."""

    source: str
    model: str
    gpu: str
    tensor_parallel: int
    batch: int
    prompt: int
    response: int
    published: float
    """Answer tokens a second of the whole engine."""

    def estimated(self) -> float:
        kind = gpu_kind(self.gpu)
        work = MODELS[self.model]
        rollout = RolloutConfig(dtype="bf16", tensor_parallel=self.tensor_parallel, enforce_eager=False)
        free = 0.9 * kind.memory_bytes * self.tensor_parallel - 2 * work.total_parameters
        kv_tokens = free / work.kv_bytes_per_token("bf16")
        engine = Engines(work=work, rollout=rollout, kv_tokens=kv_tokens, hardware=hardware(self.gpu))
        if self.response == 0:
            return self.batch / engine.decode_step(self.batch, self.prompt).seconds
        return self.batch * self.response / engine.generate(self.batch, self.prompt, self.response).seconds


def _decode(source: str, model: str, gpu: str, shape: tuple[int, int, int, int], published: float) -> Decoding:
    """`shape`: GPUs of the engine, sequences, tokens of a prompt and of an answer."""
    size, batch, prompt, response = shape
    return Decoding(
        source=source,
        model=model,
        gpu=gpu,
        tensor_parallel=size,
        batch=batch,
        prompt=prompt,
        response=response,
        published=published,
    )


DECODED = (
    _decode(VLLM_A100, "Llama 3 8B", A100_40, (1, 1, 1088, 0), 75),
    _decode(VLLM_H100, "Llama 3 8B", H100, (1, 1, 512, 0), 1 / 6.48e-3),
    _decode(VLLM_H100, "Llama 3 8B", H100, (1, 4, 512, 0), 4 / 6.59e-3),
    _decode(VLLM_H100, "Llama 3 8B", H100, (1, 16, 512, 0), 16 / 10.94e-3),
    _decode(VLLM_70B, "Llama 2 70B", A100_40, (8, 32, 1, 2048), 32 * 2048 / 133.70),
    _decode(VLLM_70B, "Llama 2 70B", A100_40, (8, 24, 1024, 1024), 24 * 1024 / 76.12),
    _decode(LMDEPLOY, "Llama 2 7B", A100, (1, 1, 128, 2048), 98.92),
    _decode(LMDEPLOY, "Llama 2 7B", A100, (1, 16, 128, 2048), 1010.62),
    _decode(LMDEPLOY, "Llama 2 7B", A100, (1, 32, 128, 2048), 1462.12),
    _decode(LMDEPLOY, "Llama 2 7B", A100, (1, 64, 128, 128), 3024.07),
    _decode(LMDEPLOY, "Llama 2 7B", A100, (1, 64, 2048, 2048), 755.65),
    _decode(LMDEPLOY, "Llama 2 13B", A100, (1, 32, 128, 2048), 860.14),
    _decode(LMDEPLOY, "Llama 2 70B", A100, (4, 1, 128, 2048), 32.38),
    _decode(LMDEPLOY, "Llama 2 70B", A100, (4, 32, 128, 2048), 853.56),
    _decode(LMDEPLOY, "Llama 2 70B", A100, (4, 64, 2048, 2048), 930.46),
)


def hardware(gpu: str) -> Hardware:
    return Hardware(kind=gpu_kind(gpu), gpus_per_node=8)


def training_table() -> Table:
    rows: list[tuple[Cell, ...]] = []
    for each in TRAINED:
        work = f"{each.model}, {each.num_gpus} x {each.gpu}, {each.length:,} tokens"
        recomputed = "yes" if each.checkpointing else "no"
        estimated = each.estimated()
        rows.append((work, recomputed, each.published, estimated, estimated / each.published, each.source))
    columns = ("training", "recomputation", "published tokens/s a GPU", "estimated", "estimated / published", "source")
    return Table(title="Training, against published figures", columns=columns, rows=tuple(rows), note=_spread(rows))


def decoding_table() -> Table:
    rows: list[tuple[Cell, ...]] = []
    for each in DECODED:
        gpus = f"{each.tensor_parallel} x {each.gpu}"
        lengths = (
            f"{each.prompt:,} + {each.response:,} tokens" if each.response else f"context {each.prompt:,}, no prefill"
        )
        estimated = each.estimated()
        what = f"{each.model}, {gpus}, {lengths}"
        rows.append((what, each.batch, each.published, estimated, estimated / each.published, each.source))
    columns = ("generation", "sequences", "published answer tokens/s", "estimated", "estimated / published", "source")
    return Table(title="Generation, against published figures", columns=columns, rows=tuple(rows), note=_spread(rows))


def _spread(rows: list[tuple[Cell, ...]]) -> str:
    ratios = sorted(float(row[4]) for row in rows if isinstance(row[4], float))
    within = sum(0.75 <= ratio <= 1.25 for ratio in ratios)
    middle = ratios[len(ratios) // 2]
    return f"{within} of {len(ratios)} within 25 %; the ratio's median is {middle:.2f}, its range {ratios[0]:.2f} to {ratios[-1]:.2f}."


def main() -> None:
    """`python -m benchmarks.estimates_time`: the tables, into the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n{END}{after}", "utf-8")


def assumptions_table() -> Table:
    """The efficiencies, from where they stand in the code."""
    rows = []
    for text in Efficiencies().in_words():
        name, _, rest = text.partition(" ")
        value, _, reason = rest.partition(": ")
        rows.append((f"`{name}`", value, reason))
    return Table(title="What is assumed", columns=("name", "value", "of what, and why"), rows=tuple(rows))


def tables() -> str:
    """As Markdown."""
    parts = [assumptions_table(), training_table(), decoding_table()]
    return "\n".join([*(part.markdown() for part in parts), SOURCES])


if __name__ == "__main__":
    main()
