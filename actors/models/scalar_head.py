"""Critic and reward model: a backbone and one number per token. On disk, Hugging Face's ForSequenceClassification with one label.

Legend: `B` sequences and `T` tokens of a packed batch, `H` hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from actors.algorithms.records import PackedBatch
from actors.engine.sharding import gathered
from actors.errors import UserError
from actors.models.checks import resolve_folder
from actors.models.loading import finish, load_model, read_config
from actors.models.wrapped import WrappedModel
from configs.schema.engine import EngineConfig


class ScoreHead(nn.Module):
    """`score` of a ForSequenceClassification model, computed in float32: bfloat16 would leave a value three digits."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [T] from hidden states [T, H]."""
        return F.linear(hidden.float(), self.weight.float()).squeeze(-1)


class ScalarModule(WrappedModel):
    """Forward of the critic or reward model on one packed micro-batch."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        model.score = ScoreHead(model.score)

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Values and scores.

        Returns:
            float32 [T]: the value of the state before token t, read at t - 1; 0 at a sequence's first token.
            float32 [B]: the head read at each sequence's last token: the score of the whole, or the value after its end.
        """
        scores = self.model.score(self.hidden_states(batch))  # [T]
        values = F.pad(scores[:-1], (1, 0))
        values = torch.where(batch.position_ids == 0, values.new_zeros(()), values)
        return values, scores[batch.cu_lengths[1:] - 1]


def load_scalar(model: str, engine: EngineConfig, *, device: str, fresh_head_ok: bool, seed: int) -> ScalarModule:
    """A critic or reward model from a ForSequenceClassification folder, or from a causal language model with a new head of zeros.

    With a head of zeros every value is 0 until the first update; `seed` is what anything else the checkpoint lacks would be drawn from,
    and is set so that all ranks agree.

    Raises:
        UserError: if the checkpoint has no head and `fresh_head_ok` is False, if it has more than one output, or if it lacks other weights.
    """
    folder = resolve_folder(model)
    config = read_config(folder)
    if "ForSequenceClassification" in " ".join(config.architectures or []) and config.num_labels != 1:
        raise UserError(f"{model}: a reward model or critic has one label, this one has {config.num_labels}")
    config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto_class = transformers.AutoModelForSequenceClassification
        loaded, missing = load_model(auto_class, folder, config, engine, device=device)
    head = dict(loaded.named_children()).get("score")
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise UserError(f"{model}: its score head is no linear layer without bias")
    if missing - {"score.weight"}:
        raise UserError(f"{model}: the checkpoint lacks {', '.join(sorted(missing)[:5])}")
    if missing:
        if not fresh_head_ok:
            raise UserError(f"{model} has no score head (score.weight): it is not a reward model or critic")
        with gathered([loaded.score.weight], writer=0):
            loaded.score.weight.data.zero_()
    finish(loaded, engine)
    return ScalarModule(loaded)
