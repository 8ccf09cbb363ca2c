"""A sweep from its folder to its end: where its jobs run, who directs them, what is said when they are over."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from actors.errors import PreceptorError, UserError
from configs.load import load_config
from configs.schema import Config, Pipeline
from orchestrator.jobs import Stopped
from orchestrator.machine import local_cores, local_machine
from orchestrator.plan import logical_cpus, make_plan
from orchestrator.progress import quiet_process
from orchestrator.ray_jobs import RayJobs
from orchestrator.signals import interruptible, stop_between_steps
from orchestrator.sweep.records import LOG_FILE, SweepFolder, SweepSpec, Trial
from orchestrator.sweep.results import (
    best_of,
    read_results,
    run_command,
    table,
    without_metric,
    write_results,
)
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.space import read_space
from orchestrator.sweep.trial_jobs import Place, TrialJobs
from orchestrator.sweep.view import View

SPARE_CPUS = 2


def direct(folder: SweepFolder, spec: SweepSpec) -> None:
    """Runs what is left of a sweep, and says what came of it.

    Raises:
        Stopped: where the user stopped it.
        PreceptorError: where trials failed.
    """
    with View(folder, spec) as view, quiet_process(folder.path / LOG_FILE), interruptible():
        trials = folder.trials()
        try:
            with server_of(folder, spec, trials, view) as server:
                jobs = TrialJobs(folder, spec, server, place_of(spec))
                runner = Runner(spec, trials, jobs, changed=view.changed, looked=view.looked)
                with stop_between_steps(runner, view):
                    runner.run()
        finally:
            view.end_live()
            told = _tell(folder, spec, folder.trials(), view)
    if runner.stop_requested:
        raise Stopped(f"stopped; {told}. Go on with: preceptor sweep --resume {folder.path}")
    if told:
        raise PreceptorError(f"{told}; `preceptor sweep --resume {folder.path} --retries N` runs what failed again")


def place_of(spec: SweepSpec) -> Place:
    """Where the trials' drivers start. UserError where a variable that they are to get is not set."""
    if spec.address is None:
        return Place.here()
    missing = [name for name in spec.env if name not in os.environ]
    if missing:
        raise UserError(f"--env: {missing[0]} is not set; allowed: names of variables of this environment")
    return Place.cluster(spec.working_dir, {name: os.environ[name] for name in spec.env})


@contextmanager
def server_of(folder: SweepFolder, spec: SweepSpec, trials: Sequence[Trial], view: View) -> Iterator[RayJobs]:
    """The cluster's job server, or one that is started here."""
    if spec.address is not None:
        yield RayJobs(spec.address)
        return
    from orchestrator.sweep.local_ray import local_jobs

    view.note("starting Ray ...")
    largest = max(_logical_cpus(load_config(folder.config_file(trial))) for trial in trials)
    cpus = max(local_cores(), math.ceil(largest * spec.parallel) + SPARE_CPUS)
    with local_jobs(cpus, local_machine().num_gpus) as jobs, interruptible():
        # `interruptible` once more: Ray has put its own handler for SIGTERM in place of ours
        yield jobs


def _logical_cpus(config: Config) -> float:
    stages = list(config.stages.values()) if isinstance(config, Pipeline) else [config]
    return max(logical_cpus(make_plan(stage, None)) for stage in stages)


def _tell(folder: SweepFolder, spec: SweepSpec, trials: Sequence[Trial], view: View) -> str:
    """Prints all trials, the best first, and why some failed. In words how many are not finished; nothing where all are."""
    results = read_results(folder, spec, trials)
    path = write_results(folder, spec, results)
    view.console.print(table(spec, results))
    if missing := without_metric(folder, spec, results):
        view.note(missing)
    for trial in trials:
        if trial.status == "failed":
            view.note(f"trial {trial.name} ({' '.join(trial.overrides)}) failed: {trial.reason}")
            view.note(f"  log: {folder.log_file(trial)}")
    if best := best_of(results):
        assert best.point is not None
        fixed = read_space(spec.arguments, distributions=spec.search != "grid").fixed
        view.note(f"best: trial {best.trial.name}, {spec.metric} {best.point[1]:.6g} at step {best.point[0]}")
        view.note(f"  {run_command(spec, fixed, best.trial)}")
    view.note(f"all trials: {path}")
    counts = {
        status: sum(trial.status == status for trial in trials)
        for status in ("failed", "stopped", "waiting", "running")
    }
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    return f"of {len(trials)} trials {told}" if told else ""
