"""A rank of the policy: log-probabilities before the update, the clipped updates, and the weights that go to the engines.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from actors.context import RankContext
from actors.tasks import Busy, MinibatchShard, RoleReport, UpdateReport, UpdateShard, WaveShard
from actors.trainer import Key, Trainer
from configs.schema.engine import TrainerConfig
from configs.schema.ppo import PPOConfig
from configs.schema.rollout import WeightSyncConfig

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from torch import Tensor

    from actors.algorithms.records import PackedBatch, TokenColumn, Trajectories
    from actors.weight_sync.reports import ProbeReport, SentReport
    from actors.weight_sync.sender import ChannelName


class Policy(Trainer):
    """The model that learns."""

    shard_folder: ClassVar[str] = "policy"

    def __init__(
        self,
        context: RankContext,
        policy: TrainerConfig,
        ppo: PPOConfig,
        weight_sync: WeightSyncConfig,
        temperature: float,
    ) -> None:
        super().__init__(context)
        self.config = policy
        self.ppo = ppo
        self.weight_sync = weight_sync
        self.temperature = temperature

    def start(self) -> RoleReport:
        """Loads the model and its engine (collective)."""
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine
        from actors.models.causal_lm import load_policy

        started = time.monotonic()
        assert self.config.model is not None
        join_process_group(self.context)  # a sharded model is loaded shard by shard
        module = load_policy(self.config.model, self.config.engine, device=self.context.device)
        self.engine = Engine(module, engine=self.config.engine, optimizer=self.config.optimizer, context=self.context)
        return self.report(started)

    def logprobs(self, shard: WaveShard, trajectories: Trajectories) -> tuple[TokenColumn, Busy]:
        """Keeps this rank's trajectories of the wave and returns their log-probabilities under the weights before this step's updates."""
        from actors.algorithms.records import TokenColumn

        started = time.time()
        mine = trajectories.select(shard.indices)
        self.kept.add_wave(shard.wave, shard.indices, mine)
        old = self.kept.flat(
            shard.wave, shard, [self._logprobs([(shard.wave, i) for i in micro]) for micro in shard.micro_batches]
        )
        self.kept.put("old_logprobs", shard.wave, old)
        column = TokenColumn(wave=shard.wave, indices=shard.indices, cu_lengths=mine.cu_lengths, data=old)
        return column, Busy.since(started)

    def _logprobs(self, keys: Sequence[Key]) -> Tensor:
        return self.engine.forward(self.kept.batch(keys), temperature=self.temperature, with_entropy=False)[0]

    def update(self, shard: UpdateShard, kl_coef: float, num_advantages: int, *columns: TokenColumn) -> UpdateReport:
        """All of a PPO step's policy updates (collective).

        `columns` are the advantages of this rank's trajectories, from the ranks that built the experience, and then, where KL is in the
        loss, their reference log-probabilities. After `restore_wave` there are none: the files held them.
        """
        from actors.algorithms.advantages import whiten

        started = time.time()
        waves = sorted({wave for batch in shard.minibatches for micro in batch.micro_batches for wave, _ in micro})
        self._attach("advantages", columns[:num_advantages])
        self._attach("reference_logprobs", columns[num_advantages:])
        for wave in waves:
            trajectories = self.kept.wave(wave)
            advantages = self.kept.column("advantages", wave)
            if shard.advantage_moments is not None:
                advantages = whiten(advantages, trajectories.loss_mask, moments=shard.advantage_moments)
            self.kept.put("whitened", wave, advantages)
            self.kept.put("rollout_logprobs", wave, trajectories.rollout_logprobs)
        metrics, norms = [], []
        for minibatch in shard.minibatches:
            metrics.append(self._accumulate(minibatch, kl_coef))
            norms.append(self.engine.step(minibatch.lr))
            if self._too_far(metrics[-1]):
                break
        return UpdateReport(minibatches=tuple(metrics), grad_norms=tuple(norms), busy=Busy.since(started))

    def _too_far(self, metrics: dict[str, float]) -> bool:
        """Whether the step's remaining updates are left out: the same answer on every rank (collective)."""
        if self.ppo.target_kl is None:
            return False
        # a rank that had only dummies has nothing to add
        return self.engine.sum_over_ranks(metrics.get("approx_kl", 0.0)) > self.ppo.target_kl

    def _attach(self, name: str, columns: Sequence[TokenColumn]) -> None:
        for wave in sorted({column.wave for column in columns}):
            self.kept.put(name, wave, self.kept.rows_of([column for column in columns if column.wave == wave], wave))

    def _accumulate(self, minibatch: MinibatchShard, kl_coef: float) -> dict[str, float]:
        batches = [self.kept.batch(keys) for keys in minibatch.micro_batches]

        def loss_of(index: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
            return self._loss(batches[index], minibatch.micro_batches[index], minibatch, kl_coef, outputs)

        return self.engine.forward_backward(
            batches, loss_of, temperature=self.temperature, with_entropy=True, entropy_grad=self.ppo.entropy_coef != 0
        )

    def _loss(
        self,
        batch: PackedBatch,
        keys: Sequence[Key],
        minibatch: MinibatchShard,
        kl_coef: float,
        outputs: tuple[Tensor, ...],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One micro-batch's contribution to the minibatch's loss, and metrics that add up likewise."""
        from actors.algorithms.losses import entropy_bonus, kl_penalty_loss, policy_loss

        ppo = self.ppo
        new, entropy = outputs
        mask, cu_lengths = batch.loss_mask.to(new.device), batch.cu_lengths.to(new.device)
        of_tokens = ppo.aggregation == "token_mean"
        count, aggregation = minibatch.num_tokens if of_tokens else minibatch.num_trajectories, ppo.aggregation
        old, rollout, advantages = (
            self.kept.gather(name, keys).to(new.device) for name in ("old_logprobs", "rollout_logprobs", "whitened")
        )
        loss, metrics = policy_loss(
            new,
            old,
            rollout,
            advantages,
            mask,
            cu_lengths,
            clip_low=ppo.clip_low,
            clip_high=ppo.clip_high,
            dual_clip=ppo.dual_clip,
            importance_cap=ppo.importance_cap,
            aggregation=aggregation,
            global_count=count,
        )
        metrics["policy_loss"] = loss.detach()
        bonus = entropy_bonus(entropy, mask, cu_lengths, aggregation=aggregation, global_count=count)
        metrics["entropy"] = bonus.detach()
        if ppo.entropy_coef != 0:
            loss = loss - ppo.entropy_coef * bonus
        if ppo.kl.where == "loss" and kl_coef > 0:
            reference = self.kept.gather("reference_logprobs", keys).to(new.device)
            penalty = kl_penalty_loss(
                new, reference, mask, cu_lengths, kind=ppo.kl.estimator, aggregation=aggregation, global_count=count
            )
            metrics["kl_loss"] = penalty.detach()
            loss = loss + kl_coef * penalty
        metrics["loss"] = loss.detach()
        return loss, metrics

    # -- weights to the engines

    def connect_engines(self, engines: list[ActorHandle], channel: ChannelName, workers_per_engine: int) -> None:
        """Meets the rollout engines (collective)."""
        from actors.weight_sync.sender import WeightSender

        self.sender = WeightSender(self.weight_sync, self.context)
        self.sender.connect(engines, channel, workers_per_engine=workers_per_engine)

    def send_weights(self, policy_version: int) -> SentReport | None:
        """Sends the full parameters to every engine and has each prove what it got (collective; rank 0 returns the report)."""
        return self.sender.send(self.engine.iter_full_parameters(), policy_version)

    def perturb(self) -> None:
        """For the drill: changes every parameter a little, keeping the exact weights aside (collective)."""
        self.engine.perturb(seed=self.context.seed)

    def restore(self) -> None:
        """Puts the exact weights back (collective)."""
        self.engine.restore()

    def probe(self, *answers: Trajectories) -> ProbeReport:
        """Compares every engine's log-probabilities of its answers with the policy's own (collective: each rank computes all of it)."""
        from actors.algorithms.records import PackedBatch
        from actors.weight_sync.proof import probe_gap
        from actors.weight_sync.reports import merge_probes

        reports = []
        # one by one: together they might not fit into a micro-batch
        for one in (trajectories.select([i]) for trajectories in answers for i in range(len(trajectories.ids))):
            batch = PackedBatch.from_flat(one.tokens, one.cu_lengths, one.loss_mask)
            own = self.engine.forward(batch, temperature=self.temperature, with_entropy=False)[0].cpu()
            reports.append(probe_gap(one, own))
        return merge_probes(reports)
