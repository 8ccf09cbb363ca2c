"""Proof that packed sequences do not see each other in the model at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actors.algorithms.records import PackedBatch, cumulative
from actors.errors import UserError
from actors.models.wrapped import WrappedModel


def check_packing(module: WrappedModel, run: Callable[[PackedBatch], Any]) -> None:
    """Runs two packed sequences twice, changes only the first in between, and compares the hidden states of the second, bit for bit.

    Some architectures never look at restarting positions and attend across the whole pack, without an error. `run` is the forward of
    `module`, on the device it is on (collective under ZeRO-3).

    Raises:
        UserError: if the second sequence saw the first.
    """
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output.last_hidden_state[0, 3:].detach().clone())

    hook = module.model.base_model.register_forward_hook(keep)
    try:
        with torch.no_grad():
            for first in ([0, 1, 2], [4, 3, 0]):
                tokens = torch.tensor([*first, 1, 3, 2])
                run(PackedBatch.from_flat(tokens, cumulative([3, 3]), torch.tensor([False, True, True] * 2)))
    finally:
        hook.remove()
    if not torch.equal(*seen):
        config = module.model.config
        raise UserError(
            f"{config.model_type} models let packed sequences see each other (attention {config._attn_implementation}): "
            "take another engine.attention or another architecture"
        )
