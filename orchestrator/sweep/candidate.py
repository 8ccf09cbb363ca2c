"""A trial in a search: its job begun and looked after, its metric handed out step by step, ended where the search wants no more of it."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from actors.errors import PreceptorError, UserError
from orchestrator.sweep.records import Followed, Mode, Point, SweepSpec, Trial
from orchestrator.sweep.trial_jobs import TrialJobs

POLL_S = 1.0
STOP_S = 1200.0
"""Longest wait for a trial that is ended to write its checkpoint; its own `cluster.stop_timeout_s` is shorter by default."""
STOPPING_FILE = "stopping"
"""In the sweep's folder while the user stops it: who is ended then is not pruned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a trial has come to."""

    step: int
    value: float
    over: bool
    """Nothing follows."""


class Candidate:
    """Alone writes the trial's record while the search runs."""

    def __init__(
        self, spec: SweepSpec, trial: Trial, jobs: TrialJobs, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        assert spec.metric is not None
        self.trial = jobs.taken_up(trial)
        self._mode, self._jobs, self._pause = spec.mode, jobs, pause
        self._followed = Followed(jobs.folder.run_dir(trial), spec.metric)
        self._points: deque[Point] = deque()
        """Read and not yet handed out."""
        self._last: Point = (0, math.nan)
        self._broken_off = False
        """The wait for the next point ended with an error: the search has not decided that the trial end."""

    def next_point(self) -> Found:
        """Waits for the next committed step that has the metric, from the first on, or for the trial's end.

        Raises:
            PreceptorError: where it failed, after its retries.
        """
        self._broken_off = True
        while not self._points:
            self._move()
            # after the look at the job: what has ended commits nothing more
            self._points.extend(self._followed.look())
            if not self._points:
                if self.trial.status == "failed":
                    raise PreceptorError(self.trial.reason)
                if self.trial.status not in ("running", "waiting"):
                    return self._found(over=True)
                self._pause(POLL_S)
        self._last = self._points.popleft()
        return self._found(over=False)

    def _found(self, *, over: bool) -> Found:
        self._broken_off = False
        return Found(step=self._last[0], value=comparable(self._last[1], self._mode), over=over)

    def _move(self) -> None:
        """The trial's job begun, or looked at."""
        if self.trial.status == "waiting":
            try:
                self.trial = self._jobs.begin(self.trial)
            except UserError as error:
                self.trial = self._jobs.refused(self.trial, error)
        elif self.trial.status == "running":
            states = self._jobs.states(waited_s=POLL_S)
            if states is not None:
                self.trial = self._jobs.moved(self.trial, states, waited_s=POLL_S)

    def end(self) -> None:
        """The search has no further use for the trial: where it runs it ends after its step, with a checkpoint."""
        waited_s, asked = 0.0, False
        while self.trial.status == "running" and waited_s < STOP_S:
            asked = asked or self._jobs.ask_to_stop(self.trial)
            self._move()
            self._pause(POLL_S)
            waited_s += POLL_S
        if (
            self.trial.status == "stopped"
            and not self._broken_off
            and not (self._jobs.folder.path / STOPPING_FILE).exists()
        ):
            self.trial = replace(self.trial, status="pruned")
            self._jobs.folder.save(self.trial)


def comparable(value: float, mode: Mode) -> float:
    """A value that is no number is worse than any."""
    worst = -sys.float_info.max if mode == "max" else sys.float_info.max
    return value if math.isfinite(value) else worst
