"""fp32 master weights and Adam's state of single parameters, whatever the ZeRO stage. Collective, as everything that is sharded is.

DeepSpeed keeps flat partitions; its `safe_get_*` and `safe_set_*` functions translate. What they leave out is done here: state that does
not exist before the first step, the step count, the copy that the model computes with, and stage 3's padding of the last partition.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from actors.engine.sharding import gathered, is_sharded

MOMENTS = ("exp_avg", "exp_avg_sq")


class OptimizerStates:
    """Reads and writes the masters and moments behind the parameters of one DeepSpeed engine that trains."""

    def __init__(self, engine: Any) -> None:
        self._zero_stage: int = engine.zero_optimization_stage()
        self._optimizer = engine.optimizer
        self._create()

    def master(self, parameter: nn.Parameter) -> Tensor:
        """The whole fp32 master weight."""
        if self._zero_stage == 0:
            return parameter.detach()
        return safe_get_full_fp32_param(parameter)

    def moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        """Adam's whole fp32 moment `key`; zeros before the first step."""
        if self._zero_stage == 0:
            return self._adam().state[parameter][key]
        return safe_get_full_optimizer_state(parameter, key)

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Replaces the master weight and the copy that the model computes with. `value` is whole, and on every rank."""
        with gathered([parameter], writer=0), torch.no_grad():
            parameter.data.copy_(value)
        if self._zero_stage == 3:
            safe_set_local_fp32_param(parameter, _share(parameter, value))
        elif self._zero_stage > 0:
            safe_set_full_fp32_param(parameter, value)

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Replaces Adam's moment `key`. `value` is whole, and on every rank."""
        if self._zero_stage == 0:
            self._adam().state[parameter][key].copy_(value)
        elif self._zero_stage == 3:
            safe_set_local_optimizer_state(parameter, _share(parameter, value), key)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def num_steps(self) -> int:
        """Adam's steps so far. All parameters step together, so there is one count."""
        counts = {int(self._adam().state[flat]["step"]) for flat in self._flat_masters()}
        assert len(counts) == 1, f"parameters have taken different numbers of steps: {counts}"
        return counts.pop()

    def set_num_steps(self, num_steps: int) -> None:
        for flat in self._flat_masters():
            self._adam().state[flat]["step"].fill_(num_steps)

    @property
    def movable(self) -> bool:
        """Whether this engine's memory can be moved between GPU and host: not with bf16 at stage 1, for which DeepSpeed has no way."""
        return not isinstance(self._optimizer, BF16_Optimizer)

    def relink(self) -> None:
        """After DeepSpeed has moved its partitions back: at stages 1 and 2 the links from parameters to moments are made anew, which
        DeepSpeed itself does only once."""
        if self._zero_stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def move_replicated(self, device: torch.device) -> None:
        """Stage 0: moves Adam's moments. Its step count stays on the host."""
        for state in self._adam().state.values():
            for key in MOMENTS:
                state[key] = state[key].to(device)

    def _adam(self) -> torch.optim.AdamW:
        return self._optimizer if self._zero_stage == 0 else self._optimizer.optimizer

    def _flat_masters(self) -> list[Tensor]:
        """The tensors that torch's AdamW steps on: this rank's partitions, or at stage 0 the parameters themselves."""
        if self._zero_stage == 3:  # which puts a partition into its optimizer only while it steps on it
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self._adam().param_groups for tensor in group["params"]]

    def _create(self) -> None:
        """Makes Adam's state as its first step would, so that it can be read and written from the start.

        DeepSpeed would link it to parameters after the first parameter group's first step, when the other groups have none yet, and
        their moments would stay out of reach.
        """
        state = self._adam().state
        for flat in self._flat_masters():
            moments = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            state[flat] = {"step": torch.tensor(0.0, dtype=torch.float32), **moments}
        if self._zero_stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()


def _share(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a whole value under ZeRO-3; the last part is padded with zeros."""
    assert is_sharded(parameter)
    size = safe_get_local_fp32_param(parameter).numel()
    flat = value.flatten()
    padded = F.pad(flat, (0, size * dist.get_world_size() - flat.numel()))
    return padded.narrow(0, size * dist.get_rank(), size)
