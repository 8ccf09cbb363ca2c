"""Run directories that the real records wrote, without a run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.algorithms.moments import Moments
from actors.tasks import Busy, WaveSummary, WrittenFile
from configs.load import dump_config, load_config
from configs.schema import Pipeline
from orchestrator.evaluation import EVALUATIONS_FOLDER, Evaluation, evaluation_file
from orchestrator.ledger import Ledger, LedgerEntry, StepDigests, SupervisedEntry
from orchestrator.run_dir import rankings_file

BEGAN = 1_790_000_000.0
"""When every stage began, in seconds since 1970."""


def rank_section(model: str) -> dict[str, Any]:
    return {
        "stage": "rank",
        "data": {"path": "prompts.jsonl"},
        "policy": {"model": model},
        "rollout": {"responses_per_prompt": 2},
        "annotator": {"function": "judges:good"},
    }


REWARD = {"stage": "reward", "data": {"path": "pairs.jsonl"}, "model": {"model": "base"}}
PPO = {
    "stage": "ppo",
    "data": {"path": "prompts.jsonl"},
    "policy": {"model": "base"},
    "critic": {"init_from": "policy"},
    "reward": {"functions": [{"function": "judges:good"}]},
    "ppo": {"steps": 3, "prompts_per_step": 2},
}


def write_pipeline(run: Path, **stages: dict[str, Any]) -> None:
    """Config of a pipeline, none of whose stages has begun."""
    write_config(run, {"stage": "pipeline", "stages": stages})


def write_config(run: Path, section: dict[str, Any]) -> None:
    """A run directory with nothing but its config, written out as a run does it."""
    run.mkdir(parents=True)
    path = run / "config.yaml"
    path.write_text(json.dumps({**section, "run": {"dir": str(run)}}), "utf-8")
    path.write_text(dump_config(load_config(path)), "utf-8")


def begin(folder: Path) -> None:
    """The stage in `folder`, of a pipeline or alone, has a plan."""
    if not folder.exists():
        folder.mkdir()
        pipeline = load_config(folder.parent / "config.yaml")
        assert isinstance(pipeline, Pipeline)
        (folder / "config.yaml").write_text(dump_config(pipeline.stages[folder.name]), "utf-8")
    (folder / "plan.json").write_text("{}")
    os.utime(folder / "config.yaml", (BEGAN, BEGAN))


def finish(folder: Path, *, after_s: float) -> None:
    (folder / "done.json").write_text("{}")
    for path in (folder / "done.json", *folder.glob("ledger/*.json")):
        os.utime(path, (BEGAN + after_s,) * 2)


def commit(folder: Path, step: int, **metrics: float) -> None:
    Ledger(folder, SupervisedEntry).commit(SupervisedEntry(step=step, digest="", metrics=metrics))


def write_rankings(folder: Path, rows: Sequence[tuple[str, Sequence[str], Sequence[float]]]) -> None:
    """One wave of (prompt, responses, scores), with a prompt's place as its id."""
    begin(folder)
    path = folder / rankings_file(1)
    path.parent.mkdir()
    lines = []
    for at, (prompt, responses, scores) in enumerate(rows):
        ranks = [1 + sum(other > score for other in scores) for score in scores]
        row = {"id": str(at), "prompt": prompt, "responses": responses, "ranks": ranks, "scores": scores}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), "utf-8")
    commit(folder, 1, score=0.5, tied_frac=0.0, distinct_frac=1.0, response_tokens=4.0, truncated_frac=0.0)


def evaluation(folder: Path, step: int, metrics: dict[str, float], answers: dict[str, str]) -> None:
    """An evaluation of PPO, with one answer to each prompt by its id."""
    name = f"{step:08d}/wave-0000-rank-0000.jsonl"
    judged = {prompt_id: [0.5] for prompt_id in answers}
    path = evaluation_file(folder / EVALUATIONS_FOLDER, step)
    path.with_suffix("").mkdir(parents=True)
    path.write_text(json.dumps(asdict(Evaluation(step=step, metrics=metrics, judged=judged, files=(name,)))), "utf-8")
    said = {"score": 0.5, "judged": 0.5, "kl": None, "truncated": False}
    rows = [{"prompt_id": one, "prompt": f"prompt {one}", "response": text, **said} for one, text in answers.items()]
    (folder / EVALUATIONS_FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def ppo_step(folder: Path, step: int, exchanges: Sequence[tuple[str, str, str, float]]) -> None:
    """A committed step with stored trajectories: (prompt's id, prompt, response, score)."""
    name = f"trajectories/{step:08d}/wave.parquet"
    (folder / name).parent.mkdir(parents=True)
    ids, prompts, responses, scores = zip(*exchanges, strict=True)
    table = {"prompt_id": ids, "prompt": prompts, "response": responses, "score": scores}
    pq.write_table(pa.table({key: list(values) for key, values in table.items()}), folder / name)
    wave = WaveSummary(
        wave=0,
        lengths=(10,) * len(ids),
        num_loss_tokens=(5,) * len(ids),
        prompt_ids=ids,
        truncated=(False,) * len(ids),
        token_digest="d",
        busy=Busy(started=100.0 * step, seconds=3.0),
    )
    entry = LedgerEntry(
        step=step,
        policy_version=step,
        waves=(wave,),
        advantage_moments=Moments(count=1, mean=0.0, m2=0.0),
        kl_coef=0.05,
        kl_controller={"coef": 0.05},
        trajectory_files=((WrittenFile(name=name, sha256="", num_bytes=0),),),
        digests=StepDigests(tokens="", rewards="", advantages="", policy="", critic=""),
        updates={"policy": (), "critic": ()},
        metrics={
            "score": 0.25 * step,
            "kl": 0.5,
            "kl_coef": 0.05,
            "critic/value_loss": 1.0,
            "tokens_per_s": float("nan"),
        },
        seconds={"generate": 3.0, "score": 1.0, "experience": 0.5, "update": 4.0, "sync": 1.0, "digest": 0.5},
    )
    Ledger(folder, LedgerEntry).commit(entry)
