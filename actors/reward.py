"""A rank of the frozen reward model. Imports of torch and of everything above it stand inside methods: see `actors.role`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from actors.context import RankContext
from actors.errors import RewardFailed
from actors.tasks import Busy, RoleReport, WaveShard
from actors.trainer import Trainer
from configs.schema.rewards import RewardModelConfig

if TYPE_CHECKING:
    from actors.algorithms.records import ScoreColumn, Trajectories


class Reward(Trainer):
    """Scores whole answers: the head read at the last token."""

    def __init__(self, context: RankContext, reward: RewardModelConfig) -> None:
        super().__init__(context)
        self.config = reward

    def start(self) -> RoleReport:
        """Loads the model (collective) and the statistics of its scores."""
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine
        from actors.models.scalar_head import load_scalar
        from actors.reward_trainer import load_reward_stats

        started = time.monotonic()
        assert self.config.model is not None
        join_process_group(self.context)  # a sharded model is loaded shard by shard
        module = load_scalar(
            self.config.model,
            self.config.engine,
            device=self.context.device,
            fresh_head_ok=False,
            seed=self.context.seed,
        )
        self.engine = Engine(module, engine=self.config.engine, optimizer=None, context=self.context)
        stats = load_reward_stats(self.config.model) if self.config.normalise else None
        self.mean, self.std = (stats.mean, stats.std) if stats is not None else (0.0, 1.0)
        return self.report(started, mean=f"{self.mean:.6g}", std=f"{self.std:.6g}")

    def score(self, shard: WaveShard, trajectories: Trajectories) -> tuple[ScoreColumn, Busy]:
        """Scores of this rank's trajectories of the wave, normalised by the statistics stored with the model.

        Raises:
            RewardFailed: for a score that is not finite.
        """
        import torch

        from actors.algorithms.records import ScoreColumn
        from actors.algorithms.rewards import normalise_scores

        started = time.time()
        mine = trajectories.select(shard.indices)
        self.kept.add_wave(shard.wave, shard.indices, mine)
        found: dict[int, float] = {}
        for micro in shard.micro_batches:
            _, last = self.engine.forward(self.kept.batch([(shard.wave, i) for i in micro]))
            found.update(zip(micro, last.tolist(), strict=False))
        self.kept.clear()
        scores = torch.tensor([found[i] for i in shard.indices], dtype=torch.float32)
        for prompt_id, score in zip(mine.prompt_ids, scores.tolist(), strict=True):
            if not abs(score) < float("inf"):
                raise RewardFailed(prompt_id, f"the reward model gave {score}")
        scores = normalise_scores(scores, mean=self.mean, std=self.std)
        return ScoreColumn(wave=shard.wave, indices=shard.indices, scores=scores), Busy.since(started)
