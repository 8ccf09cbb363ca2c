"""The PPO loop: step after step, each a transaction. A step that is not in the ledger has not happened.

start ─► (newest whole checkpoint ─► replay of later committed steps) ─► drill ─► sync ─► (evaluation) ─► step ─► ledger ─► checkpoint
─► (evaluation) ─► ... ─► export
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.algorithms.kl_controller import AdaptiveKLController, FixedKLController
from actors.digests import digest_of, sum_of_digests
from actors.errors import PreceptorError
from actors.store import entries
from actors.tasks import ExperienceSummary, WaveSummary
from actors.trainer import Trainer
from configs.schema.ppo import AdaptiveKLConfig, KLConfig, PPOStage
from orchestrator.checkpoints import Checkpoints
from orchestrator.evaluation import PREFIX, Evaluation, HeldOut
from orchestrator.launch import Launched
from orchestrator.ledger import Ledger, LedgerEntry, StepDigests
from orchestrator.metrics import minibatch_metrics, peak_memory, step_metrics, whole_minibatches
from orchestrator.plan_records import PPOPlan
from orchestrator.ppo_records import Timeline
from orchestrator.ppo_step import TRAINED, PPOStep
from orchestrator.progress import Progress
from orchestrator.run_dir import EXPORT_FOLDER
from orchestrator.sync import SyncResult, WeightSync


@dataclass(slots=True)
class Position:
    """Where the run stands."""

    step: int
    """Last committed step; also the policy version."""
    kl: FixedKLController | AdaptiveKLController


def kl_controller(config: KLConfig) -> FixedKLController | AdaptiveKLController:
    """The controller that the config names."""
    if isinstance(config.controller, AdaptiveKLConfig):
        return AdaptiveKLController(config.controller.coef, config.controller.target, config.controller.horizon)
    return FixedKLController(config.controller.coef)


class PPOLoop:
    """All steps of a run."""

    def __init__(
        self,
        config: PPOStage,
        plan: PPOPlan,
        launched: Launched,
        run_dir: Path,
        num_prompts: int,
        progress: Progress,
        *,
        num_held_out: int = 0,
    ) -> None:
        """`num_prompts` are learned from, the `num_held_out` after them are evaluated on."""
        self.config = config
        self.plan = plan
        self.groups = launched.groups
        self.waiter = launched.waiter
        self.run_dir = run_dir
        self.progress = progress
        self.ledger = Ledger(run_dir, LedgerEntry)
        self.checkpoints = Checkpoints(run_dir, keep=config.run.keep_checkpoints)
        self.steps = PPOStep(config, plan, launched, num_prompts)
        exact = (config.cluster.device, config.policy.engine.dtype, config.rollout.dtype) == ("cpu", "fp32", "fp32")
        self.sync = WeightSync(config.weight_sync, plan, launched, exact=exact)
        self.held_out = HeldOut(config, self.steps, run_dir, num_prompts=num_prompts, num_held_out=num_held_out)
        self.best = 0
        """Step of the best evaluation, which has a checkpoint; 0 where there was none yet."""
        self._most = float("-inf")
        self.exported: int | None = None
        """Step of the exported weights, once they are."""
        self.position = Position(step=0, kl=kl_controller(config.ppo.kl))
        self.stepping = False
        self.stop_requested = False

    def run(self) -> None:
        """From wherever the run directory stands to the last step."""
        self.steps.trainers_turn()
        self._take_up()
        self.steps.sync_turn()
        with self.progress.phase("weight sync, proved by a drill"):
            self.sync.connect()
            self.sync.start(policy_version=self.position.step)
        self.steps.engines_turn()
        self._evaluate()
        self.progress.begin(self.config.ppo.steps, done=self.position.step)
        self.stepping = True
        while self.position.step < self.config.ppo.steps and not self.stop_requested:
            self.waiter.step = self.position.step + 1
            entry = self._step(self.position.step + 1)
            self._commit(entry)
            self.progress.step(entry.step, entry.metrics, entry.digests.step)
            self._evaluate()
        self._checkpoint()
        if self.position.step == self.config.ppo.steps:
            self._export()

    # -- resume

    def _take_up(self) -> None:
        """Weights of the newest whole checkpoint, then the updates of the committed steps after it, from their stored trajectories. A step
        on the way that has the best evaluation gets its checkpoint again."""
        last = self.ledger.last_step()
        evaluations = {evaluation.step: evaluation for evaluation in self.held_out.made(last)}
        start = self.checkpoints.newest(last, self.progress.note)
        if start:
            with self.progress.phase(f"loading the checkpoint of step {start}"):
                folder = str(self.checkpoints.folder(start))
                self.waiter.wait([call for role in TRAINED for call in self.groups[role].call(Trainer.load, folder)])
            self._arrive(self.ledger.read(start))
        self._find_best([evaluations[step] for step in range(start + 1) if step in evaluations])
        for step in range(start + 1, last + 1):
            self.waiter.step = step
            entry = self.ledger.read(step)
            with self.progress.phase(f"replaying step {step} from its trajectories"):
                self._replay(entry)
            self._arrive(entry)
            if step in evaluations and self._remember(evaluations[step]):
                self._write_checkpoint()
        self.waiter.step = None

    def _arrive(self, entry: LedgerEntry) -> None:
        self.position.step = entry.step
        self.position.kl.load(entry.kl_controller)

    def _find_best(self, evaluations: Sequence[Evaluation]) -> None:
        """The best one whose checkpoint is whole."""
        for evaluation in evaluations:
            if self.checkpoints.can_be_best(evaluation.step, self.progress.note):
                self._remember(evaluation)

    def _replay(self, entry: LedgerEntry) -> None:
        collected = self.steps.restore(entry)
        for calls in self.steps.start_updates(entry.step, collected, entry.kl_coef):
            self.waiter.wait(calls)
        policy, critic = self._parameter_digests(None)
        # a run that promises the same bits must keep the promise; elsewhere rounding may differ
        if self.config.run.deterministic and (policy, critic) != (entry.digests.policy, entry.digests.critic):
            raise PreceptorError(
                f"replay of step {entry.step} gave other weights than the ledger's: run.deterministic promises the same. "
                "Was the run resumed on another kind of machine, or with other threads?"
            )
        self.waiter.wait([call for role in TRAINED for call in self.groups[role].call(Trainer.end_step)])

    # -- one step

    def _step(self, step: int) -> LedgerEntry:
        timeline = Timeline(show=self.progress.phase)
        kl_coef = self.position.kl.coef
        generation = self.steps.generate(step, policy_version=self.position.step)
        collected = self.steps.collect(step, generation, kl_coef, timeline)
        policy, critic = self.steps.start_updates(step, collected, kl_coef)
        with timeline.phase("update"):
            updates = {"policy": whole_minibatches(self.steps.finish_updates(policy, "policy", timeline))}
        self.steps.sync_turn()
        with timeline.phase("sync"):
            synced = self.sync.sync(policy_version=step)
        with timeline.phase("update"):
            updates["critic"] = whole_minibatches(self.steps.finish_updates(critic, "critic", timeline))
        self.steps.engines_turn()
        with timeline.phase("digest"):
            digests = self._parameter_digests(synced)
        self.steps.end()
        metrics = step_metrics(collected, timeline) | synced.metrics() | {"kl_coef": kl_coef}
        self._steer(step, metrics)
        for role, minibatches in updates.items():
            metrics |= minibatch_metrics(role, minibatches)
        metrics |= peak_memory(self.groups, self.waiter)
        return LedgerEntry(
            step=step,
            policy_version=step,
            waves=collected.waves,
            advantage_moments=collected.moments,
            kl_coef=kl_coef,
            kl_controller=self.position.kl.state(),
            trajectory_files=tuple(
                tuple(
                    replace(part.file, name=f"{trajectory_folder(step)}/{part.file.name}")
                    for part in wave
                    if part.file is not None
                )
                for wave in collected.summaries
            ),
            digests=experience_digests(collected.waves, collected.summaries, *digests),
            updates=updates,
            metrics=metrics,
            seconds=timeline.phases,
        )

    def _evaluate(self) -> None:
        """The weights that the engines hold, where the step has an evaluation that was not made yet."""
        step = self.position.step
        if not self.held_out.due(step) or self.held_out.has(step):
            return
        with self.progress.phase("evaluation"):
            evaluation = self.held_out.evaluate(step)
        self.progress.note(evaluation.described())
        self.progress.track(step, evaluation.metrics)
        if self._remember(evaluation):
            self._checkpoint()

    def _remember(self, evaluation: Evaluation) -> bool:
        """True where it is the best so far; of equals the first is. The one before the first step has no part in it."""
        found = evaluation.metrics.get(PREFIX + self.config.evaluation.best, float("-inf"))
        if evaluation.step == 0 or found <= self._most:
            return False
        self.best, self._most = evaluation.step, found
        return True

    def _steer(self, step: int, metrics: dict[str, float]) -> None:
        """Moves the KL coefficient. While the critic warms up the policy stands still, and its KL says nothing; without a reference there
        is no KL to show."""
        if not self.plan.needs_reference:
            del metrics["kl"]
        elif step > self.config.critic.warmup_steps:
            self.position.kl.update(metrics["kl"], self.plan.trajectories_per_step)

    def _parameter_digests(self, synced: SyncResult | None) -> tuple[str, str]:
        """Of the policy's and the critic's master weights. Where bits are not promised, what the sync sent stands for the policy's, and
        the critic's are not hashed."""
        if not self.config.run.deterministic:
            return (synced.digest if synced else ""), ""
        if synced is None:
            return self._hashed()
        with self.steps.trainers_present():
            return self._hashed()

    def _hashed(self) -> tuple[str, str]:
        by_role = []
        for role in TRAINED:
            digests = self.waiter.wait(self.groups[role].call(Trainer.digest))
            if len(set(digests)) != 1:
                raise PreceptorError(f"the ranks of {role} hold different weights: {digests}")
            by_role.append(digests[0])
        return by_role[0], by_role[1]

    # -- what lasts

    def _commit(self, entry: LedgerEntry) -> None:
        self.ledger.commit(entry)
        self.position.step = entry.step
        remove_others(self.run_dir / trajectory_folder(entry.step), entry)
        if entry.step % self.config.run.checkpoint_every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        if self.position.step and not self.checkpoints.has(self.position.step):
            with self.steps.trainers_present():
                self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        step = self.position.step
        with self.progress.phase(f"checkpoint of step {step}"):
            folder = str(self.checkpoints.prepare(step))
            calls = {role: self.groups[role].call(Trainer.save, folder) for role in TRAINED}
            files = {
                role: [file for written in self.waiter.wait(of_role) for file in written]
                for role, of_role in calls.items()
            }
            self.checkpoints.commit(step, files, {"kl_controller": self.position.kl.state()}, spare={self.best})

    def _export(self) -> None:
        """The last weights or the best ones."""
        step, policy = self.position.step, self.groups["policy"]
        with self.progress.phase("export"), self.steps.trainers_present():
            if self.config.evaluation.export == "best" and self.best not in (0, step):
                step = self.best
                self.checkpoints.state(step)  # whole, or an error that names the file
                self.waiter.wait(policy.call(Trainer.load, str(self.checkpoints.folder(step))))
                self.progress.note(f"the export is of step {step}, the best evaluation")
            folder = str(self.run_dir / EXPORT_FOLDER)
            self.waiter.wait(policy.call(Trainer.export, folder, self.config.policy.model))
        self.exported = step


def trajectory_folder(step: int) -> str:
    """Of a step, under the run directory."""
    return f"trajectories/{step:08d}"


def remove_others(folder: Path, entry: LedgerEntry) -> None:
    """Removes what attempts at a step that were not committed have left beside its trajectories."""
    names = {Path(file.name).name for wave in entry.trajectory_files for file in wave}
    for path in entries(folder):
        if path.name not in names:
            path.unlink()


def experience_digests(
    waves: Sequence[WaveSummary], summaries: Sequence[Sequence[ExperienceSummary]], policy: str, critic: str
) -> StepDigests:
    """Of a step: tokens, rewards and advantages in the order of waves, whatever ranks computed them."""
    return StepDigests(
        tokens=digest_of(wave.token_digest for wave in waves),
        rewards=digest_of(sum_of_digests(part.reward_digest for part in wave) for wave in summaries),
        advantages=digest_of(sum_of_digests(part.advantage_digest for part in wave) for wave in summaries),
        policy=policy,
        critic=critic,
    )
