"""Metrics to where people watch them. The ledger has them all in any case; a tracker that fails must not end a run."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from actors.errors import UserError
from actors.local_files import scratch_of
from configs.schema.run import RunConfig, TrackerName

TENSORBOARD_FOLDER = "tensorboard"
LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Tracker(Protocol):
    """Takes a stage's metrics, step by step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Of a step that is committed; a step comes once, also where a run is resumed."""

    def close(self) -> None:
        """Nothing follows."""


class TensorBoard:
    """Event files in the run directory, by tensorboardX."""

    def __init__(self, run_dir: Path, *, last_step: int) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        # what a killed driver wrote of steps that were never committed is hidden
        folder, suffix = (
            str(run_dir / TENSORBOARD_FOLDER),
            f".{last_step}",
        )  # two files of one second would have one name
        self._writer = SummaryWriter(folder, purge_step=last_step + 1, filename_suffix=suffix)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb's; the same one when the run is resumed. Keys and modes are wandb's own (`WANDB_API_KEY`, `WANDB_MODE`)."""

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=hashlib.sha256(str(run_dir).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(scratch_of(run_dir)),
            config=dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def check_trackers(names: Sequence[TrackerName]) -> None:
    """UserError where a tracker's library is not installed."""
    for name in names:
        if importlib.util.find_spec(LIBRARIES[name]) is None:
            raise UserError(f"run.trackers: {name} needs the library {LIBRARIES[name]}: pip install {LIBRARIES[name]}")


@contextmanager
def trackers(
    run: RunConfig, run_dir: Path, config: Mapping[str, Any], *, last_step: int, note: Callable[[str], None]
) -> Iterator[list[Guarded]]:
    """The trackers that the config names, each held so that its failure is told and ends only itself."""
    made: list[Guarded] = []
    for name in run.trackers:
        if name == "tensorboard":
            made.append(Guarded(name, TensorBoard(scratch_of(run_dir), last_step=last_step), last_step, note))
        else:
            made.append(Guarded(name, WeightsAndBiases(run_dir, run.wandb_project, config), last_step, note))
    try:
        yield made
    finally:
        for tracker in made:
            tracker.close()


class Guarded:
    """A tracker that is left alone after its first failure: a full disk or a lost network is no reason to lose a run. Steps that were
    committed before, and are computed again after a resume, it had already."""

    def __init__(self, name: str, tracker: Tracker, last_step: int, note: Callable[[str], None]) -> None:
        self._name, self._tracker, self._last_step, self._note = name, tracker, last_step, note
        self._broken = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self._last_step:
            self.add(step, metrics)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Further metrics of a step, or of what was before the first (0), that it cannot have had."""
        self._try(lambda: self._tracker.log(step, metrics))

    def close(self) -> None:
        self._try(self._tracker.close)

    def _try(self, what: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            what()
        except Exception as error:  # noqa: BLE001 - supervision: whatever a tracker raises, the run goes on
            self._broken = True
            self._note(
                f"{self._name}: {type(error).__name__}: {error}. It gets no more of this run; the ledger has everything"
            )
