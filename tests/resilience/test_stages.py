"""The reward stage and pipelines, broken off and gone on with; a second driver on the same run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.resilience.runs import (
    START_S,
    Driver,
    digests,
    finish,
    make_project,
    ppo_config,
    resumed,
    reward_config,
    started,
    steps_committed,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 18
"""18 groups to train on, 2 a step, 2 epochs."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def reference(project: Path) -> Path:
    run_dir = project / "reference"
    with started(project, run_dir, reward_config()) as driver:
        finish(driver)
    assert steps_committed(run_dir) == STEPS
    return run_dir


def evaluation(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "export" / "preceptor_reward.json").read_text())


def test_a_pipeline_goes_on_where_it_was_broken_off(project: Path, reference: Path) -> None:
    run_dir = project / "pipeline"
    reward, ppo = reward_config(), ppo_config(critic={"init_from": "reward"}, ppo={"steps": 3})
    ppo["reward"] = {"model": {"model": "stage:judge", "placement": {"threads_per_rank": 1}}}
    stages = {"judge": reward, "tune": ppo}
    shared = {key: reward.pop(key) for key in ("run", "cluster")}
    for key in shared:
        del ppo[key]
    config = {"stage": "pipeline", **shared, "stages": stages}
    with started(project, run_dir, config) as driver:
        driver.running_until(lambda: steps_committed(run_dir / "judge") >= 4, "4 steps of the first stage")
        driver.process.kill()
        driver.nothing_left()
    with resumed(project, run_dir) as driver:
        driver.running_until(lambda: steps_committed(run_dir / "tune") >= 1, "a step of the second stage")
        os.killpg(driver.process.pid, signal.SIGTERM)
        assert driver.ended(timeout_s=START_S) == 130, driver.output
        driver.nothing_left(timeout_s=1.0)
    assert f"preceptor resume {run_dir}\n" in driver.output
    first = {
        path: path.read_bytes()
        for path in (run_dir / "judge").rglob("*")
        if path.is_file() and path.name != "driver.lock"
    }
    with resumed(project, run_dir) as driver:
        finish(driver)
    assert "stage judge is finished already" in driver.output
    assert first == {path: path.read_bytes() for path in first}, "a finished stage is not run again"
    assert steps_committed(run_dir / "tune") == 3
    assert digests(run_dir / "judge") == digests(reference)
    assert len(digests(reference)) == STEPS
    assert evaluation(run_dir / "judge") == evaluation(reference)


def test_a_run_is_reproduced_to_the_bit(project: Path, reference: Path) -> None:
    run_dir = project / "reproduced"
    with Driver(project, run_dir, "reproduce", str(reference), "--dir", str(run_dir)) as driver:
        finish(driver)
    assert driver.output.startswith("the same\nthe run was deterministic"), driver.output
    assert digests(run_dir) == digests(reference)
    assert evaluation(run_dir) == evaluation(reference)


def test_ranking_goes_on_where_it_was_broken_off(project: Path) -> None:
    small = {key: ppo_config()[key] for key in ("run", "cluster", "data")}
    rollout = {"responses_per_prompt": 3, "max_response_tokens": 6, "prompts_per_wave": 1, "threads_per_engine": 1}
    config = {
        "stage": "rank",
        **small,
        "policy": {"model": "model"},
        "rollout": rollout,
        "annotator": {"function": "slow:pays"},
    }
    # slow enough to be broken off between two of its six waves
    (project / "slow.py").write_text(
        "import time\nfrom paying import pays as right_away\n\n\n"
        "def pays(prompt, response):\n    time.sleep(0.3)\n    return right_away(prompt, response)\n"
    )
    undisturbed, run_dir = project / "ranked", project / "ranked-twice"
    with started(project, undisturbed, config) as driver:
        finish(driver)
    with started(project, run_dir, config) as driver:
        driver.committed(2)
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.ended(timeout_s=START_S) == 130, driver.output
        driver.nothing_left(timeout_s=1.0)
    assert 2 <= steps_committed(run_dir) < 6
    with resumed(project, run_dir) as driver:
        finish(driver)
    rankings = "export/rankings.jsonl"
    assert (run_dir / rankings).read_bytes() == (undisturbed / rankings).read_bytes()


def test_a_second_driver_is_fenced_at_its_first_commit(project: Path, reference: Path) -> None:
    """Where the file system has no locks: here the lock is taken away."""
    run_dir = project / "twice"
    with started(project, run_dir, reward_config(training={"epochs": 400})) as first:
        first.committed(4)
        (run_dir / "driver.lock").unlink()
        with Driver(project, run_dir, "resume", str(run_dir)) as second:
            assert second.ended(timeout_s=START_S) == 1, second.output
            assert "another driver works on this run directory" in " ".join(second.output.split())
            second.nothing_left(timeout_s=1.0)
        before = steps_committed(run_dir)
        first.committed(before + 3)
        first.process.send_signal(signal.SIGINT)
        assert first.ended(timeout_s=START_S) == 130, first.output
        first.nothing_left(timeout_s=1.0)
