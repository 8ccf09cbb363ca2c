"""Whatever dies, hangs or refuses in a run, at any moment: a named error within seconds, nothing left behind, and `resume` goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.resilience.runs import (
    GONE_S,
    START_S,
    Driver,
    dies_of,
    fails,
    make_project,
    ppo_config,
    resumed,
    started,
    steps_committed,
)
from tests.tiny_models import make_tiny_scalar

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("project"))
    make_tiny_scalar(folder / "reward-model")
    return folder


@pytest.fixture(scope="module")
def run_dir(project: Path) -> Path:
    """One run for all tests here, in their order: each goes on where the last one was broken off."""
    return project / "run"


@contextmanager
def gone_on(project: Path, run_dir: Path) -> Iterator[Driver]:
    """The run, resumed. Afterwards everything that was committed is still there."""
    before = {path.name: path.read_bytes() for path in run_dir.glob("ledger/*.json")}
    with resumed(project, run_dir) as driver:
        yield driver
    after = {path.name: path.read_bytes() for path in run_dir.glob("ledger/*.json")}
    assert before.items() <= after.items()


def test_a_rank_that_dies_while_it_starts(project: Path, run_dir: Path) -> None:
    config = ppo_config(
        run={"checkpoint_every": 1},
        ppo={"steps": 1000},
        policy={"placement": {"num_ranks": 2}, "engine": {"zero_stage": 2}},
        critic={"init_from": "reward"},
        reward={"model": {"model": "reward-model", "normalise": False, "placement": {"threads_per_rank": 1}}},
    )
    with started(project, run_dir, config) as driver:
        said = dies_of(driver, "policy", "start", rank=1)
    assert "failed at start" in said
    assert not steps_committed(run_dir)


@pytest.mark.parametrize(
    ("role", "method", "rank"),
    [
        # whichever role it is, a call that it owes is what fails: one that many wait for, and one on CPU with a process of its own
        ("rollout", "generate", 0),
        ("reward_function_0", "score", 0),
        # the other rank waits for this one in a collective
        ("policy", "update", 1),
        ("rollout", "load_bucket", 0),
        ("policy", "save", 0),
    ],
)
def test_a_rank_that_dies_at_work(project: Path, run_dir: Path, role: str, method: str, rank: int) -> None:
    with gone_on(project, run_dir) as driver:
        driver.committed(steps_committed(run_dir) + 1)
        said = dies_of(driver, role, method, rank)
    assert "failed in step" in said


def test_a_reward_that_can_not_be_had(project: Path, run_dir: Path) -> None:
    bad = project / "bad.json"
    try:
        with gone_on(project, run_dir) as driver:
            driver.committed(steps_committed(run_dir) + 1)
            bad.write_text(json.dumps({"prompt": "what is the red cat ?"}))
            said = fails(driver, "no reward for prompt 'red-cat'")
    finally:
        bad.unlink(missing_ok=True)
    assert "ValueError: no reward for this one" in said


def test_a_second_driver_is_refused_and_a_second_interrupt_ends_at_once(project: Path, run_dir: Path) -> None:
    with gone_on(project, run_dir) as driver:
        driver.committed(steps_committed(run_dir) + 1)
        with Driver(project, run_dir, "resume", str(run_dir)) as second:
            assert second.ended(timeout_s=START_S) == 2
        assert f"is in use by process {driver.process.pid}" in second.output
        # an update that would never end: only the second signal can
        os.kill(driver.caught("policy", "update"), signal.SIGSTOP)
        os.killpg(driver.process.pid, signal.SIGINT)
        driver.says("once more stops at once")
        at = time.monotonic()
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.ended(timeout_s=GONE_S) == 130, driver.output
        print(f"second Ctrl-C: {time.monotonic() - at:.1f} s to the end", flush=True)
        driver.nothing_left(timeout_s=1.0)
    assert f"preceptor resume {run_dir}" in driver.output


def test_a_rank_that_hangs(project: Path, run_dir: Path) -> None:
    file = run_dir / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["cluster"]["call_timeout_s"] = 15.0
    file.write_text(yaml.safe_dump(config))
    with gone_on(project, run_dir) as driver:
        driver.committed(steps_committed(run_dir) + 1)
        os.kill(driver.caught("critic", "update"), signal.SIGSTOP)
        said = fails(driver, "critic rank 0 failed", timeout_s=15.0 + GONE_S)
    assert "did not answer within 15 s" in said


def test_sigterm_while_roles_load(project: Path) -> None:
    run_dir = project / "early"
    with started(project, run_dir, ppo_config()) as driver:
        driver.rank("rollout")
        at = time.monotonic()
        driver.process.terminate()
        assert driver.ended(timeout_s=GONE_S) == 130, driver.output
        print(f"SIGTERM at the start: {time.monotonic() - at:.1f} s to the end", flush=True)
        driver.nothing_left(timeout_s=1.0)
    assert steps_committed(run_dir) == 0


def test_interrupt_before_anything_began(project: Path) -> None:
    run_dir = project / "new" / "run"
    with started(project, run_dir, ppo_config()) as driver:
        driver.says("checking data and models", timeout_s=START_S)
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.ended(timeout_s=GONE_S) == 130, driver.output
        driver.nothing_left(timeout_s=1.0)
    assert not (project / "new").exists()
