"""A sweep as a user starts it: its own Ray with a real job server, a trial that fails, one that is stopped and gone on with."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.errors import PreceptorError
from orchestrator.sweep.direct import Searching
from orchestrator.sweep.local_ray import local_ray
from orchestrator.sweep.records import Halving
from tests.orchestrator.sweep.cluster import SPEC, small_sweep
from tests.resilience.runs import GONE_S, START_S, Driver, make_project, reward_config, steps_committed


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted((folder / "records").glob("*.json"))]


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_and_a_failed_trial_ends_only_itself(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    config = reward_config(run={"deterministic": False, "checkpoint_every": 1000}, training={"epochs": 20})
    (project / "base.yaml").write_text(yaml.safe_dump(config))
    folder = project / "s"
    trial = folder / "trials" / "0002"
    axis = "data.path=[missing.jsonl,rankings.jsonl]"
    arguments = ("sweep", "base.yaml", axis, "run.seed=7", "--dir", "s", "--metric", "held_out/pair_accuracy")
    with Driver(project, trial, *arguments, "--retries", "1", "--parallel", "2") as driver:
        driver.says("trial 0001 failed")
        driver.committed(3)
        driver.process.send_signal(signal.SIGINT)
        assert driver.ended(timeout_s=GONE_S) == 130, driver.output
        driver.nothing_left()
        assert "go on with: preceptor sweep --resume" in " ".join(driver.output.split()).lower()
    done = steps_committed(trial)
    assert 3 <= done < 180
    assert (trial / "checkpoints" / f"{done:08d}" / "manifest.json").exists()
    failed, stopped = records(folder)
    assert (failed["status"], failed["attempts"]) == ("failed", 1)  # bad input is not tried again
    assert (stopped["status"], stopped["attempts"]) == ("stopped", 1)
    assert "missing.jsonl" in failed["reason"]

    with Driver(project, trial, "sweep", "--resume", "s") as driver:
        assert driver.ended(timeout_s=START_S) == 1, driver.output
        driver.nothing_left()
        said = driver.output
    failed_again, finished = records(folder)
    assert failed_again == failed
    assert (finished["status"], finished["attempts"]) == ("finished", 2)
    assert steps_committed(trial) == 180
    assert "trial 0002 begins (attempt 2): data.path=rankings.jsonl" in said
    assert f"log: {folder}/logs/0001-1.log" in said
    assert "missing.jsonl" in (folder / "logs" / "0001-1.log").read_text()
    assert "preceptor run base.yaml run.seed=7 data.path=rankings.jsonl run.dir=NEW" in said
    assert "of 2 trials 1 failed" in said
    best, worst = json.loads((folder / "results.json").read_bytes())
    assert (best["trial"], best["status"], best["value_step"]) == ("0002", "finished", 180)
    assert (worst["trial"], worst["value"]) == ("0001", None)


@pytest.mark.slow
def test_a_search_ends_the_worse_trial_early_with_a_checkpoint(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    config = reward_config(run={"deterministic": False, "checkpoint_every": 1000}, training={"epochs": 20})
    (project / "base.yaml").write_text(yaml.safe_dump(config))
    folder = project / "s"
    # the seed draws the learning rate that learns first
    space = ("base.yaml", "model.optimizer.lr=[3e-3,1e-9]", "--search", "asha", "--samples", "2", "--seed", "8")
    rungs = ("--max-steps", "180", "--grace-steps", "5", "--reduction", "2", "--metric", "loss", "--mode", "min")
    with Driver(project, folder / "trials" / "0002", "sweep", *space, *rungs, "--dir", "s") as driver:
        assert driver.ended(timeout_s=START_S) == 0, driver.output
        driver.nothing_left()
        said = driver.output
    good, bad = records(folder)
    assert [good["overrides"], bad["overrides"]] == [["model.optimizer.lr=0.003"], ["model.optimizer.lr=1e-09"]]
    assert (good["status"], bad["status"]) == ("finished", "pruned"), said
    assert steps_committed(folder / "trials" / "0001") == 180
    steps = steps_committed(folder / "trials" / "0002")
    assert 5 <= steps < 180
    assert (folder / "trials" / "0002" / "checkpoints" / f"{steps:08d}" / "manifest.json").exists()
    assert [row["trial"] for row in json.loads((folder / "results.json").read_bytes())] == ["0001", "0002"]
    assert "best: trial 0001, loss " in said


@pytest.mark.slow
def test_a_search_that_can_not_look_after_a_trial_says_why(tmp_path: Path) -> None:
    from orchestrator.sweep.tune import SLOT, search

    halving = Halving(max_steps=2, grace_steps=1, reduction=2)
    spec = replace(SPEC, search="asha", halving=halving, address="http://127.0.0.1:1")
    folder = small_sweep(tmp_path / "s", 1, spec=spec)
    with (
        local_ray(num_cpus=1, num_gpus=0, resources={SLOT: 1}, jobs=False),
        pytest.raises(PreceptorError) as caught,
    ):
        search(folder, spec, "http://127.0.0.1:1", Searching(), lambda _: None)
    said = str(caught.value)
    assert said.startswith("trial 0001 is lost: ")
    assert "address: no Ray job server answers at http://127.0.0.1:1 (no connection)" in said
    assert said.endswith(f"`preceptor sweep --resume {folder.path}` looks for its job")
