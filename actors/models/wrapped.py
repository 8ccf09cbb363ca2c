"""What the engine knows of a model: a Hugging Face model inside a module with our own forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from actors.algorithms.records import PackedBatch


class WrappedModel(nn.Module):
    """Holds a transformers model as `model`. Parameters keep the names of its checkpoint format."""

    plain_forward: Mapping[str, Any] = {}
    """Keyword arguments with which `forward` runs on a batch alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def hf_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter once, under its name in a Hugging Face checkpoint; a tied head is the embedding's."""
        return dict(self.model.named_parameters())

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """Last hidden states [T, H] of the packed sequences; none sees another."""
        output = self.model.base_model(
            input_ids=batch.tokens[None], position_ids=batch.position_ids[None], use_cache=False, return_dict=True
        )
        return output.last_hidden_state[0]
