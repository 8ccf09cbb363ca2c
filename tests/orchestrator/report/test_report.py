"""`preceptor report`: what it says of runs of every kind, as text and as a page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actors.algorithms.calibration_bin import CalibrationBin
from actors.errors import PreceptorError
from actors.reward_trainer import STATS_FILE, RewardEvaluation
from actors.supervised_trainer import write_evaluation
from orchestrator import cli
from orchestrator.ledger import Ledger, LedgerEntry
from orchestrator.lineage import LINEAGE_FILE
from orchestrator.report.figures import headline
from orchestrator.report.phases import REST, seconds_by_phase
from orchestrator.report.run import read_run
from orchestrator.report.trajectories import early_and_late
from tests.orchestrator.report.made_runs import (
    PPO,
    REWARD,
    begin,
    commit,
    evaluation,
    finish,
    ppo_step,
    rank_section,
    write_config,
    write_pipeline,
    write_rankings,
)
from tests.orchestrator.report.pages import HOSTILE, Page, whole_page

EVALUATION = RewardEvaluation(
    num_groups=3,
    num_pairs=3,
    pair_accuracy=2 / 3,
    ece=0.2,
    length_correlation=None,
    mean=0.0,
    std=0.0,
    data_fingerprint="f",
    bins=(
        CalibrationBin(count=3, mean_prob=0.2, observed_frac=1 / 3),
        CalibrationBin(count=3, mean_prob=0.8, observed_frac=2 / 3),
    ),
)
LINEAGE = {
    "format": 1,
    "stage": "ppo",
    "role": "policy",
    "step": 2,
    "run_dir": "/old/place",
    "config_sha256": "c" * 64,
    "data": {"fingerprint": "d" * 64, "sources": [{"path": "prompts.jsonl", "lineage": None}]},
    "models": {"policy.model": {"model": HOSTILE, "lineage": None}},
    "code": {"sources_sha256": "e" * 64},
    "made": "2026-11-22T11:08:01+00:00",
}


def report(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Page, str]:
    """The page and the summary of a run that can be reported."""
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report.html").read_text("utf-8")
    return whole_page(text), capsys.readouterr().out


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """before, reward, ppo, after; all finished."""
    run = tmp_path / "run"
    write_pipeline(run, before=rank_section("base"), reward=REWARD, ppo=PPO, after=rank_section("stage:ppo"))
    write_rankings(run / "before", [("one", ["a", "b"], [0, 1]), ("two", ["long " * 200, ""], [1, 1])])
    write_rankings(run / "after", [("one", [HOSTILE, "b"], [1, 2]), ("two", ["c", "d"], [2, 0])])
    begin(run / "reward")
    for step in (1, 2):
        commit(run / "reward", step, loss=0.7, pair_accuracy=0.5, tokens_per_s=100.0)
    write_evaluation(run / "reward" / "export" / STATS_FILE, EVALUATION)
    begin(run / "ppo")
    ppo_step(run / "ppo", 1, [("p", "early prompt", "early answer", 0.5), ("q", "q", "other", 0.5)])
    ppo_step(run / "ppo", 2, [("r", "late prompt", "late answer", 0.5), ("s", "s", HOSTILE, 0.5)])
    (run / "ppo" / "export").mkdir()
    (run / "ppo" / "export" / LINEAGE_FILE).write_text(json.dumps(LINEAGE))
    for name, seconds in (("before", 60), ("reward", 120), ("ppo", 600), ("after", 60)):
        finish(run / name, after_s=seconds)
    (run / "done.json").write_text("{}")
    return run


def test_a_pipeline_with_before_and_after(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, out = report(pipeline, capsys)
    lines = out.splitlines()
    assert lines[0] == "run: finished; 14 min; started from base"
    assert len(lines) <= 40
    assert max(map(len, lines)) <= max(100, len(str(pipeline)) + 20)
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["reward"][:4] == ["reward", "finished", "2", "2.0"]
    assert "reward 0.25 → 0.5, KL 0.5" in out
    # prompt one: 1 ties 1 and beats 0, 2 beats both: 3.5 of 4; prompt two: 2 beats both, 0 none: 2 of 4
    assert "68.8% ± 18.8" in out
    assert "68.8% ± 18.8" in page.text
    assert HOSTILE in page.text
    assert "an empty answer" not in page.text  # it is nobody's first
    assert "Answers: before and after" in page.text
    assert "Answers early and late" not in page.text
    assert "foretold 0.200, came true 0.333, 3 pairs" in page.titles
    assert "step 2: 0.5" in page.titles
    assert "step 1: update 4 s of 100 s" in page.titles  # the rest of a step is what the next one's start leaves
    assert "policy of stage ppo, step 2, made 2026-11-22T11:08:01+00:00" in page.text
    assert f"policy.model: {HOSTILE}" in page.text
    assert "prompts_per_step: 2" in page.text


def test_a_run_under_way_says_so(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("done.json", "ppo/done.json", "after/done.json", "after/plan.json", "after/ledger/00000001.json"):
        (pipeline / path).unlink()
    page, out = report(pipeline, capsys)
    assert out.startswith("run: not finished: 2 of 4 stages done; ")
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line}
    assert rows["ppo"] == "ppo not finished 2 of 3 10.0 reward 0.25 → 0.5, KL 0.5"
    assert rows["after"] == "after (rank) not begun 0"
    assert "not begun" in page.text
    # without anything to compare the page shows PPO's own answers
    assert "Answers early and late" in page.text
    assert "late answer" in page.text
    assert HOSTILE in page.text


def test_a_lone_stage_without_steps_trajectories_or_lineage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "alone"
    write_config(run, PPO)
    page, out = report(run, capsys)
    assert out.startswith("alone: not finished; unknown; started from base")
    assert "not begun" in page.text
    begin(run)
    assert "No step has been committed." in report(run, capsys)[0].text
    for step in (1, 2):
        ppo_step(run, step, [("p", "prompt", "answer", 0.5)])
        (run / f"trajectories/{step:08d}/wave.parquet").unlink()
    page, out = report(run, capsys)
    assert "2 of 3" in out
    assert "No stage has an export that tells its lineage." in page.text
    assert "Answers early and late" not in page.text


def test_lineage_of_another_version_is_no_failure(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pipeline / "ppo/export" / LINEAGE_FILE).write_text(json.dumps({**LINEAGE, "data": {"path": "p"}}))
    assert "written by another version" in report(pipeline, capsys)[0].text


def test_a_reward_model_without_bins_is_reported(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(pipeline / "reward/export" / STATS_FILE, replace(EVALUATION, bins=None))
    page, out = report(pipeline, capsys)
    assert "did not store what a reliability diagram needs" in page.text
    assert "held-out accuracy 66.7% of 3 pairs, ECE 0.200" in out


def test_prompts_that_come_again_are_shown_with_both_answers(tmp_path: Path) -> None:
    write_config(tmp_path / "run", PPO)
    for step, ids in enumerate(("ab", "bc", "da", "ba"), start=1):
        ppo_step(tmp_path / "run", step, [(one, f"prompt {one}", f"{one} in {step}", 0.0) for one in ids])
    ledger = Ledger(tmp_path / "run", LedgerEntry)
    entries = [ledger.read(step) for step in range(1, 5)]
    found = early_and_late(tmp_path / "run", entries)
    assert found is not None
    assert found.same_prompts
    assert [(one.prompt, one.answers[0].source, one.answers[0].text) for one in (*found.early, *found.late)] == [
        ("prompt b", "step 1", "b in 1"),
        ("prompt a", "step 1", "a in 1"),
        ("prompt b", "step 4", "b in 4"),
        ("prompt a", "step 4", "a in 4"),
    ]
    assert early_and_late(tmp_path / "run", entries[:1]) is None


def test_held_out_answers_are_shown_from_before_the_first_step_to_the_last_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run, PPO)
    begin(run)
    evaluation(run, 0, {"held_out/score": 0.5}, {"x": "early x", "y": "early y"})
    ppo_step(run, 1, [("a", "prompt a", "a", 0.0)])
    evaluation(run, 2, {"held_out/score": 0.75, "held_out/win_rate": 0.8}, {"y": "late y", "x": "late x"})
    ppo_step(run, 2, [("a", "prompt a", "a", 0.0)])
    (stage,) = read_run(str(run)).stages
    assert stage.metrics["held_out/score"] == ((0, 0.5), (2, 0.75))
    assert stage.metrics["held_out/win_rate"] == ((2, 0.8),)
    assert headline(stage).endswith("held-out win rate 80.0%")
    found = stage.answers
    assert found is not None
    assert found.held_out
    assert [(one.prompt, one.answers[0].source, one.answers[0].text) for one in (*found.early, *found.late)] == [
        ("prompt x", "before step 1", "early x"),
        ("prompt y", "before step 1", "early y"),
        ("prompt x", "step 2", "late x"),
        ("prompt y", "step 2", "late y"),
    ]
    answers = run / "evaluations/00000002/wave-0000-rank-0000.jsonl"
    answers.write_text("{")
    with pytest.raises(PreceptorError, match=f"{answers} is missing or damaged"):
        read_run(str(run))
    answers.unlink()
    (stage,) = read_run(str(run)).stages
    assert stage.answers is None or not stage.answers.held_out, "what was removed is not shown"


def test_a_pause_is_not_the_rest_of_a_step(tmp_path: Path) -> None:
    write_config(tmp_path / "run", PPO)
    for step in (1, 2, 30, 31):
        ppo_step(tmp_path / "run", step, [("a", "a", "a", 0.0)])
    ledger = Ledger(tmp_path / "run", LedgerEntry)
    found = seconds_by_phase([ledger.read(step) for step in (1, 2, 30, 31)])
    assert [seconds.get(REST) for _, seconds in found] == [90.0, None, 90.0, None]
    assert [sum(seconds.values()) for _, seconds in found] == [100.0, 10.0, 100.0, 10.0]


def test_numbers_that_are_none_have_no_curve(pipeline: Path) -> None:
    ppo = next(stage for stage in read_run(str(pipeline)).stages if stage.name == "ppo")
    assert ppo.metrics["tokens_per_s"] == ()
    assert ppo.metrics["score"] == ((1, 0.25), (2, 0.5))


def test_where_the_page_goes(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pages" / "mine.html"
    assert cli.main(["report", str(pipeline / "ppo"), "--out", str(out)]) == 0
    assert "Answers early and late" in out.read_text()
    assert not list(pipeline.rglob("report.html"))
    assert str(out) in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(pipeline), "--out", str(tmp_path / "file" / "x.html")]) == 2
    assert "--out: " in capsys.readouterr().err


def test_what_cannot_be_reported_is_one_message(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (pipeline / "ppo/ledger/00000002.json").write_text("{}")
    assert cli.main(["report", str(pipeline)]) == 1
    error = capsys.readouterr().err
    assert "00000002.json is damaged" in error
    assert error.count("\n") == 1
