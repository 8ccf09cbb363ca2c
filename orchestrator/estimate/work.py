"""What a model costs: floating-point operations and bytes, by tokens. Counts, no times.

Legend: `L` tokens of a sequence, `T` tokens of a packed micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from orchestrator.estimate.shapes import ModelShape

Head = Literal["vocabulary", "scalar"]
Attention = Literal["sdpa", "flash_attention_2", "eager"]

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """The sizes of a model that its cost depends on."""

    total_parameters: float
    """All of them: what is held, gathered and sent."""
    body_parameters: float
    """Of one token's way through the layers: without embedding and head, and of experts only those that it goes to."""
    head_parameters: float
    """Hidden size x vocabulary."""
    num_layers: int
    hidden: int
    attention_width: float
    """Heads x their size; where values have another than keys, the mean of both."""
    kv_width: float
    """Numbers that the KV cache keeps for one token in one layer: keys and values."""
    expert_parameters: float = 0.0
    """Of all routed experts of all layers."""
    num_experts: int = 1
    """Routed experts of one layer."""
    experts_per_token: int = 1

    def kv_bytes_per_token(self, dtype: str) -> float:
        return self.num_layers * self.kv_width * BYTES[dtype]

    def read_parameters(self, batch: float) -> float:
        """Parameters that one decode step of `batch` tokens reads: every expert that some token goes to, if routing is even. Of the
        embedding it reads next to nothing, of the head all."""
        dense = self.body_parameters - self.expert_parameters * self.experts_per_token / self.num_experts
        reached = 1.0 - (1.0 - self.experts_per_token / self.num_experts) ** batch
        return dense + self.head_parameters + self.expert_parameters * reached


def work_of(shape: ModelShape, head: Head) -> ModelWork:
    """Of a language model, or of the same with a scalar head. Layers with experts have equally many (of every known architecture)."""
    mixed = [layer for layer in shape.layers if layer.experts]
    routed = sum(
        layer.count * (layer.params - layer.active_params) * layer.experts / (layer.experts - layer.experts_per_token)
        for layer in mixed
    )
    head_parameters = shape.vocab_size * shape.hidden_size
    return ModelWork(
        total_parameters=shape.num_params if head == "vocabulary" else shape.num_scalar_params,
        body_parameters=shape.active_params - head_parameters,
        head_parameters=head_parameters,
        num_layers=shape.num_layers,
        hidden=shape.hidden_size,
        attention_width=shape.num_heads * (shape.head_dim + shape.value_dim) / 2,
        kv_width=shape.kv_elements,
        expert_parameters=routed,
        num_experts=mixed[0].experts if mixed else 1,
        experts_per_token=mixed[0].experts_per_token if mixed else 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How often a micro-batch goes through the parts of a model, in units of one forward pass."""

    body: float
    head: float
    """The head's logits are not kept for the backward pass but computed again."""

    @staticmethod
    def forward() -> Passes:
        return Passes(body=1, head=1)

    @staticmethod
    def training(*, checkpointing: bool) -> Passes:
        """Forward, two for the backward pass, and one more where activations are computed again."""
        return Passes(body=4 if checkpointing else 3, head=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences of equal length on one rank, packed into micro-batches."""

    num_sequences: int
    length: float
    """Tokens of each."""
    budget: int
    """Tokens of a micro-batch."""

    @property
    def sequences_per_micro_batch(self) -> int:
        return max(1, int(self.budget // self.length))

    @property
    def num_micro_batches(self) -> int:
        return max(1, math.ceil(self.num_sequences / self.sequences_per_micro_batch))

    @property
    def num_tokens(self) -> float:
        return self.num_sequences * self.length

    def attended(self, attention: Attention) -> float:
        """Pairs of tokens that attention computes: half of L x L a sequence where the kernel leaves out what the mask hides, else T x T a
        micro-batch, whose mask is dense."""
        if attention == "flash_attention_2":
            return self.num_sequences * self.length**2 / 2
        whole, rest = divmod(self.num_sequences, self.sequences_per_micro_batch)
        full = self.sequences_per_micro_batch * self.length
        return float(whole * full**2 + (rest * self.length) ** 2)


def flops(work: ModelWork, batch: Batch, *, passes: Passes, head: Head, attention: Attention) -> float:
    """Of one rank's batch: 2 a parameter and token, and 4 x attention width a layer and attended pair (scores and values)."""
    head_parameters = work.head_parameters if head == "vocabulary" else work.hidden
    linear = 2 * batch.num_tokens * (work.body_parameters * passes.body + head_parameters * passes.head)
    return linear + 4 * work.attention_width * work.num_layers * batch.attended(attention) * passes.body
