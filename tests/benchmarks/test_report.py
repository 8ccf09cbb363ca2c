"""The report of a run, from a ledger that the real records wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.algorithms.moments import Moments
from actors.reward_trainer import STATS_FILE, RewardEvaluation
from actors.supervised_trainer import write_evaluation
from actors.tasks import Busy, WaveSummary
from benchmarks.ledger_tables import busy_table, memory_table, phase_table, sync_table
from benchmarks.report import main
from benchmarks.table import Cell, Table
from configs.load import dump_config
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from orchestrator.ledger import Ledger, LedgerEntry, StepDigests, SupervisedEntry
from orchestrator.plan import make_plan, plan_json
from orchestrator.report.phases import step_seconds

PPO = PPOStage.model_validate(
    {
        "stage": "ppo",
        "run": {"dir": "runs/x"},
        "data": {"path": "prompts.jsonl"},
        "policy": {"model": "some/model"},
        "critic": {"init_from": "policy"},
        "reward": {"functions": [{"function": "rewards:pays"}]},
        "ppo": {"steps": 3, "prompts_per_step": 2, "epochs": 2},
    }
)
REWARD = RewardStage.model_validate(
    {"stage": "reward", "run": {"dir": "runs/y"}, "data": {"path": "pairs.jsonl"}, "model": {"model": "some/model"}}
)
EVALUATION = RewardEvaluation(
    num_groups=8,
    num_pairs=8,
    pair_accuracy=0.625,
    ece=0.125,
    length_correlation=None,
    mean=0.5,
    std=2.0,
    data_fingerprint="f",
)


def entry(step: int, generate_s: float, *, memory: bool = True) -> LedgerEntry:
    """Ten tokens written, of 30 in all; step n starts at 100 n seconds."""
    wave = WaveSummary(
        wave=0,
        lengths=(10, 20),
        num_loss_tokens=(4, 6),
        prompt_ids=("a", "b"),
        truncated=(False, True),
        token_digest="c",
        busy=Busy(started=100.0 * step, seconds=generate_s),
    )
    metrics = {
        "score": 0.1 * step,
        "kl": 0.01 * step,
        "logprob_gap": 1e-6,
        "response_tokens": 5.0,
        "tokens_per_s": 10 / generate_s,
        "idle_frac": 0.25,
        "sync/seconds": 0.5,
        "sync/bytes": float(2**20),
        "sync/probe_gap": 1e-6,
        "busy_s/rollout": generate_s,
    }
    if memory:
        metrics |= {"peak_memory_bytes/policy": 300.0 * 2**20, "peak_memory_bytes/rollout": 700.0 * 2**20}
    if step > 1:
        metrics |= {"policy/entropy": 3.5, "policy/clip_frac": 0.125}
    return LedgerEntry(
        step=step,
        policy_version=step,
        waves=(wave,),
        advantage_moments=Moments(count=10, mean=0.0, m2=1.0),
        kl_coef=0.05,
        kl_controller={"coef": 0.05},
        trajectory_files=((),),
        digests=StepDigests(tokens="1", rewards="2", advantages="3", policy="4", critic="5"),
        updates={"policy": (), "critic": ()},
        metrics=metrics,
        seconds={"generate": generate_s, "score": 1.0, "experience": 3.0, "update": 4.0, "sync": 0.75, "digest": 0.25},
    )


ENTRIES = [entry(1, 50.0), entry(2, 2.0), entry(3, 4.0)]


def rows(table: Table | None) -> dict[Cell, tuple[Any, ...]]:
    assert table is not None
    return {row[0]: row[1:] for row in table.rows}


def test_phases_are_medians_without_the_first_step() -> None:
    table = phase_table(ENTRIES, PPO)
    found = rows(table)
    assert found["generate"] == (3.0, pytest.approx((10 / 2 + 10 / 4) / 2))
    assert found["score"] == (1.0, 30.0)
    assert found["update"] == (4.0, 60 / 4)  # two epochs read every token twice
    assert found["sync"] == (0.75, None)
    # step 2 lasts 100 s, of which its phases are 2 + 1 + 3 + 4 + 0.75 + 0.25
    assert found["rest: ledger, checkpoint, next prompts"] == (100.0 - 11.0, None)
    assert found["whole step"] == (100.0, 10 / 100)
    assert "0.25" in table.note


def test_a_single_step_is_reported_as_it_is() -> None:
    found = rows(phase_table(ENTRIES[:1], PPO))
    assert found["generate"] == (50.0, 10 / 50)
    assert "whole step" not in found
    assert step_seconds(ENTRIES) == [100.0, 100.0]


def test_sync_memory_and_work_have_their_units() -> None:
    sync = rows(sync_table(ENTRIES))
    assert (sync["MiB sent"], sync["MiB/s"], sync["with the probe, ms"]) == ((1.0,), (2.0,), (750.0,))
    assert rows(memory_table(ENTRIES[-1].metrics)) == {"policy": (300.0,), "rollout": (700.0,)}
    assert memory_table(entry(1, 1.0, memory=False).metrics) is None
    assert rows(busy_table(ENTRIES)) == {"rollout": (3.0,)}


def write_ppo(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(PPO))
    (folder / "plan.json").write_text(plan_json(make_plan(PPO, None)))
    for one in ENTRIES:
        Ledger(folder, LedgerEntry).commit(one)


def test_a_ppo_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ppo(tmp_path / "run")
    assert main([str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "# Report of run" in text
    assert "| 3 | 0.3 | 0.03 | 1e-06 | 3.5 | 0.125 | 5 | 2.5 | 13 |" in text
    assert "| 1 | 0.1 | 0.01 | 1e-06 |  |  | 5 | 0.2 | 59 |" in text  # the critic warmed up
    assert "| rollout | 700 |" in text
    assert "Phases of a PPO step" in capsys.readouterr().out


def test_a_pipeline_is_reported_by_stage(tmp_path: Path) -> None:
    stages = {"reward": without_run(REWARD), "ppo": without_run(PPO)}
    pipeline = {"stage": "pipeline", "run": {"dir": "runs/z"}, "stages": stages}
    run = tmp_path / "run"
    write_ppo(run / "ppo")
    (run / "config.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    (run / "reward" / "export").mkdir(parents=True)
    (run / "reward" / "plan.json").write_text(plan_json(make_plan(REWARD, None)))
    write_evaluation(run / "reward" / "export" / STATS_FILE, EVALUATION)
    for step in (1, 2):
        metrics = {"loss": 0.7, "pair_accuracy": 0.5, "grad_norm": 1.0, "tokens_per_s": 100.0 * step}
        Ledger(run / "reward", SupervisedEntry).commit(SupervisedEntry(step=step, digest="", metrics=metrics))
    out = tmp_path / "report.md"
    assert main([str(run), "--out", str(out)]) == 0
    text = out.read_text()
    assert text.index("# Stage reward") < text.index("| pair accuracy | 0.625 |") < text.index("# Stage ppo")
    assert "2 steps, median 150 tokens/s" in text


def without_run(stage: PPOStage | RewardStage) -> dict[str, object]:
    """As a pipeline has it: the stage's folder is not its own to name."""
    return stage.model_dump(mode="json", exclude={"run"})


@pytest.mark.parametrize("what", ["nothing", "no step", "damaged"])
def test_what_cannot_be_reported_is_one_message(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    if what == "no step":
        run.mkdir()
        (run / "config.yaml").write_text(dump_config(PPO))
    if what == "damaged":
        write_ppo(run)
        (run / "ledger" / "00000002.json").write_text("{}")
    assert main([str(run)]) == 1
    error = capsys.readouterr().err
    assert {"nothing": "holds no run", "no step": "no committed step", "damaged": "00000002.json is damaged"}[
        what
    ] in error
    assert error.count("\n") == 1
