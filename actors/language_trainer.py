"""A rank of the stages `pretrain` and `sft`: a language model that learns the next token of sequences.

The stages differ in what they read, and in which tokens have a loss. Sequences of a micro-batch are packed and cannot see each other.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from actors.context import RankContext
from actors.errors import NotFinite
from actors.supervised_trainer import ItemsReport, MicroBatch, MicroBatches, SupervisedTrainer
from configs.schema.supervised import PretrainStage, SFTStage

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import PackedBatch
    from actors.data.sequences import SequenceDataset
    from actors.data.tokenizer import Tokenizer
    from actors.models.wrapped import WrappedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutSum:
    """What one rank's part of the held-out sequences added up to."""

    nll: float
    """Negative log-likelihood of the tokens that have a loss, in nats."""
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageEvaluation:
    """How well the held-out sequences are predicted."""

    num_tokens: int
    """Tokens that have a loss."""
    loss: float
    """Mean negative log-likelihood of a token, in nats."""

    @property
    def merit(self) -> float:
        """Less loss is better."""
        return -self.loss

    def metrics(self) -> dict[str, float]:
        return {"held_out/loss": self.loss}

    def described(self) -> str:
        return f"held out: {self.num_tokens} tokens, loss {self.loss:.4f}, perplexity {math.exp(min(self.loss, 700.0)):.2f}"


class LanguageTrainer(SupervisedTrainer):
    """The language model that learns."""

    shard_folder: ClassVar[str] = "policy"
    evaluation_file: ClassVar[str] = "preceptor_language.json"
    forward_kwargs: ClassVar[dict[str, Any]] = {"temperature": 1.0, "with_entropy": False}

    def __init__(self, context: RankContext, config: PretrainStage | SFTStage) -> None:
        super().__init__(context)
        self.config: PretrainStage | SFTStage = config

    def load_data(self, tokenizer: Tokenizer) -> str:
        self.data: SequenceDataset = load_sequences(self.config, tokenizer)
        return self.data.fingerprint

    def load_module(self, model: str) -> WrappedModel:
        from actors.models.causal_lm import load_policy

        return load_policy(model, self.config.model.engine, device=self.context.device)

    def items(self) -> ItemsReport:
        return ItemsReport(
            lengths=tuple(self.data.lengths),
            weights=tuple(self.data.num_loss_tokens),
            num_train=len(self.data.train),
            num_dropped=self.data.num_dropped,
            data_fingerprint=self.data.fingerprint,
        )

    def packed(self, items: Sequence[int]) -> PackedBatch:
        import torch

        from actors.algorithms.records import PackedBatch, cumulative

        sequences = [self.data.sequence(item) for item in items]
        tokens = torch.tensor([token for one in sequences for token in one.token_ids], dtype=torch.int64)
        mask = torch.tensor([flag for one in sequences for flag in one.loss_mask], dtype=torch.bool)
        return PackedBatch.from_flat(tokens, cumulative([len(one.token_ids) for one in sequences]), mask)

    def loss(
        self, micro: MicroBatch, outputs: tuple[Tensor, ...], global_count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from actors.algorithms.losses import next_token_loss

        logprobs, _ = outputs
        mask, cu_lengths = micro.batch.loss_mask.to(logprobs.device), micro.batch.cu_lengths.to(logprobs.device)
        loss = next_token_loss(logprobs, mask, cu_lengths, aggregation="token_mean", global_count=global_count)
        return loss, {"loss": loss.detach()}

    def evaluate(self, micro_batches: MicroBatches) -> HeldOutSum:
        total, count = 0.0, 0
        for items in micro_batches:
            batch = self.packed(items)
            logprobs, _ = self.engine.forward(batch, **self.forward_kwargs)
            if items:
                total -= float(logprobs.double().sum())  # 0 where masked
                count += int(batch.loss_mask.sum())
        return HeldOutSum(nll=total, num_tokens=count)

    def summarise(self, parts: Sequence[HeldOutSum]) -> LanguageEvaluation:
        """Raises NotFinite for a loss that is not finite."""
        num_tokens = sum(part.num_tokens for part in parts)
        loss = sum(part.nll for part in parts) / num_tokens
        if not math.isfinite(loss):
            raise NotFinite(f"{self.context.role}: the held-out loss is {loss}")
        return LanguageEvaluation(num_tokens=num_tokens, loss=loss)


def load_sequences(config: PretrainStage | SFTStage, tokenizer: Any) -> SequenceDataset:
    """The stage's data, tokenised. Raises UserError for anything wrong with it, with file and line."""
    from actors.data.sequences import load_conversations, load_texts

    if isinstance(config, PretrainStage):
        return load_texts(config.data, tokenizer)
    return load_conversations(config.data, tokenizer)
