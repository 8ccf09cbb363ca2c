"""A rank of the critic: values, the experience that is built from everything said of a wave, and the value updates.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from actors.context import RankContext
from actors.digests import digest_of_places
from actors.store import run_path, write_whole
from actors.tasks import (
    AppraisalOrder,
    AppraisalSummary,
    Busy,
    ExperienceOrder,
    ExperienceSummary,
    MinibatchShard,
    RoleReport,
    UpdateReport,
    UpdateShard,
    WaveShard,
    WrittenFile,
)
from actors.trainer import Trainer
from configs.schema.ppo import CriticConfig, PPOConfig
from configs.schema.rewards import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import Experience, ScoreColumn, TokenColumn, Trajectories


class Critic(Trainer):
    """The value model."""

    shard_folder: ClassVar[str] = "critic"

    def __init__(
        self,
        context: RankContext,
        critic: CriticConfig,
        ppo: PPOConfig,
        reward: RewardConfig,
        max_response_tokens: int,
        model: str,
        tokenizer_from: str,
    ) -> None:
        """`model` is where the weights come from, as `critic.init_from` says; `tokenizer_from` is the policy's, to make text for people."""
        super().__init__(context)
        self.config = critic
        self.ppo = ppo
        self.reward = reward
        self.max_response_tokens = max_response_tokens
        self.model = model
        self.tokenizer_from = tokenizer_from

    def start(self) -> RoleReport:
        """Loads the model and its engine (collective)."""
        from actors.data.tokenizer import load_tokenizer
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine
        from actors.models.scalar_head import load_scalar

        started = time.monotonic()
        join_process_group(self.context)  # a sharded model is loaded shard by shard
        module = load_scalar(
            self.model,
            self.config.engine,
            device=self.context.device,
            fresh_head_ok=self.config.init_from != "reward",
            seed=self.context.seed,
        )
        self.engine = Engine(module, engine=self.config.engine, optimizer=self.config.optimizer, context=self.context)
        self.tokenizer = load_tokenizer(self.tokenizer_from)
        return self.report(started)

    def values(self, shard: WaveShard, trajectories: Trajectories) -> Busy:
        """Keeps this rank's trajectories of the wave and the value of the state before each of their tokens and after the last."""
        import torch

        started = time.time()
        mine = trajectories.select(shard.indices)
        self.kept.add_wave(shard.wave, shard.indices, mine)
        outputs = [
            self.engine.forward(self.kept.batch([(shard.wave, i) for i in micro])) for micro in shard.micro_batches
        ]
        self.kept.put("values", shard.wave, self.kept.flat(shard.wave, shard, [values for values, _ in outputs]))
        last = {
            i: value
            for micro, (_, lasts) in zip(shard.micro_batches, outputs, strict=True)
            for i, value in zip(micro, lasts.tolist(), strict=False)
        }
        self.kept.put("last_values", shard.wave, torch.tensor([last[i] for i in shard.indices], dtype=torch.float32))
        return Busy.since(started)

    def build_experience(
        self, order: ExperienceOrder, *columns: TokenColumn | ScoreColumn
    ) -> tuple[TokenColumn, ExperienceSummary]:
        """Rewards, advantages and returns of this rank's trajectories of one wave, written to disk before any update uses them.

        Returns the advantages (for the policy's ranks) and a small summary (for the orchestrator).
        """
        from actors.algorithms.records import TokenColumn
        from actors.data.stored import write_experience

        experience, sources = self._experience(order, columns)
        for name in ("old_logprobs", "reference_logprobs", "advantages", "returns"):
            self.kept.put(name, order.wave, getattr(experience, name))
        indices = self.kept.indices(order.wave)
        file = None
        if indices:  # with more ranks than a wave has trajectories most have none: no file for nothing
            path = run_path(self.context.run_dir) / order.file
            file = write_experience(path, indices, experience, self._texts(experience.trajectories))
        advantages = TokenColumn(
            wave=order.wave,
            indices=tuple(indices),
            cu_lengths=experience.trajectories.cu_lengths,
            data=experience.advantages,
        )
        return advantages, summarise(order.wave, indices, experience, sources, file)

    def _experience(self, order: ExperienceOrder, columns: Sequence[Any]) -> tuple[Experience, list[Tensor]]:
        """The record, and each source's scores [B] before its weight."""
        from actors.algorithms.advantages import bootstrap_for, gae
        from actors.algorithms.records import Experience
        from actors.algorithms.rewards import token_rewards

        ppo, wave = self.ppo, order.wave
        trajectories = self.kept.wave(wave)
        old = self.kept.rows_of(columns[: order.num_old], wave)
        reference = (
            self.kept.rows_of(columns[order.num_old : order.num_old + order.num_reference], wave)
            if order.num_reference
            else old
        )
        sources = self._scores(wave, order.num_scores, columns[order.num_old + order.num_reference :])
        scores = self._answer_scores(order.score_weights, sources, trajectories)
        mask, cu_lengths = trajectories.loss_mask, trajectories.cu_lengths
        in_reward = order.kl_coef if ppo.kl.where == "reward" else 0.0
        rewards = token_rewards(scores, old, reference, mask, cu_lengths, kl_coef=in_reward, kl_kind=ppo.kl.estimator)
        bootstrap = bootstrap_for(trajectories.truncated, self.kept.column("last_values", wave), mode=ppo.truncation)
        values = self.kept.column("values", wave)
        advantages, returns = gae(rewards, values, mask, cu_lengths, bootstrap, gamma=ppo.gamma, lam=ppo.gae_lambda)
        return (
            Experience(
                trajectories=trajectories,
                scores=scores,
                rewards=rewards,
                old_logprobs=old,
                reference_logprobs=reference,
                values=values,
                advantages=advantages.float(),
                returns=returns.float(),
            ),
            sources,
        )

    def _scores(self, wave: int, num_scores: Sequence[int], columns: Sequence[ScoreColumn]) -> list[Tensor]:
        """Each source's scores of this rank's trajectories [B], in their order. `num_scores`: how many of the columns each source has."""
        import torch

        sources, at = [], 0
        for num in num_scores:
            found = {
                i: score
                for column in columns[at : at + num]
                for i, score in zip(column.indices, column.scores.tolist(), strict=True)
            }
            sources.append(torch.tensor([found[i] for i in self.kept.indices(wave)], dtype=torch.float32))
            at += num
        return sources

    def _answer_scores(self, weights: Sequence[float], sources: Sequence[Tensor], trajectories: Trajectories) -> Tensor:
        """Weighted sum, clipped, then penalties: float32 [B]."""
        from actors.algorithms.rewards import answer_penalties, combine_scores

        reward = self.reward
        return combine_scores(sources, weights, clip=reward.clip) + answer_penalties(
            response_lengths(trajectories),
            trajectories.truncated,
            missing_end_penalty=reward.missing_end_penalty,
            length_penalty=reward.length_penalty,
            soft_limit=reward.length_penalty_from,
            hard_limit=self.max_response_tokens,
        )

    def _texts(self, trajectories: Trajectories) -> list[tuple[str, str]]:
        texts = []
        for b in range(len(trajectories.ids)):
            start, end = int(trajectories.cu_lengths[b]), int(trajectories.cu_lengths[b + 1])
            turn = start + trajectories.turn_offsets[b][0]
            tokens = trajectories.tokens
            texts.append(
                (self.tokenizer.decode(tokens[start:turn].tolist()), self.tokenizer.decode(tokens[turn:end].tolist()))
            )
        return texts

    def appraise(
        self, shard: WaveShard, order: AppraisalOrder, trajectories: Trajectories, *columns: Any
    ) -> AppraisalSummary:
        """Sums up this rank's part of a wave of held-out answers, and writes the answers down, one JSON line each."""
        import torch

        mine = trajectories.select(shard.indices)
        self.kept.add_wave(shard.wave, shard.indices, mine)
        kl = None
        if order.num_reference:
            reference = self.kept.rows_of(columns[: order.num_reference], shard.wave)
            difference = torch.where(mine.loss_mask, mine.rollout_logprobs - reference, 0.0).double()
            kl = tuple(float(of_one.sum()) for of_one in difference.split(mine.lengths))
        sources = self._scores(shard.wave, order.num_scores, columns[order.num_reference :])
        self.kept.clear()
        paying = len(order.score_weights)
        scores = self._answer_scores(order.score_weights, sources[:paying], mine)
        judged = sources[paying] if len(sources) > paying else scores
        summary = AppraisalSummary(
            prompt_ids=mine.prompt_ids, scores=tuple(scores.tolist()), judged=tuple(judged.tolist()), kl=kl, file=None
        )
        return replace(summary, file=self._write_answers(order.file, mine, summary)) if shard.indices else summary

    def _write_answers(self, name: str, trajectories: Trajectories, summary: AppraisalSummary) -> WrittenFile:
        """As with trajectories, another attempt never overwrites what this one has written."""
        from actors.data.answers import response_texts

        lines = []
        responses = response_texts(trajectories, range(len(trajectories.ids)), self.tokenizer)
        for b, ((prompt, _), response) in enumerate(zip(self._texts(trajectories), responses, strict=True)):
            row = {
                "prompt_id": summary.prompt_ids[b],
                "prompt": prompt,
                "response": response,
                "score": summary.scores[b],
                "judged": summary.judged[b],
                "kl": summary.kl[b] if summary.kl is not None else None,
                "truncated": bool(trajectories.truncated[b]),
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        data = "".join(lines).encode()
        sha256 = hashlib.sha256(data).hexdigest()
        path = run_path(self.context.run_dir) / name
        path = path.with_stem(f"{path.stem}-{sha256[:12]}")
        write_whole(path, data)
        return WrittenFile(name=path.name, sha256=sha256, num_bytes=len(data))

    def update(self, shard: UpdateShard) -> UpdateReport:
        """All of a PPO step's value updates (collective)."""
        started = time.time()
        metrics, norms = [], []
        for minibatch in shard.minibatches:
            metrics.append(self._accumulate(minibatch))
            norms.append(self.engine.step(minibatch.lr))
        return UpdateReport(minibatches=tuple(metrics), grad_norms=tuple(norms), busy=Busy.since(started))

    def _accumulate(self, minibatch: MinibatchShard) -> dict[str, float]:
        from actors.algorithms.losses import value_loss

        batches = [self.kept.batch(keys) for keys in minibatch.micro_batches]

        def loss_of(index: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
            values, _ = outputs
            keys = minibatch.micro_batches[index]
            old, returns = (self.kept.gather(name, keys).to(values.device) for name in ("values", "returns"))
            loss, metrics = value_loss(
                values,
                old,
                returns,
                batches[index].loss_mask.to(values.device),
                clip=self.ppo.value_clip,
                global_count=minibatch.num_tokens,
            )
            return loss, {**metrics, "value_loss": loss.detach()}

        return self.engine.forward_backward(batches, loss_of)


def response_lengths(trajectories: Trajectories) -> Tensor:
    """Tokens that the policy chose in each trajectory: int64 [B]."""
    import torch

    counts = torch.cat([torch.zeros(1, dtype=torch.int64), trajectories.loss_mask.long().cumsum(0)])
    return counts[trajectories.cu_lengths].diff()


def summarise(
    wave: int, indices: Sequence[int], experience: Experience, sources: Sequence[Tensor], file: WrittenFile | None
) -> ExperienceSummary:
    """The numbers of one rank's experience that the orchestrator merges, in shard order."""
    import torch

    from actors.algorithms.advantages import moments_of

    trajectories = experience.trajectories
    mask = trajectories.loss_mask
    difference = torch.where(mask, experience.old_logprobs - experience.reference_logprobs, 0.0).double()
    gap = torch.where(
        mask,
        (trajectories.rollout_logprobs - experience.old_logprobs).abs() / experience.old_logprobs.abs().clamp(min=1.0),
        0.0,
    )

    def digest(column: Tensor) -> str:
        of_each = column.split(trajectories.lengths)
        return digest_of_places({i: one.numpy().tobytes() for i, one in zip(indices, of_each, strict=True)})

    return ExperienceSummary(
        wave=wave,
        advantage_moments=moments_of(experience.advantages, mask),
        score_moments=moments_of(experience.scores, torch.ones_like(experience.scores, dtype=torch.bool)),
        source_sums=tuple(float(source.double().sum()) for source in sources),
        kl_sum=float(difference.sum()),
        logprob_gap=float(gap.max()) if len(gap) else 0.0,
        reward_digest=digest(experience.rewards),
        advantage_digest=digest(experience.advantages),
        file=file,
    )
