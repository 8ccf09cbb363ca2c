"""Where a model's weights and optimizer state live: on the GPU, or in host memory while other roles use the GPU."""

from __future__ import annotations

from typing import Any

import torch

from actors.engine.optimizer_states import OptimizerStates
from actors.errors import UserError


class Residence:
    """Moves one engine's memory between GPU and host. On CPU both directions do nothing: there is no other memory."""

    def __init__(self, runner: Any, states: OptimizerStates | None, *, stage: int, device: torch.device) -> None:
        self._runner = runner
        self._states = states
        self._stage = stage
        self._device = device
        self._on_host = False

    def to_host(self) -> bool:
        """True if memory was moved.

        Raises:
            UserError: for the kinds of engine that DeepSpeed cannot move.
        """
        if self._device.type == "cpu" or self._on_host:
            return False
        self._check_movable()
        if self._stage == 0:
            self._move_replicated(torch.device("cpu"))
        else:
            # DeepSpeed's flat buffers: parameters are views into them and move with them.
            self._runner.offload_states()
        torch.cuda.empty_cache()
        self._on_host = True
        return True

    def to_device(self) -> bool:
        """True if memory was moved back."""
        if not self._on_host:
            return False
        if self._stage == 0:
            self._move_replicated(self._device)
        else:
            self._runner.reload_states()
            if self._states is not None:
                self._states.relink()
        self._on_host = False
        return True

    def _check_movable(self) -> None:
        if self._stage == 3:
            raise UserError("a model with engine.zero_stage 3 cannot leave its GPU; give it a group of its own")
        if self._states is not None and not self._states.movable:
            raise UserError(
                "engine.zero_stage 1 with dtype bf16 cannot leave its GPU; take zero_stage 2, or a group of its own"
            )

    def _move_replicated(self, device: torch.device) -> None:
        self._runner.to(device)
        if self._states is not None:
            self._states.move_replicated(device)
