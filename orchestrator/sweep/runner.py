"""All trials of a grid or random sweep, within a budget of concurrency and GPUs.

    waiting ─► running ─► finished
       ▲          ├─────► stopped   (asked to stop; `--resume` goes on)
       └──────────┴─────► failed    (after its retries)

What is not over when this process ends, in whatever way, is found again from the folder and the jobs' metadata.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from actors.errors import UserError
from orchestrator.sweep.records import SweepSpec, Trial
from orchestrator.sweep.trial_jobs import TrialJobs

POLL_S = 1.0


class Runner:
    """Directs the trials. Has what `signals.stop_between_steps` asks of a loop."""

    def __init__(
        self,
        spec: SweepSpec,
        trials: Sequence[Trial],
        jobs: TrialJobs,
        *,
        changed: Callable[[Trial], None] = lambda _: None,
        looked: Callable[[Sequence[Trial]], None] = lambda _: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`changed` is told of each trial that begins or ends, `looked` of all at every look; `pause` waits some seconds."""
        self.stepping = True
        self.stop_requested = False
        self._spec, self._jobs = spec, jobs
        self._trials = {trial.number: jobs.taken_up(trial) for trial in trials}
        self._changed, self._looked, self._pause = changed, looked, pause
        self._asked: set[int] = set()

    @property
    def trials(self) -> list[Trial]:
        """All, by number."""
        return list(self._trials.values())

    def run(self) -> None:
        """Until nothing is left that could run, or, where it was asked to stop, until nothing runs.

        Raises:
            PreceptorError: where the job server is silent for too long.
        """
        while True:
            self._look()
            if self.stop_requested:
                self._ask_to_stop()
            else:
                self._begin()
            self._looked(self.trials)
            if not self._with("running") and (self.stop_requested or not self._with("waiting")):
                return
            self._pause(POLL_S)

    def _with(self, status: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.status == status]

    def _keep(self, trial: Trial) -> None:
        before = self._trials[trial.number]
        self._trials[trial.number] = trial
        if (before.status, before.attempts, before.failures) != (trial.status, trial.attempts, trial.failures):
            self._changed(trial)

    def _look(self) -> None:
        running = self._with("running")
        if not running:
            return
        states = self._jobs.states(waited_s=POLL_S)
        if states is None:
            return
        for trial in running:
            moved = self._jobs.moved(trial, states, waited_s=POLL_S)
            if moved.status != "running":
                self._asked.discard(trial.number)
            self._keep(moved)

    def _ask_to_stop(self) -> None:
        for trial in self._with("running"):
            if trial.number not in self._asked and self._jobs.ask_to_stop(trial):
                self._asked.add(trial.number)

    def _begin(self) -> None:
        for trial in self._with("waiting"):
            running = self._with("running")
            held = sum(other.gpus for other in running)
            if len(running) >= self._spec.parallel:
                return
            # in their order: a large trial is not passed over for ever by small ones
            if self._spec.gpus is not None and held + trial.gpus > self._spec.gpus:
                return
            try:
                begun = self._jobs.begin(trial)
            except UserError as error:
                if not running:
                    raise
                # others run: they are not left alone for one that is refused
                begun = self._jobs.refused(trial, error)
            self._keep(begun)
            if begun.status == "waiting" or (begun.status == "running" and begun.job is None):
                return
