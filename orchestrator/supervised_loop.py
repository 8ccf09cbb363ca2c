"""The supervised stages: optimizer step after optimizer step on a data set, evaluated on held-out rows, exported with the evaluation.

(dpo: reference log-probabilities) ─► items ─► ranks (balanced by tokens) ─► update ─► ledger ─► checkpoint ─► ... ─► evaluate ─► export
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.algorithms.packing import pack
from actors.algorithms.schedule import learning_rate
from actors.dpo_trainer import DPOTrainer
from actors.errors import PreceptorError
from actors.group import Group, Waiter
from actors.supervised_trainer import Evaluation, ItemsReport, MicroBatches, SupervisedShard, SupervisedTrainer
from actors.tasks import UpdateReport
from configs.schema import SupervisedStage
from configs.schema.supervised import DPOStage
from orchestrator.batching import Balancer, lockstep, permutation
from orchestrator.checkpoints import Checkpoints
from orchestrator.launch import Launched
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.metrics import peak_memory, whole_minibatches
from orchestrator.plan_records import SupervisedPlan
from orchestrator.progress import Progress
from orchestrator.run_dir import EXPORT_FOLDER

MERIT = "held_out/merit"
"""What an evaluation is worth, in the ledger: the best checkpoint is that of the step with the most."""

REFERENCE_ITEMS = 1024
"""Ranked groups that one call scores: packing them stays quick, and no call takes long."""


class SupervisedLoop:
    """All steps of a supervised stage."""

    def __init__(
        self, config: SupervisedStage, plan: SupervisedPlan, launched: Launched, run_dir: Path, progress: Progress
    ) -> None:
        self.config = config
        self.plan = plan
        self.role = plan.role
        self.group = launched.groups[plan.role]
        self.waiter = launched.waiter
        self.run_dir = run_dir
        self.progress = progress
        self.items: ItemsReport = self.waiter.wait([self.group.call_rank(0, SupervisedTrainer.items)])[0]
        self.ledger = Ledger(run_dir, SupervisedEntry)
        self.checkpoints = Checkpoints(run_dir, keep=config.run.keep_checkpoints)
        self.steps_per_epoch = -(-self.items.num_train // plan.items_per_step)
        self.total_steps = config.training.total_steps(self.items.num_train)
        self.step = 0
        self.best = 0
        """Step of the best evaluation, 0 where there was none."""
        self._best_merit = float("-inf")
        self._evaluated: tuple[int, Evaluation | None] = (0, None)
        """Step of the last evaluation, and what it found."""
        self.exported: int | None = None
        """Step of the exported weights, once they are."""
        self.stepping = False
        self.stop_requested = False

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps

    def run(self) -> None:
        """From wherever the run directory stands to the export."""
        if isinstance(self.config, DPOStage):
            self._score_reference()
        committed = self.ledger.last_step()
        self._take_up(committed)
        self.progress.begin(self.total_steps, done=self.step)
        self.stepping = True
        while not self.finished and not self.stop_requested:
            self.waiter.step = self.step + 1
            entry = self._step(self.step + 1)
            self._commit(entry, again=entry.step <= committed)
            self.progress.step(entry.step, entry.metrics, entry.digest)
        self._checkpoint()
        if self.finished:
            self._export()

    def _score_reference(self) -> None:
        """What the answers are worth to the model that the stage starts from, before anything is learned. Once: it is stored."""
        if all(self.waiter.wait(self.group.call(DPOTrainer.has_reference))):
            return
        with self.progress.phase("log-probabilities of the reference"):
            parts = []
            for start in range(0, len(self.items.lengths), REFERENCE_ITEMS):
                items = range(start, min(start + REFERENCE_ITEMS, len(self.items.lengths)))
                shards = split(items, self.items.lengths, len(self.group), self.budget)
                calls = self.group.call_each(
                    DPOTrainer.reference_logprobs, [(micro,) for micro in shards], two_results=True
                )
                self.waiter.wait(calls)
                parts += [call.big for call in calls]
            self.waiter.wait(self.group.call(DPOTrainer.keep_reference, *parts))

    def _take_up(self, committed: int) -> None:
        """Weights of the newest whole checkpoint. Steps committed after it are computed again: they depend on nothing but the data."""
        self.step = self.checkpoints.newest(committed, self.progress.note)
        for step in range(1, self.step + 1):
            entry = self.ledger.read(step)
            if MERIT in entry.metrics and self.checkpoints.can_be_best(step, self.progress.note):
                self._remember(entry)
        if self.step:
            self._load(self.step)

    def _load(self, step: int) -> None:
        with self.progress.phase(f"loading the checkpoint of step {step}"):
            self.waiter.wait(self.group.call(SupervisedTrainer.load, str(self.checkpoints.folder(step))))

    @property
    def budget(self) -> int:
        return self.config.model.engine.micro_batch_tokens

    def _step(self, step: int) -> SupervisedEntry:
        reports: list[UpdateReport] = self.waiter.wait(
            self.group.call_each(SupervisedTrainer.update, [(s,) for s in self._shards(step)])
        )
        metrics = whole_minibatches(reports)[0]
        metrics["tokens_per_s"] = sum(self.items.lengths[i] for i in self._items_of(step)) / max(
            r.busy.seconds for r in reports
        )
        metrics |= peak_memory({self.role: self.group}, self.waiter)
        if step % self.config.training.evaluate_every == 0 or step == self.total_steps:
            with self.progress.phase("evaluation"):
                evaluation = evaluate(self.group, self.waiter, self.config, self.items)
            self._evaluated = (step, evaluation)
            if evaluation is not None:
                metrics |= evaluation.metrics() | {MERIT: evaluation.merit}
                self.progress.note(evaluation.described())
        return SupervisedEntry(step=step, digest=self._digest(), metrics=metrics)

    def _digest(self) -> str:
        """Of the master weights. Where bits are not promised they are not hashed."""
        if not self.config.run.deterministic:
            return ""
        digests = self.waiter.wait(self.group.call(SupervisedTrainer.digest))
        if len(set(digests)) != 1:
            raise PreceptorError(f"the ranks of {self.role} hold different weights: {digests}")
        return str(digests[0])

    def _items_of(self, step: int) -> list[int]:
        """Items of a step (from 1): each once per epoch, in a seeded order."""
        epoch, within = divmod(step - 1, self.steps_per_epoch)
        order = permutation(self.items.num_train, seed=self.config.run.seed, label=f"items/{epoch}")
        size = self.plan.items_per_step
        return order[within * size : (within + 1) * size]

    def _shards(self, step: int) -> list[SupervisedShard]:
        items = self._items_of(step)
        optimizer = self.config.model.optimizer
        lr = learning_rate(
            step - 1,
            peak=optimizer.lr,
            warmup_steps=optimizer.warmup_steps,
            total_steps=self.total_steps,
            decay=optimizer.decay,
            final_frac=optimizer.final_lr_frac,
        )
        count = sum(self.items.weights[item] for item in items)
        micro_batches = split(items, self.items.lengths, len(self.group), self.budget)
        return [
            SupervisedShard(step=step, micro_batches=of_rank, global_count=count, lr=lr) for of_rank in micro_batches
        ]

    # -- what lasts

    def _commit(self, entry: SupervisedEntry, *, again: bool) -> None:
        if not again:
            self.ledger.commit(entry)
        elif self.ledger.read(entry.step).digest != entry.digest:
            raise PreceptorError(
                f"step {entry.step}, computed again after the resume, gave other weights than the ledger's: run.deterministic promises the "
                "same. Was the run resumed on another kind of machine, or with other threads?"
            )
        self.step = entry.step
        if self._remember(entry) or entry.step % self.config.run.checkpoint_every == 0:
            self._checkpoint()

    def _remember(self, entry: SupervisedEntry) -> bool:
        """True where the step's evaluation is the best so far; of equals the first is."""
        merit = entry.metrics.get(MERIT, float("-inf"))
        if merit <= self._best_merit:
            return False
        self.best, self._best_merit = entry.step, merit
        return True

    def _checkpoint(self) -> None:
        if self.step == 0 or self.checkpoints.has(self.step):
            return
        with self.progress.phase(f"checkpoint of step {self.step}"):
            folder = str(self.checkpoints.prepare(self.step))
            written = self.waiter.wait(self.group.call(SupervisedTrainer.save, folder))
            files = [file for files in written for file in files]
            self.checkpoints.commit(self.step, {self.role: files}, {}, spare={self.best})

    def _export(self) -> None:
        """The last weights or the best ones, evaluated as they are exported."""
        step = self.step
        if self.config.training.export == "best" and self.best not in (0, self.step):
            step = self.best
            self.checkpoints.state(self.best)  # whole, or an error that names the file
            self._load(self.best)
            self.progress.note(f"the export is of step {self.best}, the best evaluation")
        with self.progress.phase("evaluation and export"):
            evaluated_at, evaluation = self._evaluated
            if evaluated_at != step:
                evaluation = evaluate(self.group, self.waiter, self.config, self.items)
            export_evaluated(self.group, self.waiter, str(self.run_dir / EXPORT_FOLDER), evaluation)
        self.exported = step


def split(items: Sequence[int], lengths: Sequence[int], num_ranks: int, budget: int) -> list[MicroBatches]:
    """Micro-batches of items for each rank: balanced by tokens, in lockstep."""
    ranks = Balancer(num_ranks).assign([lengths[i] for i in items], [0] * len(items))
    return lockstep([pack({items[at]: lengths[items[at]] for at in of_rank}, budget) for of_rank in ranks])


def evaluate(group: Group, waiter: Waiter, config: SupervisedStage, items: ItemsReport) -> Evaluation | None:
    """Has all ranks compute their held-out items and rank 0 sum them up; None where nothing is held out."""
    held_out = range(items.num_train, len(items.lengths))
    if not held_out:
        return None
    shards = split(held_out, items.lengths, len(group), config.model.engine.micro_batch_tokens)
    parts = waiter.wait(group.call_each(SupervisedTrainer.evaluate, [(micro_batches,) for micro_batches in shards]))
    result: Evaluation = waiter.wait([group.call_rank(0, SupervisedTrainer.summarise, parts)])[0]
    return result


def export_evaluated(group: Group, waiter: Waiter, folder: str, evaluation: Evaluation | None) -> None:
    """Writes the model as a Hugging Face folder, and its evaluation last: PPO takes no reward model without it."""
    waiter.wait(group.call(SupervisedTrainer.export_evaluated, folder, evaluation))
