"""A sweep's folder, the metrics in its ledgers, what came of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.durable import write_whole
from actors.errors import UserError
from orchestrator.sweep.records import (
    Followed,
    Halving,
    SweepFolder,
    existing_folder,
    metric_names,
    new_folder,
)
from orchestrator.sweep.results import Results, best_of, run_command, short, without_metric, write_results
from tests.orchestrator.sweep.cluster import SPEC, commit, small_sweep


def test_what_was_asked_and_each_trial_read_back(tmp_path: Path) -> None:
    spec = replace(SPEC, halving=Halving(max_steps=9, grace_steps=1, reduction=3), gpus=3, env=("A",), search="asha")
    folder = small_sweep(tmp_path / "s", 3, spec=spec)
    assert folder.spec() == spec
    trial = replace(folder.trials()[1], status="failed", reason="it said: 'no'", attempts=2, job="j", begun_s=1.5)
    folder.save(trial)
    assert SweepFolder(tmp_path / "s").trials()[1] == trial


def test_an_occupied_folder_is_refused_and_one_process_directs_a_sweep(tmp_path: Path) -> None:
    small_sweep(tmp_path / "s", 1)
    with pytest.raises(
        UserError, match=r"--dir: .*/s is not empty; allowed: .* `preceptor sweep --resume .*/s` goes on"
    ):
        new_folder(tmp_path / "s").__enter__()
    with existing_folder(tmp_path / "s"), pytest.raises(UserError, match=r"is in use by process \d+"):
        existing_folder(tmp_path / "s").__enter__()
    with pytest.raises(UserError, match=r"holds no sweep: sweep\.yaml is missing"):
        existing_folder(tmp_path / "t").__enter__()


def test_damage_and_other_versions_are_named(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1)
    (tmp_path / "s" / "records" / "0001.json").write_text("{")
    with pytest.raises(UserError, match=r"records/0001\.json can't be read or is damaged"):
        folder.trials()
    text = (tmp_path / "s" / "sweep.yaml").read_text()
    (tmp_path / "s" / "sweep.yaml").write_text(text.replace("format: 1", "format: 2"))
    with pytest.raises(UserError, match=r"sweep\.yaml is of another version of preceptor; allowed: format 1"):
        folder.spec()


def evaluate(folder: Path, step: int, **metrics: float) -> None:
    write_whole(folder / "evaluations" / f"{step:08d}.json", json.dumps({"metrics": metrics}).encode())


def test_metrics_come_from_ledger_and_evaluations(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        commit(tmp_path, step, score=step / 2)
    evaluate(tmp_path, 2, **{"held_out/win_rate": 0.75})
    assert Followed(tmp_path, "score").look() == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert Followed(tmp_path, "held_out/win_rate").look() == [(2, 0.75)]
    nothing = Followed(tmp_path, "nothing")
    assert nothing.look() == []
    assert (nothing.step, nothing.point) == (3, None)
    assert metric_names(tmp_path) == ["held_out/win_rate", "score"]


def test_who_follows_a_run_reads_each_entry_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(str(path.relative_to(tmp_path)))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    followed = Followed(tmp_path, "score")
    assert followed.look() == []
    commit(tmp_path, 1, score=0.5)
    commit(tmp_path, 2, loss=1.0)
    assert followed.look() == [(1, 0.5)]
    assert followed.look() == []
    assert (followed.step, followed.point) == (2, (1, 0.5))
    # an evaluation may be there later than the entry of its step
    commit(tmp_path, 3, loss=1.0)
    evaluate(tmp_path, 2, score=0.75)
    assert followed.look() == [(2, 0.75)]
    assert (followed.step, followed.point) == (3, (2, 0.75))
    assert sorted(read) == ["evaluations/00000002.json", *(f"ledger/{step:08d}.json" for step in (1, 2, 3))]


def test_the_table_reads_again_only_what_is_new_and_nothing_of_trials_that_are_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_sweep(tmp_path / "s", 3)
    over, running, waiting = folder.trials()
    over, running = replace(over, status="finished"), replace(running, status="running")
    commit(folder.run_dir(over), 1, score=1.0)
    commit(folder.run_dir(running), 1, score=2.0)
    results = Results(folder, SPEC)
    looks: list[str] = []
    look = Followed.look

    def counted(followed: Followed) -> list[tuple[int, float]]:
        looks.append(followed._run_dir.name)
        return look(followed)

    monkeypatch.setattr(Followed, "look", counted)

    def shown() -> list[tuple[str, int, Any]]:
        return [(r.trial.name, r.step, r.point) for r in results.of([over, running, waiting])]

    assert shown() == [("0002", 1, (1, 2.0)), ("0001", 1, (1, 1.0)), ("0003", 0, None)]
    commit(folder.run_dir(running), 2, score=0.5)
    assert shown() == [("0001", 1, (1, 1.0)), ("0002", 2, (2, 0.5)), ("0003", 0, None)]
    assert looks == ["0001", "0002", "0003", "0002"]
    # what it commits until it ends is shown
    commit(folder.run_dir(running), 3, score=3.0)
    running = replace(running, status="finished")
    assert shown()[0] == ("0002", 3, (3, 3.0))


def test_of_a_pipeline_the_last_stage_that_has_the_metric_counts(tmp_path: Path) -> None:
    for name, metrics in (("sft", {"loss": 1.0}), ("reward", {"loss": 2.0}), ("ppo", {"score": 3.0})):
        write_whole(tmp_path / name / "config.yaml", b"")
        commit(tmp_path / name, 1, **metrics)
    commit(tmp_path / "sft", 2, loss=0.5)
    assert Followed(tmp_path, "loss").look() == [(1, 2.0)]
    assert Followed(tmp_path, "score").look() == [(1, 3.0)]
    both = Followed(tmp_path, "loss")
    both.look()
    assert (both.step, both.point) == (1, (1, 2.0))


@pytest.mark.parametrize(("mode", "order"), [("max", "3142"), ("min", "1342")])
def test_results_are_sorted_and_no_number_is_worst(tmp_path: Path, mode: str, order: str) -> None:
    spec = replace(SPEC, mode="max" if mode == "max" else "min")
    folder = small_sweep(tmp_path / "s", 4, spec=spec)
    for trial, value in zip(folder.trials(), (0.25, None, 0.5, math.nan), strict=True):
        if value is not None:
            commit(folder.run_dir(trial), 1, score=9.0)
            commit(folder.run_dir(trial), 2, score=value)
        folder.save(replace(trial, status="finished"))
    results = Results(folder, spec).of(folder.trials())
    # those without a number keep their order
    assert "".join(str(result.trial.number) for result in results) == order.replace("42", "24")
    best = best_of(results)
    assert best is not None
    assert best.trial.name == ("0003" if mode == "max" else "0001")
    rows = json.loads(write_results(folder, spec, results).read_bytes())
    assert [row["value"] for row in rows] == [*sorted([0.25, 0.5], reverse=mode == "max"), None, None]


def test_a_trial_that_did_not_come_to_its_end_is_not_the_best(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 2)
    for trial, status, value in zip(folder.trials(), ("finished", "pruned"), (0.1, 0.9), strict=True):
        commit(folder.run_dir(trial), 1, score=value)
        folder.save(replace(trial, status="finished" if status == "finished" else "pruned"))
    results = Results(folder, SPEC).of(folder.trials())
    best = best_of(results)
    assert results[0].trial.status == "pruned"
    assert best is not None
    assert best.trial.name == "0001"


def test_a_metric_that_no_trial_has_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1)
    commit(folder.run_dir(folder.trials()[0]), 1, loss=1.0, accuracy=0.5)
    results = Results(folder, SPEC).of(folder.trials())
    assert without_metric(folder, SPEC, results) == "--metric: no trial has 'score'; there are: accuracy, loss"


def test_the_best_trials_command_can_be_pasted(tmp_path: Path) -> None:
    (trial,) = small_sweep(tmp_path / "s", 1).trials()
    trial = replace(trial, overrides=("policy.optimizer.betas=[0.9, 0.95]", "run.seed=3"))
    assert run_command(SPEC, ["ppo.steps=5"], trial) == (
        "preceptor run c.yaml ppo.steps=5 'policy.optimizer.betas=[0.9, 0.95]' run.seed=3 run.dir=NEW"
    )


def test_columns_are_as_short_as_tells_them_apart() -> None:
    assert short(["policy.optimizer.lr", "critic.optimizer.lr", "run.seed", "seed"]) == [
        "policy.optimizer.lr",
        "critic.optimizer.lr",
        "run.seed",
        "seed",
    ]
    assert short(["ppo.gamma", "run.seed"]) == ["gamma", "seed"]
