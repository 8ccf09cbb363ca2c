"""A trial as a Ray job: how it is begun, and what came of it when it has ended."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from actors.durable import write_whole
from actors.errors import NoAnswer, PreceptorError, UserError
from orchestrator.surroundings import handed_over
from orchestrator.sweep.records import Status, SweepFolder, SweepSpec, Trial

if TYPE_CHECKING:
    from orchestrator.ray_jobs import JobRequest, JobState

SWEEP_KEY, TRIAL_KEY, ATTEMPT_KEY = "sweep", "trial", "attempt"
"""Metadata, by which a trial's job is found again."""
OUTAGE_S = 300.0
"""How long a job server may be silent before the sweep gives up waiting for it. Its jobs go on."""
UNKNOWN_S = 60.0
"""How long a job is waited for whose submission got no answer."""
NO_AGENT = "No available agent"
"""Ray's words where the head's agent has not come up yet: nothing was submitted. It waits for one itself, for 10 s."""
AGENT_TRIES = 12
REFUSED, INTERRUPTED = 2, 130
"""Exit codes of a driver: bad input, which no further attempt makes better; stopped."""


class JobServer(Protocol):
    """What a sweep needs of `orchestrator.ray_jobs.RayJobs`."""

    def submit(self, request: JobRequest) -> str: ...

    def jobs(self) -> list[JobState]: ...

    def logs(self, job: str) -> str: ...

    def stop(self, job: str, *, timeout_s: float) -> JobState: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where jobs start."""

    python: str
    folder: Path | None
    """They go there first; None: to where Ray puts the copy of `working_dir`."""
    working_dir: Path | None
    env: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def here(folder: str) -> Place:
        """On a Ray of this machine: in `folder`, with this interpreter, and with our packages also where they are not installed."""
        ours = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
        # a Ray of our own is shielded from SIGTERM, and its jobs with it
        env = {"PYTHONPATH": search, "RAY_JOB_STOP_SIGNAL": "SIGINT"}
        return Place(python=sys.executable, folder=Path(folder), working_dir=None, env=env)

    @staticmethod
    def cluster(working_dir: str, env: Mapping[str, str]) -> Place:
        """On a cluster: in a copy of `working_dir`, with its `python`."""
        return Place(python="python", folder=None, working_dir=Path(working_dir), env=env)


def place_of(spec: SweepSpec) -> Place:
    """Where the trials' drivers start. UserError where a variable that they are to get is not set."""
    if spec.address is None:
        return Place.here(spec.working_dir)
    return Place.cluster(spec.working_dir, handed_over(spec.env))


class TrialJobs:
    """Begins trials and judges how they ended. Every change is on disk when it is returned."""

    def __init__(self, folder: SweepFolder, spec: SweepSpec, server: JobServer, place: Place) -> None:
        self.folder, self.server = folder, server
        self._spec, self._place = spec, place
        self._silent_s = 0.0
        self._num_no_agent = 0
        """Submissions in a row that found no agent."""
        self._unknown_s: dict[int, float] = {}
        """How long a job whose submission got no answer has not been seen, by the trial's number."""

    def states(self, *, waited_s: float) -> list[JobState] | None:
        """Of all jobs; None where the server does not answer this time. `waited_s` is what the caller waits between two calls.

        Raises:
            PreceptorError: where it has been silent for too long.
        """
        try:
            found = self.server.jobs()
        except UserError as error:
            self._silent_s += waited_s
            if self._silent_s > OUTAGE_S:
                raise PreceptorError(
                    f"{error}. No answer for {OUTAGE_S:g} s; trials that run go on by themselves. Go on with: preceptor sweep --resume "
                    f"{self.folder.path}"
                ) from error
            return None
        self._silent_s = 0.0
        return found

    def taken_up(self, trial: Trial) -> Trial:
        """The trial at the start of a sweep that goes on: what was stopped waits again; so does what failed, where more retries are allowed
        than before."""
        if trial.status == "stopped" or (trial.status == "failed" and trial.failures <= self._spec.retries):
            trial = replace(trial, status="waiting")
            self.folder.save(trial)
        return trial

    def begin(self, trial: Trial) -> Trial:
        """Submits the trial's next attempt: from its beginning, or from where its run directory stands. It runs without a job where the
        answer was lost, and still waits where the server can take none yet.

        Raises:
            UserError: where the server refuses it; the trial waits.
        """
        begun = replace(trial, status="running", attempts=trial.attempts + 1, job=None, begun_s=time.time(), reason="")
        # before the job: who is killed between the two finds it by its metadata
        self.folder.save(begun)
        try:
            begun = replace(begun, job=self.server.submit(self._request(begun)))
        except NoAnswer:
            # the answer may be lost and the job be there: the next looks tell
            self._unknown_s[trial.number] = 0.0
            return begun
        except UserError as error:
            self.folder.save(trial)
            self._num_no_agent += 1
            if NO_AGENT not in str(error) or self._num_no_agent >= AGENT_TRIES:
                raise
            return trial
        self._num_no_agent = 0
        self.folder.save(begun)
        return begun

    def refused(self, trial: Trial, error: UserError) -> Trial:
        """The trial after its job was refused, which counts as a failure."""
        return self._failed(trial, trial.failures + 1, str(error))

    def moved(self, trial: Trial, states: list[JobState], *, waited_s: float) -> Trial:
        """A running trial as the server's jobs show it: ended, found again, or as it was. `waited_s`: since the last look."""
        state = self._find_again(trial, states)
        if state is None and trial.number in self._unknown_s and self._unknown_s[trial.number] < UNKNOWN_S:
            # its job may yet appear: begun again too early, the trial would run twice
            self._unknown_s[trial.number] += waited_s
            return trial
        self._unknown_s.pop(trial.number, None)
        if state is None or state.ended:
            return self._ended(trial, state)
        if trial.job is None:
            trial = replace(trial, job=state.job)
            self.folder.save(trial)
        return trial

    def _request(self, trial: Trial) -> JobRequest:
        from orchestrator.ray_jobs import RUN_DIR_KEY, JobRequest

        run_dir = self.folder.run_dir(trial)
        registry = [] if self._spec.registry is None else ["--registry", self._spec.registry]
        unchecked = ["--skip-memory-check"] if self._spec.skip_memory_check else []
        # `resume` checks no memory
        words = (
            ["resume", *registry, str(run_dir)]
            if self.folder.begun(trial)
            else ["run", *unchecked, *registry, str(self.folder.config_file(trial))]
        )
        command = shlex.join([self._place.python, "-m", "orchestrator", *words])
        start = f"cd {shlex.quote(str(self._place.folder))} && " if self._place.folder else ""
        return JobRequest(
            # `exec`: a shell that waits would die of the signal that asks the driver to stop, and the exit code with it
            entrypoint=f"{start}exec {command}",
            name=f"sweep-{self._spec.id}-{trial.name}",
            working_dir=self._place.working_dir,
            env=self._place.env,
            metadata={
                SWEEP_KEY: self._spec.id,
                TRIAL_KEY: trial.name,
                ATTEMPT_KEY: str(trial.attempts),
                RUN_DIR_KEY: str(run_dir),
            },
        )

    def _find_again(self, trial: Trial, states: list[JobState]) -> JobState | None:
        """The job of the trial's newest attempt, where the server knows it."""
        wanted = {SWEEP_KEY: self._spec.id, TRIAL_KEY: trial.name, ATTEMPT_KEY: str(trial.attempts)}
        return next((state for state in states if wanted.items() <= state.metadata.items()), None)

    def ask_to_stop(self, trial: Trial) -> bool:
        """Has the trial end after its step, with a checkpoint. Does not wait for it. False where its job is not known yet, or the server
        did not answer."""
        if trial.job is None:
            return False
        try:
            self.server.stop(trial.job, timeout_s=0.0)
        except NoAnswer:
            return False
        except PreceptorError:
            pass  # it has not ended at once, or nobody knows it any more: the next look tells
        return True

    def _ended(self, trial: Trial, state: JobState | None) -> Trial:
        """The trial after its newest attempt; `state` is None where nobody knows its job any more. Its log is kept."""
        over = replace(trial, seconds=trial.seconds + self._took_s(trial, state), begun_s=None)
        log = self._keep_log(trial, state)
        if self.folder.finished(trial):
            over = replace(over, status="finished")
        elif state is None:
            # its cluster, or the sweep's own Ray, ended under it: no fault of its own
            over = replace(over, status="waiting")
        elif state.status == "STOPPED" or state.exit_code == INTERRUPTED:
            over = replace(over, status="stopped")
        else:
            # bad input uses up every retry that there is; more of them at a `--resume` try it again
            failures = self._spec.retries + 1 if state.exit_code == REFUSED else trial.failures + 1
            return self._failed(over, failures, reason(log, state.message))
        self.folder.save(over)
        return over

    def _failed(self, trial: Trial, failures: int, why: str) -> Trial:
        status: Status = "waiting" if failures <= self._spec.retries else "failed"
        trial = replace(trial, status=status, failures=failures, reason=why)
        self.folder.save(trial)
        return trial

    def _took_s(self, trial: Trial, state: JobState | None) -> float:
        """Seconds of an attempt that has ended, perhaps long before somebody looks: by the cluster, else until its last step."""
        if state is not None and state.started_s is not None and state.ended_s is not None:
            return max(0.0, state.ended_s - state.started_s)
        committed_s = self.folder.committed_s(trial)
        return 0.0 if trial.begun_s is None or committed_s is None else max(0.0, committed_s - trial.begun_s)

    def _keep_log(self, trial: Trial, state: JobState | None) -> str:
        if state is None:
            return ""
        try:
            log = self.server.logs(state.job)
        except UserError:
            return ""
        write_whole(self.folder.log_file(trial), log.encode())
        return log


def reason(log: str, message: str) -> str:
    """Why a driver failed, in one line: what it said last, else its last line, else what Ray says."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = [line.removeprefix("preceptor: ") for line in lines if line.startswith("preceptor: ")]
    return next(iter([*said[-1:], *lines[-1:], " ".join(message.split())]), "") or "it gave no reason"
