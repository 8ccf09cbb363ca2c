"""All trials of a grid or random sweep, within a budget of concurrency and GPUs.

    waiting ─► running ─► finished
       ▲          ├─────► stopped   (asked to stop; `--resume` goes on)
       └──────────┴─────► failed    (after its retries)

What is not over when this process ends, in whatever way, is found again from the folder and the jobs' metadata.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from actors.errors import NoAnswer
from orchestrator.sweep.records import SweepSpec, Trial
from orchestrator.sweep.trial_jobs import TrialJobs

POLL_S = 1.0
UNKNOWN_S = 60.0
"""How long a job is waited for whose submission got no answer."""


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
        self._unknown_s: dict[int, float] = {}
        """How long a job whose submission got no answer has not been seen, by the trial's number."""

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
        self._trials[trial.number] = trial
        self._changed(trial)

    def _look(self) -> None:
        running = self._with("running")
        if not running:
            return
        states = self._jobs.states(waited_s=POLL_S)
        if states is None:
            return
        for trial in running:
            state = self._jobs.find_again(trial, states)
            if state is None and self._may_come(trial):
                continue
            if state is None or state.ended:
                self._asked.discard(trial.number)
                self._keep(self._jobs.ended(trial, state))
            elif trial.job is None:
                self._keep(self._jobs.found(trial, state))

    def _may_come(self, trial: Trial) -> bool:
        """Whether a job whose submission got no answer may yet appear: begun again too early, the trial would run twice."""
        waited_s = self._unknown_s.get(trial.number, UNKNOWN_S)
        self._unknown_s[trial.number] = waited_s + POLL_S
        return waited_s < UNKNOWN_S

    def _ask_to_stop(self) -> None:
        for trial in self._with("running"):
            if trial.number not in self._asked and trial.job is not None and self._jobs.ask_to_stop(trial):
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
                self._keep(self._jobs.begin(trial))
            except NoAnswer:
                # the answer may be lost and the job be there: the next looks tell
                self._unknown_s[trial.number] = 0.0
                self._keep(replace(trial, status="running", attempts=trial.attempts + 1, job=None))
                return
