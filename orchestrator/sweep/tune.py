"""A sweep whose worse trials end early: asynchronous successive halving (ASHA, Li et al. 2020) by Ray Tune.

Tune decides who goes on; trials are jobs and records as in every sweep. For each trial Tune has an actor that submits the job, waits at its
ledger and reports each step that has the metric. Tune's own files are thrown away: a sweep that is gone on with reports again what the
ledgers hold, and Tune decides anew, in another order of arrival and perhaps otherwise, about what is not over.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from actors.errors import PreceptorError
from orchestrator.ray_jobs import RayJobs
from orchestrator.sweep.candidate import STOP_S, STOPPING_FILE, Candidate
from orchestrator.sweep.records import Halving, SweepFolder, SweepSpec, Trial
from orchestrator.sweep.trial_jobs import TrialJobs, place_of

if TYPE_CHECKING:
    from orchestrator.signals import Loop

SLOT = "preceptor_trial"
"""Ray custom resource, of which each trial's actor takes one until its job has ended."""
STEP, VALUE = "step", "value"
"""Of what is reported to Tune."""
LOOK_S = 2.0


def search(
    folder: SweepFolder,
    spec: SweepSpec,
    address: str,
    loop: Loop,
    looked: Callable[[Sequence[Trial]], None],
) -> None:
    """Runs what is left of a search, within a Ray that has `slots(spec, trials)` of SLOT. `looked` is told of all trials every few
    seconds; where `loop.stop_requested` is set, all end after their step.

    Raises:
        PreceptorError: where a trial could not be looked after to its end.
    """
    assert spec.halving is not None
    stopping = folder.path / STOPPING_FILE
    stopping.unlink(missing_ok=True)
    watcher = _Watcher(folder, looked)
    os.environ.update(
        {
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_FORCE_TRIAL_CLEANUP_S": str(int(STOP_S) + 60),
        }
    )
    numbers = [trial.number for trial in folder.trials()]
    with tempfile.TemporaryDirectory(prefix="preceptor-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(TrialActor, {"CPU": 0, SLOT: 1}),
            param_space={
                "folder": str(folder.path),
                "spec": spec,
                "address": address,
                "number": tune.grid_search(numbers),
            },
            tune_config=tune.TuneConfig(scheduler=_scheduler(spec.halving, spec.mode)),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                stop=_Stopper(loop, stopping),
                callbacks=[watcher],
                # by default Tune wants a class's checkpoint at its end, and fails a trial that has none
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()
    trials = folder.trials()
    looked(trials)
    # a trial that failed has its reason in its record; others have lost who looked after them
    for trial in trials:
        if trial.status != "failed" and trial.number in watcher.errors:
            raise PreceptorError(
                f"trial {trial.name} is lost: {watcher.errors[trial.number]}; `preceptor sweep --resume {folder.path}` looks for its job"
            )


def slots(spec: SweepSpec, trials: Sequence[Trial]) -> int:
    """Trials that may run at once: within `parallel` and, if all are as large as the largest, within the GPUs."""
    largest = max(trial.gpus for trial in trials)
    return spec.parallel if spec.gpus is None or not largest else min(spec.parallel, spec.gpus // largest)


def _scheduler(halving: Halving, mode: str) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr=STEP,
        metric=VALUE,
        mode=mode,
        max_t=halving.max_steps,
        grace_period=halving.grace_steps,
        reduction_factor=halving.reduction,
        stop_last_trials=False,  # who was never ended runs to its own end, and exports
    )


class _Stopper(tune.Stopper):
    def __init__(self, loop: Loop, stopping: Path) -> None:
        self._loop, self._stopping = loop, stopping

    def __call__(self, _trial_id: str, _result: dict[str, Any]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        if self._loop.stop_requested:
            self._stopping.touch()
        return self._loop.stop_requested

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles what it was given with its state, which nobody reads
        return {}


class _Watcher(tune.Callback):
    def __init__(self, folder: SweepFolder, looked: Callable[[Sequence[Trial]], None]) -> None:
        self._folder, self._looked, self._at = folder, looked, float("-inf")
        self.errors: dict[int, str] = {}
        """What ended a trial's actor, by the trial's number."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's
        text = "" if trial.error_file is None else Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "it gave no reason")
        self.errors[trial.config["number"]] = last.removeprefix(f"{PreceptorError.__module__}.").strip()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002 - Tune's
        if time.monotonic() - self._at > LOOK_S:
            self._at = time.monotonic()
            self._looked(self._folder.trials())

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TrialActor(tune.Trainable):
    """One trial to Tune."""

    def setup(self, config: dict[str, Any]) -> None:
        folder = SweepFolder(Path(config["folder"]))
        spec: SweepSpec = config["spec"]
        jobs = TrialJobs(folder, spec, RayJobs(config["address"]), place_of(spec))
        self._candidate = Candidate(spec, folder.trials()[config["number"] - 1], jobs)

    def step(self) -> dict[str, Any]:
        found = self._candidate.next_point()
        return {STEP: found.step, VALUE: found.value, tune.result.DONE: found.over}

    def cleanup(self) -> None:
        self._candidate.end()
