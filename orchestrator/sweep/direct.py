"""A sweep from its folder to its end: where its jobs run, who directs them, what is said when they are over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from actors.errors import PreceptorError, UserError
from configs.load import load_config
from configs.schema import Config, Pipeline
from orchestrator.machine import local_cores, local_machine
from orchestrator.plan import logical_cpus, make_plan
from orchestrator.progress import quiet_process
from orchestrator.ray_jobs import RayJobs, left_out
from orchestrator.signals import Stopped, interruptible, stop_between_steps
from orchestrator.sweep.records import LOG_FILE, SweepFolder, SweepSpec, Trial
from orchestrator.sweep.results import Results, best_of, run_command, table, without_metric, write_results
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.space import read_space
from orchestrator.sweep.trial_jobs import TrialJobs, place_of
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
                stopped = _run(folder, spec, server, view)
        finally:
            view.end_live()
            told = _tell(folder, spec, folder.trials(), view)
    if stopped:
        raise Stopped(f"stopped; {told}. Go on with: preceptor sweep --resume {folder.path}")
    if told:
        raise PreceptorError(f"{told}; `preceptor sweep --resume {folder.path} --retries N` runs what failed again")


def check_place(spec: SweepSpec, folder: Path) -> None:
    """UserError where jobs could not be started, before the sweep's folder is made."""
    place_of(spec)
    if spec.address is None:
        return
    if not left_out(Path(spec.working_dir), folder):
        raise UserError(
            f"--dir: {folder} is in --working-dir, and would be copied to the cluster with every trial; allowed: a folder that .gitignore "
            "or .rayignore names, or one elsewhere"
        )
    RayJobs(spec.address)


def _run(folder: SweepFolder, spec: SweepSpec, server: RayJobs, view: View) -> bool:
    """True where the user stopped it."""
    if spec.halving is None:
        jobs = TrialJobs(folder, spec, server, place_of(spec))
        runner = Runner(spec, folder.trials(), jobs, changed=view.changed, looked=view.looked)
        with stop_between_steps(runner, view):
            runner.run()
        return runner.stop_requested
    from orchestrator.sweep.tune import search

    loop = Searching()
    with stop_between_steps(loop, view):
        search(folder, spec, server.address, loop, view.compared)
    return loop.stop_requested


class Searching:
    """What a signal tells to a search."""

    stepping = True
    stop_requested = False


@contextmanager
def server_of(folder: SweepFolder, spec: SweepSpec, trials: Sequence[Trial], view: View) -> Iterator[RayJobs]:
    """The cluster's job server, or one that is started here. Tune has a Ray of this machine in either case."""
    if spec.address is not None and spec.halving is None:
        yield RayJobs(spec.address)
        return
    from orchestrator.sweep.local_ray import job_server, local_ray

    resources: dict[str, float] = {}
    if spec.halving is not None:
        from orchestrator.sweep.tune import SLOT, slots

        resources = {SLOT: slots(spec, trials)}
    view.note("starting Ray ...")
    local = spec.address is None
    largest = max(_logical_cpus(load_config(folder.config_file(trial))) for trial in trials) if local else 0.0
    cpus = max(local_cores(), math.ceil(largest * spec.parallel) + SPARE_CPUS)
    gpus = local_machine().num_gpus if local else 0
    # `interruptible` once more: Ray puts its own handler for SIGTERM in place of ours
    with local_ray(num_cpus=cpus, num_gpus=gpus, resources=resources, jobs=local) as dashboard, interruptible():
        yield RayJobs(spec.address) if spec.address is not None else job_server(dashboard)


def _logical_cpus(config: Config) -> float:
    stages = list(config.stages.values()) if isinstance(config, Pipeline) else [config]
    return max(logical_cpus(make_plan(stage, None)) for stage in stages)


def _tell(folder: SweepFolder, spec: SweepSpec, trials: Sequence[Trial], view: View) -> str:
    """Prints all trials, the best first, and why some failed. In words how many are not finished; nothing where all are."""
    results = Results(folder, spec).of(trials)
    path = write_results(folder, spec, results)
    view.console.print(table(spec, results))
    if missing := without_metric(folder, spec, results):
        view.note(missing)
    for trial in trials:
        if trial.status == "failed":
            view.note(f"trial {trial.name} ({' '.join(trial.overrides)}) failed: {trial.reason}")
            if (log := folder.log_file(trial)).exists():
                view.note(f"  log: {log}")
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
