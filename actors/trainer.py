"""What policy and critic ranks share: the waves a rank keeps for the step, and micro-batches cut from them.

Sticky: a trajectory that came to this rank when its wave was scored stays here until the step ends; the update fetches nothing again.
Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from actors.context import RankContext
from actors.role import Role
from actors.store import run_path
from actors.tasks import RoleReport, WaveShard, WrittenFile

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import Experience, PackedBatch, TokenColumn, Trajectories
    from actors.engine.engine import Engine

Key = tuple[int, int]
"""(wave, index in the wave)"""


class Kept:
    """Trajectories that stay with a rank for the step, and arrays [T] that were said of them."""

    def __init__(self) -> None:
        self._waves: dict[int, Trajectories] = {}
        self._places: dict[Key, int] = {}
        self._columns: dict[tuple[str, int], Tensor] = {}

    def add_wave(self, wave: int, indices: Sequence[int], trajectories: Trajectories) -> None:
        """Keeps `trajectories`, which are number `indices` of the wave."""
        assert wave not in self._waves, f"wave {wave} came twice"
        self._waves[wave] = trajectories
        self._places.update({(wave, index): place for place, index in enumerate(indices)})

    def put(self, name: str, wave: int, data: Tensor) -> None:
        """Attaches an array [T] (or [B] of trajectories) to a wave."""
        self._columns[name, wave] = data

    def wave(self, wave: int) -> Trajectories:
        return self._waves[wave]

    def column(self, name: str, wave: int) -> Tensor:
        return self._columns[name, wave]

    def clear(self) -> None:
        self._waves.clear()
        self._places.clear()
        self._columns.clear()

    def batch(self, keys: Sequence[Key]) -> PackedBatch:
        """The trajectories `keys` as one packed micro-batch; none give the dummy."""
        import torch

        from actors.algorithms.records import PackedBatch, cumulative

        pieces = [(self._waves[wave], *self._bounds((wave, index))) for wave, index in keys]
        if not pieces:
            empty = torch.empty(0, dtype=torch.int64)
            return PackedBatch.from_flat(empty, cumulative([]), empty.bool())
        tokens = torch.cat([wave.tokens[start:end] for wave, start, end in pieces])
        mask = torch.cat([wave.loss_mask[start:end] for wave, start, end in pieces])
        return PackedBatch.from_flat(tokens, cumulative([end - start for _, start, end in pieces]), mask)

    def gather(self, name: str, keys: Sequence[Key]) -> Tensor:
        """An attached array [T] in the order of `batch(keys)`; one zero for the dummy."""
        import torch

        pieces = [self._columns[name, key[0]][slice(*self._bounds(key))] for key in keys]
        return torch.cat(pieces) if pieces else torch.zeros(1)

    def rows_of(self, columns: Sequence[TokenColumn], wave: int) -> Tensor:
        """From several ranks' columns of a wave, the numbers of the trajectories kept here, in their order: float32 [T]."""
        import torch

        found = {}
        for column in columns:
            assert column.wave == wave, (column.wave, wave)
            bounds = column.cu_lengths.tolist()
            found.update(
                {index: column.data[bounds[place] : bounds[place + 1]] for place, index in enumerate(column.indices)}
            )
        pieces = [found[index] for index in self.indices(wave)]
        return torch.cat(pieces) if pieces else torch.empty(0)

    def indices(self, wave: int) -> list[int]:
        """Which trajectories of the wave are kept here, in their order."""
        return [index for (of, index) in self._places if of == wave]

    def _bounds(self, key: Key) -> tuple[int, int]:
        place = self._places[key]
        cu_lengths = self._waves[key[0]].cu_lengths
        return int(cu_lengths[place]), int(cu_lengths[place + 1])

    def flat(self, wave: int, shard: WaveShard, outputs: Sequence[Tensor]) -> Tensor:
        """Outputs [T] of the shard's micro-batches, back in the order of the wave's kept trajectories: float32 [T] on CPU."""
        import torch

        result = torch.zeros(len(self._waves[wave].tokens))
        for indices, output in zip(shard.micro_batches, outputs, strict=True):
            at = 0
            for index in indices:
                start, end = self._bounds((wave, index))
                result[start:end] = output[at : at + end - start].cpu()
                at += end - start
        return result


class Trainer(Role):
    """Base of policy and critic: an engine, and the step's trajectories."""

    shard_folder: ClassVar[str]
    """Name of the role's folder within a checkpoint."""
    engine: Engine
    kept: Kept

    def __init__(self, context: RankContext) -> None:
        super().__init__(context)
        self.kept = Kept()

    def report(self, started: float, **facts: str) -> RoleReport:
        return RoleReport(
            role=self.context.role,
            rank=self.context.rank,
            num_parameters=self.engine.num_parameters,
            peak_memory_bytes=self.peak_memory_bytes(),
            seconds=time.monotonic() - started,
            facts=facts,
        )

    def end_step(self) -> None:
        """Forgets the step's trajectories."""
        self.kept.clear()

    def save(self, folder: str) -> list[WrittenFile]:
        """Writes this rank's share of master weights and optimizer state under the checkpoint's folder (collective)."""
        files = self.engine.state_out(run_path(folder) / self.shard_folder)
        return [WrittenFile(name=file.name, sha256=file.sha256, num_bytes=file.num_bytes) for file in files]

    def load(self, folder: str) -> None:
        """Takes up the state that `save` wrote, with whatever ranks and ZeRO stage it was written (collective)."""
        self.engine.state_in(run_path(folder) / self.shard_folder)

    def export(self, folder: str, tokenizer_from: str) -> None:
        """Writes a Hugging Face folder (collective; rank 0 writes)."""
        self.engine.export(run_path(folder), tokenizer_from=tokenizer_from)

    def digest(self) -> str:
        """sha256 of the master weights, bit for bit (collective)."""
        return self.engine.digest()

    def offload(self) -> bool:
        return self.engine.offload()

    def onload(self) -> bool:
        return self.engine.onload()

    def restore_wave(self, shard: WaveShard, files: Sequence[WrittenFile]) -> None:
        """Takes this rank's trajectories of a committed step, and what was said of them, from disk instead of from engines and scores.

        `files` are the wave's, named under the run directory. Raises PreceptorError for one that is missing or damaged.
        """
        from actors.data.stored import check_files, read_experience

        paths = check_files(run_path(self.context.run_dir), files)
        experience = read_experience(paths, shard.indices)
        self.keep_experience(shard, experience)

    def keep_experience(self, shard: WaveShard, experience: Experience) -> None:
        self.kept.add_wave(shard.wave, shard.indices, experience.trajectories)
        for name in ("old_logprobs", "reference_logprobs", "values", "advantages", "returns"):
            self.kept.put(name, shard.wave, getattr(experience, name))
