"""A sweep's folder: what was asked, and how it stands with each trial. It outlives the process that directs the sweep.

sweep.yaml          what was asked; written last at the start: without it there is no sweep
inputs/0001.yaml   each trial's whole config
records/0001.json   how it stands, written whole
trials/0001/        its run directory
logs/0001-1.log     what its first attempt's driver printed
results.json        at the end: all trials, best first
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from actors.durable import write_whole
from actors.errors import UserError
from actors.store import create_only
from configs.load import dump_config
from configs.schema import Config
from configs.yaml_file import read_yaml, write_yaml
from orchestrator.run_dir import CONFIG_FILE, DONE_FILE, locked

FORMAT = 1
SWEEP_FILE = "sweep.yaml"
RESULTS_FILE = "results.json"
LOG_FILE = "logs/sweep.log"

Search = Literal["grid", "random", "asha"]
Mode = Literal["max", "min"]
Status = Literal["waiting", "running", "finished", "pruned", "stopped", "failed"]
"""`pruned`: search ended it early. `stopped`: it was asked to stop and can go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """Successive halving (ASHA, Li et al. 2020): at `grace_steps`, and at each multiple of it by a power of `reduction`, the best
    1/`reduction` of those that have come so far go on."""

    max_steps: int
    grace_steps: int
    reduction: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """What was asked."""

    id: str
    """Also in the metadata of its jobs."""
    config: str
    """The file, as typed."""
    arguments: tuple[str, ...]
    """`key=value`, as typed."""
    search: Search
    seed: int
    """Of random values."""
    metric: str | None
    mode: Mode
    parallel: int
    """Trials that run at once."""
    gpus: int | None
    """GPUs that running trials may hold together; None: no limit."""
    retries: int
    """How often a trial that failed is tried again."""
    address: str | None
    """The job server's; None: a Ray that the sweep starts."""
    working_dir: str
    """Folder that jobs start in, on a cluster in a copy of it."""
    env: tuple[str, ...]
    """Names of environment variables that jobs on a cluster get. Their values are nowhere in this folder."""
    halving: Halving | None
    registry: str | None = None
    """Where trials note themselves, as `preceptor run` takes it; never with a password. None: where their environment says."""
    skip_memory_check: bool = False
    """Trials start also where their estimate says that memory will not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the sweep, and how it stands with it."""

    number: int
    """From 1."""
    overrides: tuple[str, ...]
    """Of the axes."""
    gpus: int
    """That its plan takes."""
    status: Status = "waiting"
    attempts: int = 0
    """How often a job of it was begun."""
    failures: int = 0
    job: str | None = None
    """Of the newest attempt."""
    begun_s: float | None = None
    """When the newest attempt was begun, in seconds since 1970."""
    seconds: float = 0.0
    """That its attempts took together, the running one left out."""
    reason: str = ""
    """Why it failed."""

    @property
    def name(self) -> str:
        return f"{self.number:04d}"


class SweepFolder:
    """The files of one sweep. Who writes holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run_dir(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.name

    def config_file(self, trial: Trial) -> Path:
        return self.path / "inputs" / f"{trial.name}.yaml"

    def log_file(self, trial: Trial) -> Path:
        """What the newest attempt's driver printed."""
        return self.path / "logs" / f"{trial.name}-{trial.attempts}.log"

    def begun(self, trial: Trial) -> bool:
        """Its run directory holds a run, which can be resumed."""
        return (self.run_dir(trial) / CONFIG_FILE).exists()

    def finished(self, trial: Trial) -> bool:
        return (self.run_dir(trial) / DONE_FILE).exists()

    def committed_s(self, trial: Trial) -> float | None:
        """When its run directory, or a stage's in it, got its newest step, in seconds since 1970; None where there is none."""
        folders = [folder for pattern in (LEDGER, f"*/{LEDGER}") for folder in self.run_dir(trial).glob(pattern)]
        return max((folder.stat().st_mtime for folder in folders), default=None)

    def save(self, trial: Trial) -> None:
        write_whole(self._record(trial.number), json.dumps(asdict(trial), indent=1).encode())

    def _record(self, number: int) -> Path:
        return self.path / "records" / f"{number:04d}.json"

    def write(self, spec: SweepSpec, trials: Sequence[Trial], configs: Sequence[Config]) -> None:
        """A new sweep. Whole when the last file is there."""
        for trial, config in zip(trials, configs, strict=True):
            create_only(self.config_file(trial), dump_config(config).encode())
            self.save(trial)
        asked = {"format": FORMAT, "num_trials": len(trials), **asdict(spec)}
        create_only(self.path / SWEEP_FILE, write_yaml(json.loads(json.dumps(asked))).encode())

    def spec(self) -> SweepSpec:
        """UserError where the folder holds no sweep that this version reads."""
        return self._read()[0]

    def trials(self) -> list[Trial]:
        """All, by number."""
        return [self._read_trial(number) for number in range(1, self._read()[1] + 1)]

    def _read(self) -> tuple[SweepSpec, int]:
        path = self.path / SWEEP_FILE
        if not path.is_file():
            raise UserError(
                f"{self.path} holds no sweep: {SWEEP_FILE} is missing; allowed: the --dir of an earlier `preceptor sweep`"
            )
        asked = read_yaml(path)[0]
        if asked.pop("format", None) != FORMAT:
            raise UserError(f"{path} is of another version of preceptor; allowed: format {FORMAT}")
        try:
            num_trials = int(asked.pop("num_trials"))
            halving = asked.pop("halving")
            lists: dict[str, Any] = {name: tuple(asked.pop(name)) for name in ("arguments", "env")}
            return SweepSpec(**asked, **lists, halving=Halving(**halving) if halving else None), num_trials
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def _read_trial(self, number: int) -> Trial:
        path = self._record(number)
        try:
            fields = json.loads(path.read_bytes())
            return Trial(**{**fields, "overrides": tuple(fields["overrides"])})
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} can't be read or is damaged: {error}; allowed: to put it back from a copy"
            ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[SweepFolder]:
    """A new sweep's folder, taken. UserError where it is occupied or can't be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dir: {path} can't be made ({error.strerror}); allowed: a new or empty folder") from error
    if any(path.iterdir()):
        raise UserError(
            f"--dir: {path} is not empty; allowed: a new or empty folder. `preceptor sweep --resume {path}` goes on with a sweep"
        )
    with locked(path):
        yield SweepFolder(path)


@contextmanager
def existing_folder(path: Path) -> Iterator[SweepFolder]:
    """The folder of an existing sweep, taken. UserError where it holds none, or another process directs it."""
    folder = SweepFolder(path)
    folder.spec()
    with locked(path):
        yield folder


# --------------------------------------------------------------------------------------------------------------------- metrics

Point = tuple[int, float]
LEDGER = "ledger"
ENTRIES = (LEDGER, "evaluations")
"""Folders whose files don't change once they are there. An evaluation counts when the run relies on it; here a step early does no harm."""


class Followed:
    """A run directory that grows: each entry of its ledgers and evaluations is read once. Of a pipeline the last stage counts that has
    what is asked for."""

    def __init__(self, run_dir: Path, metric: str | None) -> None:
        """`metric`: the one that is followed; without one no entry is read."""
        self._run_dir, self._metric = run_dir, metric
        self._newest: dict[Path, int] = {}
        """Step of the newest entry that was seen, by folder of entries."""
        self.step = 0
        """Newest committed one; 0 where there is none."""
        self.point: Point | None = None
        """The last step that has the metric, with its value."""

    def look(self) -> list[Point]:
        """(step, value) of what has come since the last look and has the metric, in order, evaluations included."""
        news: list[Point] = []
        for stage in _stage_folders(self._run_dir):
            points: dict[int, float] = {}
            for name in ENTRIES:
                folder = stage / name
                points |= self._unread(folder)
                if name == LEDGER:
                    self.step = self._newest.get(folder) or self.step
            news = sorted(points.items()) or news
        if news:
            self.point = news[-1]
        return news

    def _unread(self, folder: Path) -> dict[int, float]:
        steps = [step for step in _steps(folder) if step > self._newest.get(folder, 0)]
        if steps:
            self._newest[folder] = steps[-1]
        if self._metric is None:
            return {}
        entries = ((step, _metrics(folder, step)) for step in steps)
        return {step: float(metrics[self._metric]) for step, metrics in entries if self._metric in metrics}


def metric_names(run_dir: Path) -> list[str]:
    """Of all committed steps, sorted."""
    folders = [stage / name for stage in _stage_folders(run_dir) for name in ENTRIES]
    return sorted({name for folder in folders for step in _steps(folder) for name in _metrics(folder, step)})


def _stage_folders(run_dir: Path) -> list[Path]:
    """The run's own folder, and those of a pipeline's stages in the order in which they began."""
    stages = [path.parent for path in run_dir.glob(f"*/{CONFIG_FILE}")]
    return [run_dir, *sorted(stages, key=lambda folder: (folder / CONFIG_FILE).stat().st_mtime_ns)]


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.json") if path.stem.isdigit())


def _metrics(folder: Path, step: int) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / f"{step:08d}.json").read_bytes())["metrics"]
    return metrics
