"""What came of a sweep: its trials from the best to the worst."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.durable import write_whole
from orchestrator.sweep.records import (
    RESULTS_FILE,
    Followed,
    Point,
    SweepFolder,
    SweepSpec,
    Trial,
    metric_names,
)

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A trial, and what it came to."""

    trial: Trial
    step: int
    """Newest committed."""
    point: Point | None
    """Of the metric: the last step that has it, with its value; None where there is none."""


class Results:
    """Of a sweep that goes on: of a trial that runs only what is new is read, of one that does not nothing more."""

    def __init__(self, folder: SweepFolder, spec: SweepSpec) -> None:
        self._folder, self._spec = folder, spec
        self._followed: dict[int, Followed] = {}
        self._read: dict[int, Trial] = {}
        """How it stood with each trial when it was read last."""

    def of(self, trials: Sequence[Trial]) -> list[Result]:
        """These trials, the best first; without a metric in their order. A value that is no number is the worst."""
        sign = -1.0 if self._spec.mode == "max" else 1.0

        def rank(result: Result) -> tuple[float, int]:
            value = result.point[1] if result.point else math.nan
            return (sign * value if math.isfinite(value) else math.inf, result.trial.number)

        return sorted(map(self._result, trials), key=rank)

    def _result(self, trial: Trial) -> Result:
        new = Followed(self._folder.run_dir(trial), self._spec.metric)
        followed = self._followed.setdefault(trial.number, new)
        if trial.status == "running" or self._read.get(trial.number) != trial:
            followed.look()
            self._read[trial.number] = trial
        return Result(trial=trial, step=followed.step, point=followed.point)


def best_of(results: Sequence[Result]) -> Result | None:
    """Of the trials that came to their end, the one with the best value."""
    whole = [r for r in results if r.trial.status == "finished" and r.point is not None and math.isfinite(r.point[1])]
    return whole[0] if whole else None


def run_command(spec: SweepSpec, space_fixed: Sequence[str], trial: Trial) -> str:
    """The command that runs a trial's config again, elsewhere."""
    words = ["preceptor", "run", spec.config, *space_fixed, *trial.overrides]
    return f"{shlex.join(words)} run.dir=NEW"


def write_results(folder: SweepFolder, spec: SweepSpec, results: Sequence[Result]) -> Path:
    """As JSON, for whoever goes on with them."""
    rows = [
        {
            "trial": result.trial.name,
            "status": result.trial.status,
            "overrides": list(result.trial.overrides),
            "metric": spec.metric,
            "value": result.point[1] if result.point and math.isfinite(result.point[1]) else None,
            "value_step": result.point[0] if result.point else None,
            "step": result.step,
            "seconds": result.trial.seconds,
            "attempts": result.trial.attempts,
            "gpus": result.trial.gpus,
            "reason": result.trial.reason,
            "run_dir": str(folder.run_dir(result.trial)),
        }
        for result in results
    ]
    path = folder.path / RESULTS_FILE
    write_whole(path, json.dumps(rows, indent=1).encode())
    return path


def table(spec: SweepSpec, results: Sequence[Result]) -> Table:
    """A line for each trial, a column for each axis."""
    from rich.table import Table

    from orchestrator.progress import duration

    keys = [text.partition("=")[0] for text in results[0].trial.overrides] if results else []
    shown = Table(
        "trial",
        "state",
        "step",
        *([spec.metric] if spec.metric else []),
        "time",
        *short(keys),
        box=None,
        pad_edge=False,
    )
    for result in results:
        value = [] if spec.metric is None else ["" if result.point is None else f"{result.point[1]:.4g}"]
        values = [text.partition("=")[2] for text in result.trial.overrides]
        running_s = 0.0 if result.trial.begun_s is None else time.time() - result.trial.begun_s
        seconds = result.trial.seconds + running_s
        taken = duration(seconds) if seconds else ""
        shown.add_row(result.trial.name, result.trial.status, str(result.step or ""), *value, taken, *values)
    return shown


def short(keys: Sequence[str]) -> list[str]:
    """Each key by as many of its last parts as tell it from the others: `optimizer.lr`."""
    found: list[str] = []
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        found.append(next(e for e in endings if not any(f".{other}".endswith(f".{e}") for other in others) or e == key))
    return found


def without_metric(folder: SweepFolder, spec: SweepSpec, results: Sequence[Result]) -> str | None:
    """What to say where no trial has the metric: which ones there are."""
    if spec.metric is None or any(result.point for result in results):
        return None
    names: list[str] = sorted({name for result in results for name in metric_names(folder.run_dir(result.trial))})
    return f"--metric: no trial has {spec.metric!r}; there are: {', '.join(names)}" if names else None
