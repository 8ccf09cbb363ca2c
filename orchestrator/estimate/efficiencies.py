"""What is assumed of hardware and software beyond the data sheets: the one table of it.

Every number is a share of a peak or a time, with the reason for it. Nothing here was measured on this project's own runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields


def _assumed(value: float, what: str, why: str) -> float:
    number: float = field(default=value, metadata={"what": what, "why": why})
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiencies:
    """Shares in (0, 1] of a GPU kind's peak, times in seconds, and what a host does."""

    training: float = _assumed(
        0.40,
        "of the bf16 peak in forward and backward of training, recomputation counted as work",
        "MosaicML's tables of FSDP reach 0.38 to 0.59 on H100 and 0.62 to 0.77 on A100, torchtitan without compilation 0.33 on H100; this "
        "project runs uncompiled transformers models under DeepSpeed",
    )
    scoring: float = _assumed(
        0.45,
        "of the bf16 peak in forward passes without gradients",
        "as training, without the optimizer's and reductions' share",
    )
    prefill: float = _assumed(
        0.50,
        "of the bf16 peak while vLLM reads prompts",
        "large batches of prompt tokens through vLLM's fused kernels; no figure of its own",
    )
    fp32: float = _assumed(
        1 / 16,
        "of the bf16 peak in fp32",
        "the data sheets of A100 and H100: 19.5 of 312 and 67 of 989 TFLOP/s without TF32",
    )
    decode: float = _assumed(
        0.77,
        "of the memory bandwidth while vLLM decodes",
        "one sequence of Llama 3 8B under vLLM, which reads all but the embedding, less decode_step_s: 75 tokens/s on an A100 40 GB are "
        "0.77, 6.48 ms a token on an H100 0.78",
    )
    streaming: float = _assumed(
        0.60,
        "of the memory bandwidth in reading weights for a micro-batch and in the optimizer's step",
        "several passes over the same bytes",
    )
    collective: float = _assumed(
        0.70,
        "of NVLink, PCIe or network in collectives",
        "NCCL tests reach 0.7 to 0.9 of a link with large messages; buckets here are smaller",
    )
    pcie: float = _assumed(0.75, "of PCIe in copies between GPU and host", "pinned memory; part of DeepSpeed's is")
    cpu_adam: float = _assumed(
        0.7e9,
        "parameters a second of AdamW in a node's host memory, by all its ranks together",
        "torch's AdamW, no figure of this project; DeepSpeed's own, not used here, is 5 to 7 times as fast by its tutorial",
    )
    host_channel: float = _assumed(
        1.0e9,
        "bytes a second through the weight-sync channel `cpu`",
        "bound by sha256 of every tensor on one core at either end",
    )
    decode_step_s: float = _assumed(
        0.7e-3, "seconds of a decode step outside the GPU's work, with CUDA graphs", "vLLM's scheduler and sampler"
    )
    eager_layer_s: float = _assumed(
        0.15e-3,
        "seconds a layer to launch its kernels without CUDA graphs",
        "some 15 kernels of about 10 microseconds each",
    )
    all_reduce_s: float = _assumed(
        30e-6, "seconds of an all-reduce beside its bytes", "launch and synchronisation of NCCL's ring over 4 to 8 GPUs"
    )
    bucket_s: float = _assumed(
        3e-3, "seconds a bucket of a weight sync beside its bytes", "one call of a Ray actor and its answer"
    )

    def in_words(self) -> Iterator[str]:
        """Each with its value and its reason."""
        values = asdict(self)
        for each in fields(self):
            yield f"{each.name} {values[each.name]:.3g}: {each.metadata['what']} ({each.metadata['why']})"
