"""The policy (and its frozen copy, the reference): a causal language model that answers with log-probabilities.

Legend: `T` tokens of a packed batch, `N` of them chosen by the policy, `H` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from actors.algorithms.logprobs import response_positions, scatter_to_tokens, token_logprobs
from actors.algorithms.records import PackedBatch
from actors.errors import UserError
from actors.models.checks import check_plain_logits, read_model_config, resolve_folder
from actors.models.loading import finish, load_model, read_config
from actors.models.wrapped import WrappedModel
from configs.schema.engine import EngineConfig


class LogprobHead(nn.Module):
    """An output head whose forward gives log-probabilities instead of logits.

    A module of its own with the head's weight as its parameter: ZeRO-3 gathers it before this forward and again before its backward, tied
    to the embedding or not.
    """

    def __init__(self, head: nn.Linear, chunk_tokens: int) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.chunk_tokens = chunk_tokens

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, float32 [N] each, from hidden states [N, H] and the tokens [N] that followed."""
        return token_logprobs(
            hidden,
            self.weight,
            targets,
            temperature=temperature,
            chunk_tokens=self.chunk_tokens,
            with_entropy=with_entropy,
            head_bias=self.bias,
        )


class PolicyModule(WrappedModel):
    """Forward of the policy on one packed micro-batch."""

    plain_forward: Mapping[str, Any] = {"temperature": 1.0, "with_entropy": False}

    def __init__(self, model: Any, chunk_tokens: int) -> None:
        super().__init__(model)
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        model.set_output_embeddings(LogprobHead(head, chunk_tokens))

    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy: bool, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each token that the policy chose; 0 elsewhere.

        The distribution is that of the logits divided by `temperature`. A batch without any such token runs through backbone and head all
        the same, and its result is selected away: every rank runs the same collectives.

        Returns:
            float32 [T] log-probabilities, float32 [T] entropies in nats (0 where not asked for).
        """
        hidden = self.hidden_states(batch)  # [T, H]
        positions = response_positions(batch.loss_mask)  # [N]
        if len(positions) == 0:
            positions = torch.zeros(1, dtype=torch.int64, device=hidden.device)
        before = (positions - 1).clamp(min=0)
        logprobs, entropy = self.model.get_output_embeddings()(
            hidden[before], batch.tokens[positions], temperature, with_entropy
        )
        if not entropy_grad:
            entropy = entropy.detach()  # a number to look at must not cost a backward pass
        length = len(batch.tokens)
        zero = logprobs.new_zeros(())
        return (
            torch.where(batch.loss_mask, scatter_to_tokens(logprobs, positions, length), zero),
            torch.where(batch.loss_mask, scatter_to_tokens(entropy, positions, length), zero),
        )


def load_policy(model: str, engine: EngineConfig, *, device: str) -> PolicyModule:
    """A causal language model from a folder or the hub, in `engine.dtype`, dropout off.

    Raises:
        UserError: if the folder is no such model, changes its logits after the head, or lacks weights.
    """
    check_plain_logits(read_model_config(model), model)
    folder = resolve_folder(model)
    loaded, missing = load_model(transformers.AutoModelForCausalLM, folder, read_config(folder), engine, device=device)
    if missing:
        raise UserError(f"{model}: the checkpoint lacks {', '.join(sorted(missing)[:5])}")
    if not isinstance(loaded.get_output_embeddings(), nn.Linear):
        raise UserError(f"{model}: its output head is no plain linear layer")
    finish(loaded, engine)
    return PolicyModule(loaded, engine.logits_chunk_tokens)
