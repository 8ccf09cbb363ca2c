"""One PPO step, as the diagram has it. The orchestrator holds references and small records; it never touches a token.

    prompts ─► rollout.generate ─► trajectories ─┬─► policy.logprobs (old) ─┐
                (vLLM engines)     (by reference)├─► reference.logprobs     ─┤   experience on
                                                 ├─► critic.values          ─┼─► the critic's ─┬─► policy.update ─► weight sync ─┐
                                                 └─► reward.score           ─┘   ranks, on disk└─► critic.update ────────────────┴─► ledger

| who waits | for whom | and is woken by |
| --- | --- | --- |
| scoring of wave w | generation of w and of the waves before it (ranks are balanced in order) | the engine's summary |
| experience of wave w | its scores, values and log-probabilities, and those of the waves before it | their last report |
| updates | the whole step's experience on disk, and the moments of all its advantages | the last summary |
| weight sync | the policy's last update; the critic's goes on meanwhile | its report |
| ledger | the sync's proof and the critic's last update | their reports |

Where engines share GPUs with other roles, phases exclude each other: all waves are generated first, then the engines sleep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from actors.algorithms.moments import Moments, merge
from actors.algorithms.packing import pack
from actors.algorithms.schedule import learning_rate
from actors.critic import Critic
from actors.data.order import prompts_of_step
from actors.group import Call, Group
from actors.policy import Policy
from actors.reference import Reference
from actors.reward import Reward
from actors.reward_worker import RewardWorker
from actors.rollout import Rollout
from actors.tasks import (
    ExperienceOrder,
    GenerationUnit,
    MinibatchShard,
    UpdateReport,
    UpdateShard,
    WaveShard,
    WaveSummary,
)
from actors.trainer import Trainer
from configs.schema.engine import EngineConfig, OptimizerConfig
from configs.schema.ppo import PPOStage
from orchestrator.batching import Balancer, lockstep, minibatches_of
from orchestrator.launch import Launched
from orchestrator.ledger import LedgerEntry
from orchestrator.plan_records import PPOPlan
from orchestrator.ppo_records import Collected, ScoredWave, Timeline

TRAINED = ("policy", "critic")


class PPOStep:
    """The parts of a step, over running groups."""

    def __init__(self, config: PPOStage, plan: PPOPlan, launched: Launched, num_prompts: int) -> None:
        self.config = config
        self.plan = plan
        self.groups: dict[str, Group] = launched.groups
        self.waiter = launched.waiter
        self.num_prompts = num_prompts

    # -- prompts ─► rollout.generate ─► trajectories

    def generate(self, step: int, policy_version: int) -> list[Call]:
        """Starts every wave's generation: wave w on engine w % engines, always the same."""
        prompts = prompts_of_step(
            step - 1,  # steps count from 1, the stream of prompts from 0
            prompts_per_step=self.plan.prompts_per_step,
            num_prompts=self.num_prompts,
            seed=self.config.run.seed,
            shuffle=self.config.data.shuffle,
        )
        engines = self.groups["rollout"]
        calls = []
        for wave, slots in enumerate(self.plan.waves):
            unit = GenerationUnit(
                step=step,
                wave=wave,
                prompt_indices=tuple(prompts[slot] for slot in slots),
                prompt_slots=slots,
                responses_per_prompt=self.config.rollout.responses_per_prompt,
                seed=self.config.run.seed,
                policy_version=policy_version,
            )
            calls.append(engines.call_rank(wave % len(engines), Rollout.generate, unit, two_results=True))
        return calls

    # -- trajectories ─► logprobs, values, scores ─► experience

    def collect(self, step: int, generation: Sequence[Call], kl_coef: float, timeline: Timeline) -> Collected:
        """Scores each wave as it comes and builds its experience; returns when all of it is on disk."""
        balancers = self._balancers()
        minibatches = self._first_minibatches(step)
        if self.plan.rollout_shares_gpu:
            with timeline.phase("generate"):
                self.waiter.wait(generation)
            self.trainers_turn()
        scored: list[ScoredWave] = []
        for wave, call in enumerate(generation):
            with timeline.phase("generate"):
                summary: WaveSummary = self.waiter.wait([call])[0]
            timeline.busy.append(("rollout", summary.busy))
            shards = self.shards(step, summary, minibatches[wave], balancers)
            scored.append(self._score(call, summary, shards))
        built = []
        with timeline.phase("score"):
            for each in scored:
                for role, calls in (("policy", each.old), ("reference", each.reference), ("critic", each.values)):
                    timeline.busy.extend((role, busy) for busy in self.waiter.wait(calls))
                for calls in each.scores:
                    timeline.busy.extend(("reward", busy) for busy in self.waiter.wait(calls))
                # asked for while later waves are scored: thousands of calls after the last score would keep all ranks waiting
                built.append(self._build_experience(step, each, kl_coef))
        with timeline.phase("experience"):
            summaries = tuple(tuple(self.waiter.wait(calls)) for calls in built)
        return Collected(
            waves=tuple(wave.summary for wave in scored),
            summaries=summaries,
            advantages=tuple(tuple(calls) for calls in built),
            reference=tuple(tuple(wave.reference) for wave in scored),
            moments=merge(summary.advantage_moments for wave in summaries for summary in wave),
        )

    def _score(self, call: Call, summary: WaveSummary, shards: dict[str, list[WaveShard]]) -> ScoredWave:
        trajectories = call.big
        args = {role: [(shard, trajectories) for shard in of_role] for role, of_role in shards.items()}
        groups = self.groups
        scorers, _ = self.scorers()
        return ScoredWave(
            summary=summary,
            shards=shards,
            old=groups["policy"].call_each(Policy.logprobs, args["policy"], two_results=True),
            reference=(
                groups["reference"].call_each(Reference.logprobs, args["reference"], two_results=True)
                if self.plan.needs_reference
                else []
            ),
            values=groups["critic"].call_each(Critic.values, args["critic"]),
            scores=[self.score(role, args[role]) for role in scorers],
        )

    def scorers(self) -> tuple[list[str], tuple[float, ...]]:
        """The roles that pay, and the factor of each."""
        config = self.config.reward
        model = {"reward": config.model.weight} if config.model is not None else {}
        paying = model | {
            f"reward_function_{number}": function.weight for number, function in enumerate(config.functions)
        }
        return list(paying), tuple(paying.values())

    def score(self, role: str, args: Sequence[tuple[Any, ...]]) -> list[Call]:
        """Has a role that pays score a wave: `args` of each rank, its shard and the trajectories."""
        method = Reward.score if role == "reward" else RewardWorker.score
        return self.groups[role].call_each(method, args, two_results=True)

    def _build_experience(self, step: int, wave: ScoredWave, kl_coef: float) -> list[Call]:
        """Every rank of the critic gets the columns that speak of its own trajectories, and no others."""
        scorers, weights = self.scorers()
        holder = {role: holders(shards) for role, shards in wave.shards.items()}
        args = []
        for rank, shard in enumerate(wave.shards["critic"]):
            old = speaking_of(shard, holder["policy"], wave.old)
            reference = speaking_of(shard, holder["reference"], wave.reference) if wave.reference else []
            scores = [speaking_of(shard, holder[role], calls) for role, calls in zip(scorers, wave.scores, strict=True)]
            order = ExperienceOrder(
                step=step,
                wave=shard.wave,
                kl_coef=kl_coef,
                score_weights=weights,
                num_old=len(old),
                num_reference=len(reference),
                num_scores=tuple(len(columns) for columns in scores),
                file=f"trajectories/{step:08d}/wave-{shard.wave:04d}-rank-{rank:04d}.parquet",
            )
            args.append((order, *old, *reference, *(column for columns in scores for column in columns)))
        return self.groups["critic"].call_each(Critic.build_experience, args, two_results=True)

    # -- who gets which trajectory

    def _balancers(self) -> dict[str, Balancer]:
        return {role: Balancer(len(group)) for role, group in self.groups.items() if role != "rollout"}

    def _first_minibatches(self, step: int) -> list[list[int]]:
        """For each wave, the first epoch's minibatch of each of its trajectories."""
        of_step = self._minibatches(step, epoch=0)
        responses, minibatches, at = self.config.rollout.responses_per_prompt, [], 0
        for slots in self.plan.waves:
            minibatches.append(of_step[at : at + len(slots) * responses])
            at += len(slots) * responses
        return minibatches

    def _minibatches(self, step: int, *, epoch: int) -> list[int]:
        ppo = self.config.ppo
        return minibatches_of(
            self.plan.trajectories_per_step, ppo.minibatches, seed=self.config.run.seed, step=step, epoch=epoch
        )

    def _budgets(self) -> dict[str, int]:
        """Token budget of each role's micro-batches; reward functions read text, not micro-batches."""
        config = self.config
        engines: dict[str, EngineConfig] = {
            "policy": config.policy.engine,
            "critic": config.critic.engine,
            "reference": config.reference.engine,
        }
        if config.reward.model is not None:
            engines["reward"] = config.reward.model.engine
        return {role: engine.micro_batch_tokens for role, engine in engines.items()}

    def shards(
        self, step: int, summary: WaveSummary, minibatches: Sequence[int], balancers: dict[str, Balancer]
    ) -> dict[str, list[WaveShard]]:
        """Every role's ranks for a wave's trajectories, with micro-batches in lockstep."""
        budgets = self._budgets()
        result = {}
        for role, balancer in balancers.items():
            ranks = balancer.assign(summary.lengths, minibatches)
            packed = [
                pack({i: summary.lengths[i] for i in indices}, budgets[role]) if role in budgets else [indices]
                for indices in ranks
            ]
            result[role] = [
                WaveShard(step=step, wave=summary.wave, indices=indices, micro_batches=micro_batches)
                for indices, micro_batches in zip(ranks, lockstep(packed), strict=True)
            ]
        return result

    # -- experience ─► policy.update, critic.update

    def start_updates(self, step: int, collected: Collected, kl_coef: float) -> tuple[list[Call], list[Call]]:
        """Starts both models' updates, at the same time. The policy has none while the critic warms up."""
        balancers = self._balancers()
        first = self._first_minibatches(step)
        shards = [self.shards(step, wave, first[w], balancers) for w, wave in enumerate(collected.waves)]
        critic = [(shard,) for shard in self._update_shards(step, "critic", collected.waves, shards, collected.moments)]
        critic_calls = self.groups["critic"].call_each(Critic.update, critic)
        if step <= self.config.critic.warmup_steps:
            return [], critic_calls
        with_reference = self.config.ppo.kl.where == "loss" and self.plan.needs_reference
        critics = [holders(of_wave["critic"]) for of_wave in shards]
        references = [holders(of_wave["reference"]) for of_wave in shards] if with_reference else []
        policy = []
        for rank, update in enumerate(self._update_shards(step, "policy", collected.waves, shards, collected.moments)):
            advantages, reference = [], []
            # after a replay from disk there are no columns to send: the ranks have read them
            for w, calls in enumerate(collected.advantages):
                mine = shards[w]["policy"][rank]
                advantages += speaking_of(mine, critics[w], calls)
                if with_reference:
                    reference += speaking_of(mine, references[w], collected.reference[w])
            policy.append((update, kl_coef, len(advantages), *advantages, *reference))
        return self.groups["policy"].call_each(Policy.update, policy), critic_calls

    def _update_shards(
        self,
        step: int,
        role: str,
        waves: Sequence[WaveSummary],
        shards: Sequence[dict[str, list[WaveShard]]],
        moments: Moments,
    ) -> list[UpdateShard]:
        """What each rank of a role does: minibatches by the run's seed, micro-batches by lengths, the same number on every rank."""
        ppo, budget = self.config.ppo, self._budgets()[role]
        rank_of = {
            (w.wave, i): rank
            for w, of in zip(waves, shards, strict=True)
            for rank, s in enumerate(of[role])
            for i in s.indices
        }
        lengths = {(w.wave, i): length for w in waves for i, length in enumerate(w.lengths)}
        num_tokens = {(w.wave, i): num for w in waves for i, num in enumerate(w.num_loss_tokens)}
        num_ranks = len(self.groups[role])
        ranks: list[list[MinibatchShard]] = [[] for _ in range(num_ranks)]
        for epoch in range(ppo.epochs):
            minibatch_of = dict(zip(lengths, self._minibatches(step, epoch=epoch), strict=True))
            for minibatch in range(ppo.minibatches):
                keys = [key for key in lengths if minibatch_of[key] == minibatch]
                of_rank: list[dict[tuple[int, int], int]] = [{} for _ in range(num_ranks)]
                for key in keys:
                    of_rank[rank_of[key]][key] = lengths[key]
                packed = [pack(mine, budget) for mine in of_rank]
                lr = self._learning_rate(step, epoch * ppo.minibatches + minibatch, role)
                tokens = sum(num_tokens[key] for key in keys)
                for rank, micro_batches in enumerate(lockstep(packed)):
                    ranks[rank].append(
                        MinibatchShard(
                            micro_batches=micro_batches,
                            num_tokens=tokens,
                            num_trajectories=len(keys),
                            lr=lr,
                        )
                    )
        whitening = moments if ppo.whiten_advantages else None
        return [
            UpdateShard(step=step, minibatches=tuple(minibatches), advantage_moments=whitening) for minibatches in ranks
        ]

    def _learning_rate(self, step: int, update: int, role: str) -> float:
        """Of the given update (from 0) of a PPO step (from 1)."""
        optimizer: OptimizerConfig = self.config.policy.optimizer if role == "policy" else self.config.critic.optimizer
        skipped = self.config.critic.warmup_steps if role == "policy" else 0
        return learning_rate(
            (step - 1 - skipped) * self.plan.updates_per_step + update,
            peak=optimizer.lr,
            warmup_steps=optimizer.warmup_steps,
            total_steps=self.plan.policy_updates if role == "policy" else self.plan.total_updates,
            decay=optimizer.decay,
            final_frac=optimizer.final_lr_frac,
        )

    def finish_updates(self, calls: Sequence[Call], role: str, timeline: Timeline) -> list[UpdateReport]:
        """Waits for a role's updates."""
        reports: list[UpdateReport] = self.waiter.wait(calls)
        timeline.busy.extend((role, report.busy) for report in reports)
        return reports

    # -- a committed step again, from disk

    def restore(self, entry: LedgerEntry) -> Collected:
        """Puts a committed step's trajectories back on their ranks; its updates can then be replayed."""
        balancers = self._balancers()
        first = self._first_minibatches(entry.step)
        for w, wave in enumerate(entry.waves):
            shards = self.shards(entry.step, wave, first[w], balancers)
            for role in TRAINED:
                args = [(shard, entry.trajectory_files[w]) for shard in shards[role]]
                self.waiter.wait(self.groups[role].call_each(Trainer.restore_wave, args))
        return Collected(waves=entry.waves, summaries=(), advantages=(), reference=(), moments=entry.advantage_moments)

    # -- turns on shared GPUs: from one step to the next they are the engines'

    def trainers_turn(self) -> None:
        """After generation: engines sleep, policy and critic come back."""
        if self.plan.rollout_shares_gpu:
            self.waiter.wait(self.groups["rollout"].call(Rollout.sleep))
            self.waiter.wait([call for role in TRAINED for call in self.groups[role].call(Trainer.onload)])

    def sync_turn(self) -> None:
        """Before a weight sync: engines need their weights' memory, the critic no longer needs its own."""
        if self.plan.rollout_shares_gpu:
            self.waiter.wait(self.groups["critic"].call(Trainer.offload))
            self.waiter.wait(self.groups["rollout"].call(Rollout.wake))

    def engines_turn(self) -> None:
        """After a weight sync."""
        if self.plan.rollout_shares_gpu:
            self.waiter.wait(self.groups["policy"].call(Trainer.offload))

    @contextmanager
    def trainers_present(self) -> Iterator[None]:
        """For what reads master weights between steps: digests, checkpoints, the export."""
        self.trainers_turn()
        yield
        self.sync_turn()
        self.engines_turn()

    @contextmanager
    def engines_asleep(self) -> Iterator[None]:
        """For the frozen models between steps, where they share GPUs with the engines."""
        engines, shared = self.groups["rollout"], self.plan.rollout_shares_gpu
        if shared:
            self.waiter.wait(engines.call(Rollout.sleep))
        yield
        if shared:
            self.waiter.wait(engines.call(Rollout.wake))

    def end(self) -> None:
        """Every rank forgets the step's trajectories."""
        self.waiter.wait([call for role in TRAINED for call in self.groups[role].call(Trainer.end_step)])


def holders(shards: Sequence[WaveShard]) -> dict[int, int]:
    """Of a role, which rank holds each trajectory of a wave."""
    return {index: rank for rank, shard in enumerate(shards) for index in shard.indices}


def speaking_of(shard: WaveShard, holder: Mapping[int, int], calls: Sequence[Call]) -> list[Any]:
    """Of another role's results for the wave, those of the ranks that hold any of this shard's trajectories. By reference."""
    return [calls[rank].big for rank in sorted({holder[index] for index in shard.indices})]
