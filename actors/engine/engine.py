"""The DeepSpeed seam: forward, gradients, steps, weights and training state of one model over the ranks of one role.

Nothing above this module sees a DeepSpeed type. Every public method is collective unless it says otherwise: all ranks call it.

Legend: `T` tokens and `B` sequences of a packed micro-batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.algorithms.records import PackedBatch
from actors.context import RankContext
from actors.engine.distributed import device_of, join_process_group
from actors.engine.export import write_folder
from actors.engine.optimizer_states import OptimizerStates
from actors.engine.packing import check_packing
from actors.engine.perturbation import Kept, perturb, restore
from actors.engine.residence import Residence
from actors.engine.sharding import DTYPES, deepspeed_config, full_shape, gathered
from actors.engine.state_files import read_states, write_states
from actors.errors import NotFinite
from actors.local_files import read_once
from actors.models.wrapped import WrappedModel
from actors.store import run_path
from actors.tasks import WrittenFile
from configs.schema.engine import EngineConfig, OptimizerConfig

Outputs = tuple[Tensor, ...]
LossFunction = Callable[[int, Outputs], tuple[Tensor, dict[str, Tensor]]]
# Sharded parameters are gathered this much at a time.
GATHER_BYTES = 256 * 1024**2


class Engine:
    """One model, sharded as `engine` says; trained if `optimizer` is given, else frozen (stage 0: replicated, stage 3: sharded)."""

    def __init__(
        self, module: WrappedModel, *, engine: EngineConfig, optimizer: OptimizerConfig | None, context: RankContext
    ) -> None:
        join_process_group(context)
        self._module = module
        self._config = engine
        self._optimizer_config = optimizer
        self._context = context
        self._device = device_of(context)
        self._dtype = DTYPES[engine.dtype]
        self._runner: Any = module
        self._states: OptimizerStates | None = None
        self._kept: Kept | None = None
        if optimizer is None and engine.zero_stage == 0:
            module.to(self._device).requires_grad_(False)
        else:
            self._start_deepspeed()
        self._residence = Residence(self._runner, self._states, stage=engine.zero_stage, device=self._device)
        self._runner.eval()
        check_packing(module, lambda batch: self.forward(batch, **module.plain_forward))

    def _start_deepspeed(self) -> None:
        config = deepspeed_config(self._config, self._optimizer_config, device=self._context.device)
        arguments: dict[str, Any] = {"model": self._module, "config": config, "dist_init_required": False}
        if self._optimizer_config is None:
            self._module.requires_grad_(False)
        else:
            arguments["optimizer"] = adamw(self._module, self._optimizer_config)
        self._runner, *_ = deepspeed.initialize(**arguments)
        if self._optimizer_config is not None:
            self._states = OptimizerStates(self._runner)

    # Computing

    @torch.no_grad()
    def forward(self, batch: PackedBatch, **kwargs: Any) -> Outputs:
        """Outputs of one micro-batch without gradients."""
        self._runner.eval()
        return self._runner(self._to_device(batch), **kwargs)

    def forward_backward(
        self, micro_batches: Sequence[PackedBatch], loss_fn: LossFunction, **forward_kwargs: Any
    ) -> dict[str, float]:
        """Adds up the gradient of all micro-batches of all ranks.

        `loss_fn(index, outputs)` gives the loss of micro-batch `index` as a contribution already divided by the global count, and metrics;
        the gradient is the plain sum of contributions. Every rank passes the same number of micro-batches. A dummy (no sequences) runs
        forward and backward like any other, `loss_fn` is not called for it, and it adds exactly 0 to the gradient.

        Returns:
            Metrics summed over this rank's micro-batches; names that begin with `max_` are their maximum instead.
        """
        assert self._optimizer_config is not None, "a frozen model has no gradients"
        assert micro_batches, "every rank runs at least one micro-batch: a dummy where it has none"
        self._runner.train()
        totals: dict[str, Tensor] = {}
        for index, batch in enumerate(micro_batches):
            outputs = self._runner(self._to_device(batch), **forward_kwargs)
            loss, metrics = nothing(outputs), dict[str, Tensor]()
            if batch.num_sequences > 0:
                contribution, metrics = loss_fn(index, outputs)
                # ZeRO-3 waits for ranks whose backward runs through other outputs: each runs through all of them on every rank.
                loss = loss + contribution
            # DeepSpeed averages over ranks; its own accumulation count is 1, whatever the number of micro-batches.
            self._runner.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            self._runner.backward(loss * dist.get_world_size(), scale_wrt_gas=False)
            for name, value in metrics.items():
                merge = torch.maximum if name.startswith("max_") else torch.add
                totals[name] = merge(totals[name], value.detach()) if name in totals else value.detach()
        return {name: float(value) for name, value in totals.items()}

    def step(self, lr: float) -> float:
        """Clips the gradient to `max_grad_norm` and takes one AdamW step at learning rate `lr`.

        Returns:
            The global L2 norm of the gradient before clipping.

        Raises:
            NotFinite: on every rank, if the gradient is not finite. Weights and Adam's state are as before; the gradient is dropped.
        """
        assert self._optimizer_config is not None, "a frozen model takes no steps"
        for group in self._runner.optimizer.param_groups:
            group["lr"] = lr
        norm = self._clip_replicated() if self._config.zero_stage == 0 else math.nan
        if self._config.zero_stage > 0 or math.isfinite(norm):
            self._runner.step()
            if self._config.zero_stage > 0 and self._runner.was_step_applied():
                norm = float(self._runner.get_global_grad_norm())
        if not math.isfinite(norm):
            raise NotFinite(f"{self._context.role}: the gradient is not finite; weights are those before this update")
        return norm

    def sum_over_ranks(self, value: float) -> float:
        """The same number on every rank (collective)."""
        total = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return float(total)

    def max_over_ranks(self, value: int) -> int:
        """The largest of the ranks' numbers, on every rank (collective)."""
        largest = torch.tensor(value, dtype=torch.int64, device=self._device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def _clip_replicated(self) -> float:
        """Stage 0: clips the gradients that every rank holds whole, or drops them if they are not finite. Returns their norm."""
        assert self._optimizer_config is not None
        parameters = [parameter for parameter in self._module.parameters() if parameter.grad is not None]
        total = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if torch.isfinite(total):
            nn.utils.clip_grads_with_norm_(parameters, self._optimizer_config.max_grad_norm, total)
        else:
            self._runner.zero_grad()
        return float(total)

    def _to_device(self, batch: PackedBatch) -> PackedBatch:
        tensors = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return PackedBatch(**{name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()})

    # Weights

    @property
    def num_parameters(self) -> int:
        """Of the whole model; tied ones count once. Not collective."""
        return sum(full_shape(parameter).numel() for parameter in self._module.hf_parameters().values())

    def perturb(self, seed: int) -> None:
        """Changes every weight that the model computes with, for the drill of a weight sync; masters and optimizer stay as they are."""
        assert self._kept is None, "restore comes before the next perturb"
        self._kept = perturb(self._module, seed=seed, rank=self._context.rank)

    def restore(self) -> None:
        """Undoes `perturb`, bit for bit."""
        assert self._kept is not None, "perturb comes first"
        restore(self._kept)
        self._kept = None

    def iter_full_parameters(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every parameter whole, on every rank, under its name in a Hugging Face checkpoint; tied ones once.

        Given `torch.float32`, the fp32 masters; else the weights that the model computes with, converted to `dtype`. At most
        `GATHER_BYTES` of a sharded model are whole at once. A tensor is valid until the next one is asked for: copy what is kept.
        """
        if dtype == torch.float32 and self._dtype != dtype and self._states is not None:
            for name, parameter in self._module.hf_parameters().items():
                yield name, self._states.master(parameter)
            return
        for group in gather_groups(self._module.hf_parameters(), GATHER_BYTES):
            with gathered(list(group.values())):
                for name, parameter in group.items():
                    yield name, parameter.detach().to(dtype or self._dtype)

    def digest(self) -> str:
        """sha256 over names, shapes and bytes of the fp32 masters, in the order of names; the same on all ranks."""
        entries = {}
        for name, value in self.iter_full_parameters(torch.float32):
            raw = value.contiguous().cpu().flatten().view(torch.uint8).numpy()
            entries[name] = hashlib.sha256(f"{name} {tuple(value.shape)} ".encode() + raw.tobytes()).hexdigest()
        return hashlib.sha256("".join(f"{name} {entries[name]}\n" for name in sorted(entries)).encode()).hexdigest()

    def export(self, folder: str | Path, tokenizer_from: str) -> None:
        """Writes a Hugging Face folder, weights in the engine's dtype, with the tokenizer of the model `tokenizer_from`; rank 0 writes."""
        tensors = self.iter_full_parameters()
        if self._context.rank == 0:
            write_folder(
                run_path(str(folder)), self._module.model, tensors, dtype=self._dtype, tokenizer_from=tokenizer_from
            )
        else:
            for _ in tensors:
                pass
        dist.barrier()

    # Training state

    def state_out(self, folder: str | Path) -> list[WrittenFile]:
        """Writes this rank's share of master weights, Adam's moments and step count; returns the files that this rank wrote."""
        assert self._states is not None, "a frozen model has no training state"
        files = write_states(self._module.hf_parameters(), self._states, run_path(str(folder)))
        dist.barrier()
        return files

    def state_in(self, folder: str | Path) -> None:
        """Takes over the training state in `folder`, from whatever number of ranks and ZeRO stage it was written.

        Raises:
            UserError: if the files are incomplete or of another model.
        """
        assert self._states is not None, "a frozen model has no training state"
        with read_once(run_path(str(folder))) as here:
            read_states(self._module.hf_parameters(), self._states, here)
            dist.barrier()

    # Memory

    def offload(self) -> bool:
        """Moves weights and optimizer state to host memory; True if it did. On CPU there is no other memory, so nothing moves."""
        return self._residence.to_host()

    def onload(self) -> bool:
        """Brings back what `offload` moved; True if anything was."""
        return self._residence.to_device()


def nothing(outputs: Outputs) -> Tensor:
    """A loss of 0 that depends on every output and has a gradient of exactly 0: selected away, since 0 times NaN would be NaN."""
    return torch.stack([torch.where(torch.zeros_like(o, dtype=torch.bool), o, 0.0).sum() for o in outputs]).sum()


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only. The learning rate is set at each step."""
    matrices = [p for p in module.parameters() if len(full_shape(p)) >= 2]
    others = [p for p in module.parameters() if len(full_shape(p)) < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps
    )


def gather_groups(parameters: dict[str, nn.Parameter], max_bytes: int) -> Iterator[dict[str, nn.Parameter]]:
    """Runs of consecutive parameters of at most `max_bytes` together; a larger one stands alone."""
    group: dict[str, nn.Parameter] = {}
    num_bytes = 0
    for name, parameter in parameters.items():
        size = full_shape(parameter).numel() * parameter.element_size()
        if group and num_bytes + size > max_bytes:
            yield group
            group, num_bytes = {}, 0
        group[name] = parameter
        num_bytes += size
    if group:
        yield group
