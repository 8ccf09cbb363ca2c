"""Stage `reward`: optimizer step after optimizer step on ranked groups, evaluated on held-out ones, exported with the evaluation.

groups ─► ranks (balanced by tokens) ─► reward.update ─► ledger ─► checkpoint ─► ... ─► reward.evaluate ─► export
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.algorithms.schedule import learning_rate
from actors.errors import PreceptorError
from actors.group import Group, Waiter
from actors.reward_trainer import RankingReport, RankingShard, RewardEvaluation, RewardTrainer
from actors.tasks import UpdateReport
from configs.schema.reward import RewardStage
from orchestrator.batching import Balancer, lockstep, pack, permutation
from orchestrator.checkpoints import Checkpoints
from orchestrator.launch import Launched
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.metrics import peak_memory, whole_minibatches
from orchestrator.progress import Progress
from orchestrator.run_dir import EXPORT_FOLDER


class RewardLoop:
    """All steps of a reward stage."""

    def __init__(self, config: RewardStage, launched: Launched, run_dir: Path, progress: Progress) -> None:
        self.config = config
        self.group = launched.groups["reward"]
        self.waiter = launched.waiter
        self.run_dir = run_dir
        self.progress = progress
        report: RankingReport = self.waiter.wait([self.group.call_rank(0, RewardTrainer.rankings)])[0]
        self.lengths = report.lengths
        self.num_train = report.num_train
        self.ledger = Ledger(run_dir, SupervisedEntry)
        self.checkpoints = Checkpoints(run_dir, keep=config.run.keep_checkpoints)
        self.steps_per_epoch = -(-report.num_train // config.training.groups_per_step)
        self.total_steps = config.training.epochs * self.steps_per_epoch
        self.step = 0
        self.stepping = False
        self.stop_requested = False

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps

    def run(self) -> None:
        """From wherever the run directory stands to the export."""
        committed = self.ledger.last_step()
        self._take_up(committed)
        self.progress.begin(self.total_steps, done=self.step)
        self.stepping = True
        while not self.finished and not self.stop_requested:
            self.waiter.step = self.step + 1
            entry = self._step(self.step + 1)
            self._commit(entry, again=entry.step <= committed)
            self.progress.step(entry.step, entry.metrics)
        self._checkpoint()
        if self.finished:
            with self.progress.phase("evaluation and export"):
                evaluation = evaluate(self.group, self.waiter, self.config, self.lengths, self.num_train)
                export_evaluated(self.group, self.waiter, str(self.run_dir / EXPORT_FOLDER), evaluation)
            self.progress.note(described(evaluation))

    def _take_up(self, committed: int) -> None:
        """Weights of the newest whole checkpoint. Steps committed after it are computed again: they depend on nothing but the data."""
        self.step = self.checkpoints.newest(committed, self.progress.note)
        if self.step:
            with self.progress.phase(f"loading the checkpoint of step {self.step}"):
                self.waiter.wait(self.group.call(RewardTrainer.load, str(self.checkpoints.folder(self.step))))

    def _step(self, step: int) -> SupervisedEntry:
        reports: list[UpdateReport] = self.waiter.wait(
            self.group.call_each(RewardTrainer.update, [(s,) for s in self._shards(step)])
        )
        metrics = whole_minibatches(reports)[0]
        metrics["tokens_per_s"] = sum(self.lengths[i] for i in self._groups_of(step)) / max(
            r.busy.seconds for r in reports
        )
        metrics |= peak_memory({"reward": self.group}, self.waiter)
        last = step == self.total_steps
        if step % self.config.training.evaluate_every == 0 and not last:
            evaluation = evaluate(self.group, self.waiter, self.config, self.lengths, self.num_train)
            metrics |= {"held_out/pair_accuracy": evaluation.pair_accuracy, "held_out/ece": evaluation.ece}
            self.progress.note(described(evaluation))
        return SupervisedEntry(step=step, digest=self._digest(), metrics=metrics)

    def _digest(self) -> str:
        """Of the master weights. Where bits are not promised they are not hashed."""
        if not self.config.run.deterministic:
            return ""
        digests = self.waiter.wait(self.group.call(RewardTrainer.digest))
        if len(set(digests)) != 1:
            raise PreceptorError(f"the ranks of reward hold different weights: {digests}")
        return str(digests[0])

    def _groups_of(self, step: int) -> list[int]:
        """Ranked groups of a step (from 1): each once per epoch, in a seeded order."""
        epoch, within = divmod(step - 1, self.steps_per_epoch)
        order = permutation(self.num_train, seed=self.config.run.seed, label=f"ranked groups/{epoch}")
        size = self.config.training.groups_per_step
        return order[within * size : (within + 1) * size]

    def _shards(self, step: int) -> list[RankingShard]:
        groups = self._groups_of(step)
        optimizer = self.config.model.optimizer
        lr = learning_rate(
            step - 1,
            peak=optimizer.lr,
            warmup_steps=optimizer.warmup_steps,
            total_steps=self.total_steps,
            decay=optimizer.decay,
            final_frac=optimizer.final_lr_frac,
        )
        micro_batches = split(groups, self.lengths, len(self.group), self.config.model.engine.micro_batch_tokens)
        return [
            RankingShard(step=step, micro_batches=batches, num_groups=len(groups), lr=lr) for batches in micro_batches
        ]

    def _commit(self, entry: SupervisedEntry, *, again: bool) -> None:
        if not again:
            self.ledger.commit(entry)
        elif self.ledger.read(entry.step).digest != entry.digest:
            raise PreceptorError(
                f"step {entry.step}, computed again after the resume, gave other weights than the ledger's: run.deterministic promises the "
                "same. Was the run resumed on another kind of machine, or with other threads?"
            )
        self.step = entry.step
        if entry.step % self.config.run.checkpoint_every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        if self.step == 0 or self.checkpoints.has(self.step):
            return
        with self.progress.phase(f"checkpoint of step {self.step}"):
            folder = str(self.checkpoints.prepare(self.step))
            written = self.waiter.wait(self.group.call(RewardTrainer.save, folder))
            self.checkpoints.commit(self.step, {"reward": [file for files in written for file in files]}, {})


def split(
    groups: Sequence[int], lengths: Sequence[int], num_ranks: int, budget: int
) -> list[tuple[tuple[int, ...], ...]]:
    """Micro-batches of ranked groups for each rank: balanced by tokens, in lockstep."""
    ranks = Balancer(num_ranks).assign([lengths[i] for i in groups], [0] * len(groups))
    return lockstep([pack({groups[at]: lengths[groups[at]] for at in of_rank}, budget) for of_rank in ranks])


def evaluate(
    group: Group, waiter: Waiter, config: RewardStage, lengths: Sequence[int], num_train: int
) -> RewardEvaluation:
    """Scores the held-out groups on all ranks and has rank 0 sum them up."""
    held_out = range(num_train, len(lengths))
    shards = split(held_out, lengths, len(group), config.model.engine.micro_batch_tokens)
    parts = waiter.wait(group.call_each(RewardTrainer.evaluate, [(micro_batches,) for micro_batches in shards]))
    result: RewardEvaluation = waiter.wait([group.call_rank(0, RewardTrainer.summarise, parts)])[0]
    return result


def export_evaluated(group: Group, waiter: Waiter, folder: str, evaluation: RewardEvaluation) -> None:
    """Writes the model as a Hugging Face folder, and its evaluation last: PPO takes no reward model without it."""
    waiter.wait(group.call(RewardTrainer.export_evaluated, folder, evaluation))


def described(evaluation: RewardEvaluation) -> str:
    """An evaluation in one line."""
    length = "none" if evaluation.length_correlation is None else f"{evaluation.length_correlation:+.2f}"
    return (
        f"held out: {evaluation.num_pairs} pairs, accuracy {evaluation.pair_accuracy:.3f}, ECE {evaluation.ece:.3f}, "
        f"correlation with length {length}, scores {evaluation.mean:.3f} +- {evaluation.std:.3f}"
    )
