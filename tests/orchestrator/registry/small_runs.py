"""Run directories as a driver leaves them, without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.load import dump_config, parse_config
from configs.schema import Config, Pipeline, Stage
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.plan import make_plan, plan_json
from orchestrator.run_dir import CONFIG_FILE, DATA_FILE, DONE_FILE, MODELS_FILE, OVERRIDES_FILE, PLAN_FILE
from orchestrator.sessions import EndState, begin_session, end_session
from tests.orchestrator.small_stages import LAPTOP, merged


def values(run_dir: Path, **changes: Any) -> dict[str, Any]:
    """Of a small stage of fine-tuning."""
    small: dict[str, Any] = {
        "stage": "sft",
        "run": {"dir": str(run_dir), "deterministic": True},
        "data": {"path": "rows.jsonl"},
        "model": {"model": "m", "optimizer": {"lr": 1e-3}},
    }
    return merged(small, changes)


def make_run(
    run_dir: Path,
    *,
    losses: tuple[float, ...] = (3.0, 2.0, 1.0),
    end: EndState | None = "finished",
    num_gpus: int = 0,
    **changes: Any,
) -> Path:
    """A run with a committed step for each loss; `end=None`: its driver was killed."""
    config = parse_config(values(run_dir, **changes))
    assert not isinstance(config, Pipeline)
    write_config(run_dir, config)
    (run_dir / OVERRIDES_FILE).write_text('["model.optimizer.lr=1e-3"]')
    begin(run_dir, config)
    session = begin_session(run_dir, num_gpus=num_gpus)
    for step, loss in enumerate(losses, start=1):
        commit(run_dir, step, loss)
    if end == "finished":
        (run_dir / DONE_FILE).write_text("{}")
    if end is not None:
        end_session(run_dir, session, end, "the disk is full" if end == "failed" else "")
    return run_dir


def write_config(run_dir: Path, config: Config) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG_FILE).write_text(dump_config(config))


def begin(run_dir: Path, config: Stage) -> None:
    (run_dir / DATA_FILE).write_text(json.dumps({"fingerprint": "f" * 64}))
    (run_dir / MODELS_FILE).write_text(json.dumps({"model.model": {"hidden_size": 8, "weights": "w1"}}))
    (run_dir / PLAN_FILE).write_text(plan_json(make_plan(config, LAPTOP)))


def commit(run_dir: Path, step: int, loss: float) -> None:
    metrics = {"loss": loss, "grad_norm": float("nan")}
    Ledger(run_dir, SupervisedEntry).commit(SupervisedEntry(step=step, digest=f"{step}/{loss}", metrics=metrics))
