"""A run as its directory tells it, for the registry. Nothing is changed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.errors import PreceptorError, UserError
from actors.store import is_local, reading, run_path
from configs.schema import DATA_KEY, Config, Pipeline, Stage, stage_models
from configs.schema.ppo import PPOStage
from orchestrator.checkpoints import MANIFEST
from orchestrator.evaluation import EVALUATIONS_FOLDER, read_evaluations
from orchestrator.ledger import Ledger, LedgerEntry, SupervisedEntry
from orchestrator.lineage import lineage_beside, lineage_of_model
from orchestrator.registry.records import RunRecord, StepRecord, WholeRun
from orchestrator.run_dir import (
    CONFIG_FILE,
    DATA_FILE,
    EXPORT_FOLDER,
    MODELS_FILE,
    OVERRIDES_FILE,
    PLAN_FILE,
    require_run,
    stored_config,
)
from orchestrator.sessions import Session, lock_digest, read_sessions, state_of

REPORT_FILE = "report.html"
CHECKPOINTS_FOLDER = "checkpoints"


def read_runs(run_dir: Path, *, steps: bool = True) -> list[WholeRun]:
    """The run in a folder, and after it its stages where it is a pipeline. A stage's folder gives that stage alone.

    `steps=False` leaves steps and their metrics out: they are a request each where the folder is a store's.

    Raises:
        UserError: where it holds no run.
        PreceptorError: for a damaged file, naming it, and where a store can't be read.
    """
    with reading(run_dir):
        return _read_runs(require_run(str(run_dir)), steps=steps)


def _read_runs(folder: Path, *, steps: bool) -> list[WholeRun]:
    config = stored_config(folder)
    if not isinstance(config, Pipeline):
        return [_whole(folder, config, part_of=_pipeline_of(folder), with_steps=steps)]
    above = _record(folder, config)
    stages = [
        _whole(folder / name, stage, part_of=above.id, with_steps=steps)
        for name in config.stages
        if (folder / name / CONFIG_FILE).exists() and not isinstance(stage := stored_config(folder / name), Pipeline)
    ]
    whole = replace(
        above,
        num_steps=sum(one.run.num_steps for one in stages),
        gpu_s=sum(one.run.gpu_s for one in stages),
    )
    return [WholeRun(run=whole, packages=_packages(folder)), *stages]


def read_steps(run_dir: Path) -> list[StepRecord]:
    """Steps and evaluations of the run in a folder; a pipeline has none of its own."""
    config = stored_config(run_dir)
    return [] if isinstance(config, Pipeline) else _steps(run_dir, config)


def find_runs(folder: Path) -> Iterator[Path]:
    """Run directories in a folder, itself included; a pipeline's stages belong to it."""
    if not is_local(folder):
        found = {config.parent for config in folder.glob(f"**/{CONFIG_FILE}")}
        yield from sorted((one for one in found if found.isdisjoint(one.parents)), key=str)
        return
    for place, names, files in os.walk(folder):
        names.sort()
        if CONFIG_FILE in files:
            names.clear()
            yield Path(place)


def run_id_of(run_dir: Path) -> str | None:
    """Of the run in a folder; None where there is none. Runs of versions that kept no sessions are known by config and place."""
    if sessions := read_sessions(run_dir):
        return sessions[0].run_id
    try:
        config = (run_dir / CONFIG_FILE).read_bytes()
    except OSError:
        return None
    return hashlib.sha256(config + str(run_dir).encode()).hexdigest()[:32]


# ----------------------------------------------------------------------------------------------------------------- one stage


def _whole(folder: Path, config: Stage, *, part_of: str | None, with_steps: bool) -> WholeRun:
    steps = _steps(folder, config) if with_steps else []
    record = replace(
        _record(folder, config),
        part_of=part_of,
        metrics=last_metrics(steps),
        num_steps=_ledger(folder, config).last_step(),
        parents=_parents(config),
        artefacts=_artefacts(folder),
    )
    return WholeRun(run=record, steps=tuple(steps), packages=_packages(folder))


def _record(folder: Path, config: Config) -> RunRecord:
    """What pipelines have too."""
    sessions, text = read_sessions(folder), (folder / CONFIG_FILE).read_bytes()
    last = sessions[-1] if sessions else None
    plan, data = _json(folder / PLAN_FILE), _json(folder / DATA_FILE)
    run_id = run_id_of(folder)
    assert run_id is not None
    state = state_of(folder, sessions)
    ends = [_end(folder, one, at_work=one is last and state == "running") for one in sessions]
    seconds = [max(0.0, end - session.started) for session, end in zip(sessions, ends, strict=True)]
    return RunRecord(
        id=run_id,
        name=folder.name,
        stage=config.stage,
        state=state,
        error=last.error if last is not None and state == "failed" else "",
        run_dir=str(folder),
        config_sha256=hashlib.sha256(text).hexdigest(),
        config=config.model_dump(mode="json"),
        overrides=_json(folder / OVERRIDES_FILE) or [],
        code=last.code if last else {},
        lock_sha256=lock_digest(last.packages) if last else "",
        machine=last.machine if last else {},
        plan=plan,
        data={DATA_KEY: data["fingerprint"]} if data else {},
        models=_json(folder / MODELS_FILE) or {},
        sessions=[_told(session) for session in sessions],
        started_at=sessions[0].started if sessions else (folder / CONFIG_FILE).stat().st_mtime,
        ended_at=ends[-1] if ends and state != "running" else None,
        active_s=sum(seconds),
        gpu_s=sum(one * session.num_gpus for one, session in zip(seconds, sessions, strict=True)),
    )


def _ledger(folder: Path, config: Stage) -> Ledger[LedgerEntry] | Ledger[SupervisedEntry]:
    return Ledger(folder, LedgerEntry) if isinstance(config, PPOStage) else Ledger(folder, SupervisedEntry)


def _steps(folder: Path, config: Stage) -> list[StepRecord]:
    ledger = _ledger(folder, config)
    last = ledger.last_step()
    found = []
    for number in range(1, last + 1):
        entry = ledger.read(number)
        digest = entry.digests.step if isinstance(entry, LedgerEntry) else entry.digest
        found.append(step_record(number, entry.metrics, digest=digest))
    evaluations = read_evaluations(folder / EVALUATIONS_FOLDER, last) if isinstance(config, PPOStage) else []
    found += [step_record(one.step, one.metrics, kind="evaluation") for one in evaluations]
    # as the registry gives them
    return sorted(found, key=lambda one: (one.step, one.kind))


def step_record(step: int, metrics: Mapping[str, float], *, kind: str = "step", digest: str = "") -> StepRecord:
    """As it is stored: JSON in a database has no NaN and no infinity."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return StepRecord(step=step, kind=kind, metrics=finite, digest=digest)


def last_metrics(steps: list[StepRecord]) -> dict[str, float]:
    """Each metric's last value."""
    return {
        name: value
        for one in sorted(steps, key=lambda step: (step.step, step.kind == "evaluation"))
        for name, value in one.metrics.items()
    }


def _artefacts(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if (folder / EXPORT_FOLDER).is_dir():
        found.append({"kind": "export", "path": str(folder / EXPORT_FOLDER)})
    checkpoints = sorted(path.parent for path in (folder / CHECKPOINTS_FOLDER).glob(f"*/{MANIFEST}"))
    found += [{"kind": "checkpoint", "path": str(path), "step": int(path.name)} for path in checkpoints]
    if (folder / REPORT_FILE).exists():
        found.append({"kind": "report", "path": str(folder / REPORT_FILE)})
    return found


def _parents(config: Stage) -> list[dict[str, Any]]:
    """Models and data that tell what made them."""
    mixed = {f"data.mix.{at}.path": one.path for at, one in enumerate(config.data.mix)}
    named = {**stage_models(config), DATA_KEY: config.data.path, **mixed}
    found = []
    for key, path in named.items():
        lineage = lineage_beside(path) if key.endswith(".path") else lineage_of_model(path)
        if lineage is not None:
            made_in = run_path(lineage["run_dir"])
            found.append(
                {
                    "key": key,
                    "path": path,
                    "run_dir": str(made_in),
                    "run_id": run_id_of(made_in),
                    "step": lineage["step"],
                }
            )
    return found


# ---------------------------------------------------------------------------------------------------------------- its parts


def _end(folder: Path, session: Session, *, at_work: bool) -> float:
    """When a session ended: as it says; now, where it has not; the last committed step, where it was killed."""
    if session.ended is not None:
        return session.ended
    if at_work:
        return time.time()
    files = [*folder.glob("ledger/[0-9]*.json"), *folder.glob("*/ledger/[0-9]*.json")]
    return max([session.started, *(path.stat().st_mtime for path in files)])


def _told(session: Session) -> dict[str, Any]:
    return {
        "number": session.number,
        "started": session.started,
        "ended": session.ended,
        "state": session.state,
        "host": session.host,
        "user": session.user,
        "cwd": session.cwd,
        "ray_job": session.ray_job,
        "num_gpus": session.num_gpus,
    }


def _packages(folder: Path) -> dict[str, str]:
    sessions = read_sessions(folder)
    return sessions[-1].packages if sessions else {}


def _pipeline_of(folder: Path) -> str | None:
    """The pipeline that a stage's folder lies in."""
    above = folder.parent / CONFIG_FILE
    if not above.exists():
        return None
    with suppress(PreceptorError, UserError):
        config = stored_config(folder.parent)
        if isinstance(config, Pipeline) and folder.name in config.stages:
            return run_id_of(folder.parent)
    return None


def _json(path: Path) -> Any:
    """What a JSON file holds; None where there is none."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise PreceptorError(f"{path} is damaged: {error}") from error
