"""A job server that runs nothing: jobs come to what a test says, and time passes where the sweep pauses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from actors.errors import NoAnswer, PreceptorError, UserError
from actors.store import create_only
from configs.schema import Config
from orchestrator.ledger import SupervisedEntry
from orchestrator.ray_jobs import JobRequest, JobState, Status
from orchestrator.sweep.records import SweepFolder, SweepSpec, Trial
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.trial_jobs import TRIAL_KEY, Place, TrialJobs
from tests.orchestrator.small_stages import stage

SPEC = SweepSpec(
    id="abcd1234",
    config="c.yaml",
    arguments=("run.seed=[0,1,2]",),
    search="grid",
    seed=0,
    metric="score",
    mode="max",
    parallel=2,
    gpus=None,
    retries=0,
    address=None,
    working_dir="/",
    env=(),
    halving=None,
)


@dataclass
class Job:
    state: JobState
    entrypoint: str
    left_s: float
    ends: tuple[Status, int | None, str]
    """What it comes to: status, exit code, its log."""


@dataclass
class Cluster:
    """`plans` holds for each trial what its attempts come to, one after the other; the last holds for all that follow."""

    folder: SweepFolder
    plans: dict[str, list[tuple[Status, int | None, str]]] = field(default_factory=dict)
    takes_s: dict[str, float] = field(default_factory=dict)
    jobs_by_id: dict[str, Job] = field(default_factory=dict)
    silent: bool = False
    lost_answers: int = 0
    """Submissions that come through while their answers do not."""
    late_s: float = 0.0
    """How long it takes until these are seen."""
    _unseen_until: dict[str, float] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    """What the server says to the next submissions, which it does not take; an empty one is taken."""
    asked: list[str] = field(default_factory=list)
    most_running: int = 0
    on_pause: Callable[[float], None] = lambda _: None
    now_s: float = 0.0
    _ids = itertools.count()

    def submit(self, request: JobRequest) -> str:
        self._answer()
        if self.refusals and (said := self.refusals.pop(0)):
            raise UserError(said)
        trial = request.metadata[TRIAL_KEY]
        job = f"{request.name}-{next(self._ids)}"
        plan = self.plans.get(trial, [("SUCCEEDED", 0, "")])
        before = [one for one in self.jobs_by_id.values() if one.state.metadata[TRIAL_KEY] == trial]
        state = JobState(
            job=job,
            name=request.name,
            status="RUNNING",
            message="",
            metadata=request.metadata,
            started_s=self.now_s,
            ended_s=None,
            run_dir=None,
            exit_code=None,
        )
        self.jobs_by_id[job] = Job(
            state=state,
            entrypoint=request.entrypoint,
            left_s=self.takes_s.get(trial, 3.0),
            ends=plan[min(len(before), len(plan) - 1)],
        )
        (self.folder.path / "trials" / trial).mkdir(parents=True, exist_ok=True)
        (self.folder.path / "trials" / trial / "config.yaml").touch()
        self.most_running = max(self.most_running, len(self.running()))
        if self.lost_answers:
            self.lost_answers -= 1
            self._unseen_until[job] = self.now_s + self.late_s
            raise NoAnswer("address: no Ray job server answers (it does not answer in time)")
        return job

    def running(self) -> list[str]:
        """Trials, in the order in which they were begun."""
        return [job.state.metadata[TRIAL_KEY] for job in self.jobs_by_id.values() if not job.state.ended]

    def begun(self) -> list[str]:
        return [job.state.metadata[TRIAL_KEY] for job in self.jobs_by_id.values()]

    def jobs(self) -> list[JobState]:
        self._answer()
        return [job.state for name, job in self.jobs_by_id.items() if self._unseen_until.get(name, 0.0) <= self.now_s]

    def logs(self, job: str) -> str:
        self._answer()
        return self.jobs_by_id[job].ends[2]

    def stop(self, job: str, *, timeout_s: float) -> JobState:
        self.asked.append(self.jobs_by_id[job].state.metadata[TRIAL_KEY])
        self._answer()
        self.jobs_by_id[job].left_s = 2.0
        self.jobs_by_id[job].ends = ("STOPPED", None, "")
        raise PreceptorError("has not ended")

    def pause(self, seconds: float) -> None:
        """Time passes; who has none left ends."""
        self.now_s += seconds
        self.on_pause(self.now_s)
        for job in self.jobs_by_id.values():
            job.left_s -= seconds
            if job.state.ended or job.left_s > 0:
                continue
            status, code, _ = job.ends
            job.state = replace(job.state, status=status, exit_code=code, ended_s=self.now_s)
            if status == "SUCCEEDED":
                (self.folder.path / "trials" / job.state.metadata[TRIAL_KEY] / "done.json").touch()

    def _answer(self) -> None:
        if self.silent:
            raise NoAnswer("address: no Ray job server answers")


def small_sweep(path: Path, num_trials: int, *, gpus: Sequence[int] = (), spec: SweepSpec = SPEC) -> SweepFolder:
    folder = SweepFolder(path)
    trials = [Trial(number=n + 1, overrides=(f"run.seed={n}",), gpus=gpus[n] if gpus else 0) for n in range(num_trials)]
    configs: list[Config] = [stage(f"run.dir={folder.run_dir(trial)}") for trial in trials]
    folder.write(spec, trials, configs)
    return folder


def runner_of(folder: SweepFolder, cluster: Cluster, spec: SweepSpec | None = None) -> Runner:
    spec = spec or folder.spec()
    place = Place(python="python", folder=None, working_dir=None, env={})
    return Runner(spec, folder.trials(), TrialJobs(folder, spec, cluster, place), pause=cluster.pause)


def commit(run_dir: Path, step: int, **metrics: float) -> None:
    entry = SupervisedEntry(step=step, digest="", metrics=metrics)
    create_only(run_dir / "ledger" / f"{step:08d}.json", entry.to_json())
