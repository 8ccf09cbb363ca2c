"""A rank of the frozen reference. Imports of torch and of everything above it stand inside methods: see `actors.role`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from actors.context import RankContext
from actors.tasks import Busy, RoleReport, WaveShard
from actors.trainer import Trainer
from configs.schema.engine import FrozenConfig

if TYPE_CHECKING:
    from actors.algorithms.records import TokenColumn, Trajectories


class Reference(Trainer):
    """The frozen model that the policy stays near. It keeps nothing: a wave is forgotten when it is answered."""

    def __init__(self, context: RankContext, reference: FrozenConfig, model: str, temperature: float) -> None:
        super().__init__(context)
        self.config = reference
        self.model = model
        self.temperature = temperature

    def start(self) -> RoleReport:
        """Loads the model (collective)."""
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine
        from actors.models.causal_lm import load_policy

        started = time.monotonic()
        join_process_group(self.context)  # a sharded model is loaded shard by shard
        module = load_policy(self.model, self.config.engine, device=self.context.device)
        self.engine = Engine(module, engine=self.config.engine, optimizer=None, context=self.context)
        return self.report(started)

    def logprobs(self, shard: WaveShard, trajectories: Trajectories) -> tuple[TokenColumn, Busy]:
        """Log-probabilities of this rank's trajectories of the wave, at the policy's temperature."""
        from actors.algorithms.records import TokenColumn

        started = time.time()
        mine = trajectories.select(shard.indices)
        self.kept.add_wave(shard.wave, shard.indices, mine)
        outputs = [
            self.engine.forward(
                self.kept.batch([(shard.wave, i) for i in micro]), temperature=self.temperature, with_entropy=False
            )[0]
            for micro in shard.micro_batches
        ]
        data = self.kept.flat(shard.wave, shard, outputs)
        self.kept.clear()
        return TokenColumn(wave=shard.wave, indices=shard.indices, cu_lengths=mine.cu_lengths, data=data), Busy.since(
            started
        )
