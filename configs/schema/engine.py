"""Training engine, optimizer and placement: shared by policy, critic and reward model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
    Section,
    refuse,
)

MODEL = "a folder or hub name of a Hugging Face model"


class EngineConfig(Section):
    """How a model is sharded and computed."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 0 replicates, 1 shards optimizer states, 2 gradients too, 3 parameters too."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of forward and backward. Master weights and optimizer states are fp32 in both cases."""
    micro_batch_tokens: PositiveInt = 4096
    """Token budget of one packed micro-batch on one rank; the longest sequence must fit."""
    logits_chunk_tokens: PositiveInt = 1024
    """Tokens whose logits are held at once: the logits buffer is this times the vocabulary times 4 bytes."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of holding them."""
    offload_optimizer: bool = False
    """Keep optimizer states and fp32 master weights in host memory (ZeRO 1 to 3, on GPU)."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel. `sdpa` builds a mask of tokens x tokens for packed input: fine at the budgets of a CPU, not at 100k tokens."""


class OptimizerConfig(Section):
    """AdamW and its schedule. A step here is one optimizer step; a PPO step makes `epochs x minibatches` of them."""

    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    betas: tuple[ProperFraction, ProperFraction] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay; biases and norms are left out of it."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global L2 norm."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which the learning rate rises linearly to its peak; the first of them has a part of it, never 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after warm-up, over the whole run."""
    final_lr_frac: Fraction = 0.0
    """Learning rate at the end of the run, as a fraction of the peak (linear and cosine)."""


class PlacementConfig(Section):
    """Where a role runs. Roles that name the same `group` share its GPUs, and engines among them sleep while the others work; a role that
    names none has GPUs of its own."""

    num_ranks: PositiveInt = 1
    """Data-parallel ranks, one Ray actor each."""
    group: str | None = Field(default=None, min_length=1)
    """GPU group; the role's own name where it is not given."""
    threads_per_rank: PositiveInt | None = None
    """OMP_NUM_THREADS of each rank; the machine's cores divided by the role's ranks where it is not given."""


class TrainerConfig(Section):
    """A trained role: model, engine, optimizer, placement."""

    model: str | None = Field(default=None, min_length=1)
    """Folder or hub name of a Hugging Face model."""
    engine: EngineConfig = EngineConfig()
    """Sharding and precision."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    placement: PlacementConfig = PlacementConfig()
    """Ranks and GPU group."""

    @model_validator(mode="after")
    def _allowed_pairs(self) -> Self:
        if self.engine.dtype == "bf16" and self.engine.zero_stage == 0:
            raise refuse(
                "engine.zero_stage", "got 0 with engine.dtype bf16", "1, 2 or 3: stage 0 keeps no fp32 master weights"
            )
        if self.engine.offload_optimizer and self.engine.zero_stage == 0:
            raise refuse("engine.zero_stage", "got 0 with engine.offload_optimizer true", "1, 2 or 3")
        return self


class FrozenConfig(Section):
    """A frozen role: it only answers. ZeRO 0 replicates it, ZeRO 3 shards it."""

    model: str | None = Field(default=None, min_length=1)
    """Folder or hub name of a Hugging Face model."""
    engine: EngineConfig = EngineConfig()
    """Sharding and precision."""
    placement: PlacementConfig = PlacementConfig()
    """Ranks and GPU group."""

    @model_validator(mode="after")
    def _stages(self) -> Self:
        if self.engine.zero_stage not in (0, 3):
            got = f"got {self.engine.zero_stage}"
            raise refuse("engine.zero_stage", got, "0 (replicated) or 3 (sharded): the model is frozen")
        if self.engine.offload_optimizer:
            raise refuse("engine.offload_optimizer", "got true", "false: a frozen model has no optimizer")
        return self
