"""The supervised losses as plainly as they can be written: one process, transformers and torch, padded batches, whole logits.

It shares no code with the project. What it takes as given is the sequences, and which of them make up a step.

Legend: `B` sequences of a batch, `L` tokens of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

from tests.proof.plain_ppo import Optimizer, adam


@dataclass(kw_only=True)
class Sequence:
    tokens: list[int]
    chosen: list[bool]
    """Tokens that have a loss."""


class PlainSupervised:
    def __init__(self, model: str, optimizer: Optimizer) -> None:
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(model, dtype=torch.float32, attn_implementation="eager")
        self.reference = load(model, dtype=torch.float32, attn_implementation="eager")
        self.optimizer, self.adam = optimizer, adam(self.model, optimizer)
        self.updates = 0

    def next_token_step(self, batch: list[Sequence]) -> dict[str, float]:
        logprobs, chosen = token_logprobs(self.model, batch)
        return self.descend(-logprobs[chosen].sum() / chosen.sum())

    def dpo_step(
        self, better: list[Sequence], worse: list[Sequence], *, loss: str, beta: float, smoothing: float
    ) -> dict[str, float]:
        def of_answers(model: nn.Module, batch: list[Sequence]) -> Tensor:
            logprobs, chosen = token_logprobs(model, batch)
            sums = (logprobs * chosen).sum(1)
            return sums / chosen.sum(1) if loss == "ipo" else sums

        lead = of_answers(self.model, better) - of_answers(self.model, worse)
        with torch.no_grad():
            reference_lead = of_answers(self.reference, better) - of_answers(self.reference, worse)
        gap = lead - reference_lead
        if loss == "ipo":
            found = (gap - 1 / (2 * beta)) ** 2
        else:
            right, wrong = torch.sigmoid(beta * gap).log(), torch.sigmoid(-beta * gap).log()
            found = -(1 - smoothing) * right - smoothing * wrong
        return self.descend(found.mean())

    def held_out_loss(self, sequences: list[Sequence]) -> float:
        with torch.no_grad():
            logprobs, chosen = token_logprobs(self.model, sequences)
        return float(-logprobs[chosen].sum() / chosen.sum())

    def descend(self, loss: Tensor) -> dict[str, float]:
        self.adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer.max_grad_norm)
        for group in self.adam.param_groups:
            group["lr"] = self.optimizer.rate(self.updates)
        self.adam.step()
        self.updates += 1
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}


def token_logprobs(model: nn.Module, batch: list[Sequence]) -> tuple[Tensor, Tensor]:
    """Log-probability of each token after the first, and whether it has a loss: [B, L - 1] each."""
    width = max(len(one.tokens) for one in batch)
    tokens = torch.tensor([[*one.tokens, *[0] * (width - len(one.tokens))] for one in batch])
    present = torch.tensor([[1] * len(one.tokens) + [0] * (width - len(one.tokens)) for one in batch])
    chosen = torch.tensor([[*one.chosen, *[False] * (width - len(one.tokens))] for one in batch])
    logits = model(input_ids=tokens, attention_mask=present, use_cache=False).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1), chosen[:, 1:]
