"""What a run directory says of itself, as records: of a pipeline or of one stage, finished or not. Nothing is started or changed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.errors import PreceptorError
from actors.reward_trainer import STATS_FILE, RewardEvaluation
from actors.store import read_bytes
from configs.schema import Config, Pipeline, Stage
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from orchestrator.evaluation import EVALUATIONS_FOLDER, Evaluation, read_evaluations
from orchestrator.ledger import Entry, Ledger, LedgerEntry, SupervisedEntry
from orchestrator.lineage import LINEAGE_FILE, Lineage, read_lineage
from orchestrator.report.answers import Comparison, RankedRow, compare, read_rankings
from orchestrator.report.phases import seconds_by_phase
from orchestrator.report.trajectories import EarlyAndLate, early_and_late, held_out_answers
from orchestrator.run_dir import (
    CONFIG_FILE,
    DONE_FILE,
    EXPORT_FOLDER,
    PLAN_FILE,
    rankings_file,
    require_run,
    stored_config,
)

Points = tuple[tuple[int, float], ...]
"""(step, value), of the steps that have one."""

State = Literal["finished", "not finished", "not begun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """One stage."""

    name: str
    """Its name in the pipeline; its kind where it is the whole run."""
    folder: Path
    config: Stage
    state: State
    num_steps: int
    """Committed."""
    seconds: float | None
    """From the file of its config to its last file, pauses included; None where it has not begun."""
    metrics: dict[str, Points]
    phases: tuple[tuple[int, dict[str, float]], ...]
    """Of a PPO stage: step and seconds by phase."""
    evaluation: RewardEvaluation | None
    """Of a finished reward model."""
    rankings: tuple[RankedRow, ...]
    """Of a stage `rank`."""
    answers: EarlyAndLate | None
    """Of a PPO stage."""
    lineage: Lineage | None
    """Of its export; None where there is none, as in runs of versions that wrote none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A whole run."""

    run_dir: Path
    config: Config
    config_text: str
    stages: tuple[StageReport, ...]
    finished: bool
    comparison: Comparison | None
    """Of `rank` stages that answered the same prompts."""

    @property
    def seconds(self) -> float | None:
        """Of all stages that have begun."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if known else None


def read_run(path: str) -> RunReport:
    """Everything that a report says of the run in folder `path`.

    Raises:
        UserError: where it holds no run.
        PreceptorError: for a damaged ledger, ranking or evaluation, naming the file.
    """
    run_dir = require_run(path)
    config = stored_config(run_dir)
    if isinstance(config, Pipeline):
        stages = tuple(_read_stage(name, stage, run_dir / name) for name, stage in config.stages.items())
    else:
        stages = (_read_stage(config.stage, config, run_dir),)
    return RunReport(
        run_dir=run_dir,
        config=config,
        config_text=read_bytes(run_dir / CONFIG_FILE).decode("utf-8"),
        stages=stages,
        finished=(run_dir / DONE_FILE).exists(),
        comparison=compare([(s.name, s.config, s.rankings) for s in stages if isinstance(s.config, RankStage)]),
    )


def _read_stage(name: str, config: Stage, folder: Path) -> StageReport:
    ppo = _entries(Ledger(folder, LedgerEntry)) if isinstance(config, PPOStage) else []
    others = _entries(Ledger(folder, SupervisedEntry)) if not isinstance(config, PPOStage) else []
    num_steps = len(ppo) + len(others)
    evaluations = read_evaluations(folder / EVALUATIONS_FOLDER, num_steps) if ppo else []
    return StageReport(
        name=name,
        folder=folder,
        config=config,
        state=_state(folder),
        num_steps=num_steps,
        seconds=_seconds(folder),
        metrics=_series([*ppo, *others]) | _series(evaluations),
        phases=tuple(seconds_by_phase(ppo)),
        evaluation=_evaluation(folder / EXPORT_FOLDER / STATS_FILE),
        rankings=_rankings(folder, num_steps) if isinstance(config, RankStage) else (),
        answers=held_out_answers(folder / EVALUATIONS_FOLDER, evaluations) or early_and_late(folder, ppo),
        lineage=_lineage(folder / EXPORT_FOLDER),
    )


def _entries(ledger: Ledger[Entry]) -> list[Entry]:
    return [ledger.read(step) for step in range(1, ledger.last_step() + 1)]


def _state(folder: Path) -> State:
    if (folder / DONE_FILE).exists():
        return "finished"
    return "not finished" if (folder / PLAN_FILE).exists() else "not begun"


def _seconds(folder: Path) -> float | None:
    if not (folder / PLAN_FILE).exists():
        return None
    ends = [path.stat().st_mtime for path in (folder / DONE_FILE, *folder.glob("ledger/[0-9]*.json")) if path.exists()]
    return max(0.0, max(ends) - (folder / CONFIG_FILE).stat().st_mtime) if ends else None


def _series(entries: Sequence[LedgerEntry | SupervisedEntry | Evaluation]) -> dict[str, Points]:
    names = {name: None for entry in entries for name in entry.metrics}
    return {
        name: tuple(
            (entry.step, entry.metrics[name])
            for entry in entries
            if name in entry.metrics and math.isfinite(entry.metrics[name])
        )
        for name in names
    }


def _evaluation(path: Path) -> RewardEvaluation | None:
    """Read here and not by `load_reward_stats`, which refuses what PPO can't use: a report shows that too."""
    if not path.exists():
        return None
    try:
        return RewardEvaluation.from_json(json.loads(read_bytes(path)))
    except (ValueError, TypeError, AttributeError) as error:
        raise PreceptorError(f"{path} is damaged: {error}") from error


def _rankings(folder: Path, num_steps: int) -> tuple[RankedRow, ...]:
    """From the waves' own files, which an unfinished stage has too."""
    paths = [folder / rankings_file(step) for step in range(1, num_steps + 1)]
    return read_rankings(path for path in paths if path.exists())


def _lineage(export: Path) -> Lineage | None:
    return read_lineage(str(export)) if (export / LINEAGE_FILE).exists() else None
