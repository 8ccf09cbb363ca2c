"""A run that is stopped or killed, whenever and however often, ends with the digests of a run that was not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from actors.local_files import scratch_of
from actors.store import entries, read_bytes
from orchestrator.cli import main
from tests.object_store import bucket, s3_server
from tests.resilience.runs import (
    START_S,
    Driver,
    dies_of,
    digests,
    fails,
    finish,
    make_project,
    ppo_config,
    resumed,
    started,
    steps_committed,
    until,
)

STEPS = 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def reference(project: Path) -> Path:
    """A run that nobody disturbs. It is evaluated otherwise than the one that is disturbed: that must change nothing."""
    run_dir = project / "reference"
    config = ppo_config(data={"max_rows": 8, "held_out_rows": 2}, evaluation={"every": 3})
    with started(project, run_dir, config) as driver:
        finish(driver)
    assert steps_committed(run_dir) == STEPS
    return run_dir


def test_a_run_that_is_killed_in_every_way_ends_with_the_same_digests(project: Path, reference: Path) -> None:
    """Its judge finds all answers equally good. Of equal evaluations the first is the best, so step 2 is exported and kept."""
    run_dir = project / "disturbed"
    evaluation = {"every": 2, "judge": {"function": "paying:knows_nothing"}, "export": "best"}
    config = ppo_config(run={"keep_checkpoints": 1}, data={"max_rows": 8, "held_out_rows": 2}, evaluation=evaluation)
    with started(project, run_dir, config) as driver:
        driver.committed(1)
        driver.caught("policy", "update")
        driver.process.kill()
        at = time.monotonic()
        driver.nothing_left()
        print(f"kill of the driver: {time.monotonic() - at:.1f} s until all its processes were gone")
    assert not list(run_dir.glob("checkpoints/*/manifest.json")), "the next driver replays from the start"

    with resumed(project, run_dir) as driver:
        before = steps_committed(run_dir)
        driver.running_until(lambda: steps_committed(run_dir) > before, "another step")
        # to the whole group, as a terminal does
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.ended(timeout_s=START_S) == 130, driver.output
        driver.nothing_left(timeout_s=1.0)
    stopped_at = steps_committed(run_dir)
    assert "stopping after this step with a checkpoint" in driver.output
    assert f"preceptor resume {run_dir}" in driver.output
    assert (run_dir / f"checkpoints/{stopped_at:08d}/manifest.json").exists()

    # the newest checkpoint is damaged: an older one or none, and the trajectories, give the same weights
    file = max((run_dir / f"checkpoints/{stopped_at:08d}/critic").iterdir())
    damage(file)
    with resumed(project, run_dir) as driver:
        driver.committed(stopped_at + 1)
        assert f"{file} is missing or damaged" in driver.output
        dies_of(driver, "critic", "update")
    with resumed(project, run_dir) as driver:
        finish(driver)
    assert digests(run_dir) == digests(reference)
    assert controllers(run_dir) == controllers(reference)
    assert kept(run_dir) == [2, STEPS]
    assert kept(reference) == [3, STEPS]
    for step, exported in ((STEPS, reference), (2, run_dir)):
        assert json.loads((exported / "export/lineage.json").read_text())["step"] == step
    assert weights(run_dir) != weights(reference)
    assert sorted(evaluations(run_dir)) == [0, 2, 4, STEPS]
    for step in (0, STEPS):
        ours, theirs = (evaluations(one)[step]["metrics"] for one in (run_dir, reference))
        for name in ("score", "kl", "response_tokens"):
            assert ours[f"held_out/{name}"] == theirs[f"held_out/{name}"], "the same weights, prompts and seeds"
    assert [one["metrics"].get("held_out/win_rate") for one in evaluations(run_dir).values()] == [None, 0.5, 0.5, 0.5]
    assert len(set(controllers(run_dir))) > 1, "the coefficient moves, so that a lost controller would show"


def test_the_best_evaluation_is_exported(project: Path) -> None:
    out = project / "best"
    with Driver(
        project, project / "disturbed", "export", str(project / "disturbed"), str(out), "--step", "2"
    ) as driver:
        finish(driver)
    exported = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert exported == weights(project / "disturbed")


def test_a_run_in_an_object_store_is_the_same(project: Path, reference: Path) -> None:
    """In an S3 bucket: another driver is kept out, the driver is killed, the run goes on with the ledger's weights and ends with the
    digests of one in a folder; what it made is read from there."""
    with s3_server():
        run_dir = bucket("runs/exact")
        config = ppo_config(data={"max_rows": 8, "held_out_rows": 2}, evaluation={"every": 3})
        with started(project, run_dir, config) as driver:
            until(
                lambda: driver.process.poll() is not None or steps_committed(run_dir) >= 2,
                "2 steps",
                timeout_s=START_S,
                every_s=0.05,
            )
            # it stands still, and has the run all the same
            driver.process.send_signal(signal.SIGSTOP)
            stopped_at = steps_committed(run_dir)
            with resumed(project, run_dir) as second:
                assert second.ended(timeout_s=START_S) == 2
                assert f"preceptor: {run_dir} is in use by process {driver.process.pid} on" in second.output
            assert steps_committed(run_dir) == stopped_at < STEPS
            driver.process.kill()
            driver.nothing_left()
        with resumed(project, run_dir) as driver:
            finish(driver)
        assert f"step {stopped_at + 1}/{STEPS}" in driver.output
        assert f"step {stopped_at}/{STEPS}" not in driver.output
        assert digests(run_dir) == digests(reference)
        assert controllers(run_dir) == controllers(reference)
        assert kept(run_dir) == kept(reference) == [3, STEPS]
        ours, theirs = (sorted(path.name for path in entries(one)) for one in (run_dir, reference))
        assert [name for name in theirs if name != "driver.lock"] == ours
        assert hashlib.sha256(read_bytes(run_dir / "export/model.safetensors")).hexdigest() == weights(reference)
        assert read_bytes(run_dir / "logs/policy-0.log").count(b"Loading weights: 100%") >= 2, "of both drivers"
        assert not any(scratch_of(run_dir).iterdir()), "nothing of it stays on this machine"

        out = project / "from-store"
        with Driver(project, run_dir, "export", str(run_dir), str(out)) as driver:
            finish(driver)
        assert hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() == weights(reference)
        assert main(["report", str(run_dir)]) == 0
        assert b"<html" in read_bytes(run_dir / "report.html")
        assert main(["lineage", f"{run_dir}/export"]) == 0


def kept(run_dir: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in run_dir.glob("checkpoints/*/manifest.json"))


def evaluations(run_dir: Path) -> dict[int, Any]:
    return {int(path.stem): json.loads(path.read_bytes()) for path in sorted(run_dir.glob("evaluations/*.json"))}


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def controllers(run_dir: Path) -> list[str]:
    return [
        json.dumps(json.loads(path.read_bytes())["kl_controller"]) for path in sorted(run_dir.glob("ledger/*.json"))
    ]


def weights(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "export" / "model.safetensors").read_bytes()).hexdigest()


def test_a_finished_run_is_finished(project: Path, reference: Path) -> None:
    with resumed(project, reference) as driver:
        assert driver.ended(timeout_s=START_S) == 0
    assert "is finished; nothing is left to do" in driver.output


def test_an_occupied_folder_is_refused_and_left_alone(project: Path, reference: Path) -> None:
    before = sorted(str(path) for path in reference.rglob("*"))
    with started(project, reference, ppo_config()) as driver:
        assert driver.ended(timeout_s=START_S) == 2
    assert "is not empty" in driver.output
    assert sorted(str(path) for path in reference.rglob("*")) == before


def test_a_checkpoint_exports_to_transformers(project: Path, reference: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for role, loads in (("policy", AutoModelForCausalLM), ("critic", AutoModelForSequenceClassification)):
        out = project / f"exported-{role}"
        with Driver(project, reference, "export", str(reference), str(out), "--role", role) as driver:
            finish(driver)
        _, info = loads.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
    assert {path.name for path in (project / "exported-policy").iterdir()} == {
        path.name for path in (reference / "export").iterdir()
    }, "no logs, nothing half-written"
    exported = hashlib.sha256((project / "exported-policy" / "model.safetensors").read_bytes()).hexdigest()
    assert exported == weights(reference), "the last checkpoint is what the run exported"


def test_resume_at_the_end_only_exports(project: Path, reference: Path) -> None:
    before = weights(reference)
    (reference / "done.json").unlink()
    shutil.rmtree(reference / "export")
    file = next((reference / "trajectories" / "00000001").iterdir())
    file.unlink()  # older than the newest checkpoint: nobody asks for it
    with resumed(project, reference) as driver:
        finish(driver)
    assert weights(reference) == before
    assert steps_committed(reference) == STEPS


def test_damaged_trajectories_are_named(project: Path, reference: Path) -> None:
    (reference / "done.json").unlink()
    for manifest in reference.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    with resumed(project, reference) as driver:
        said = fails(driver, "trajectories/00000001", timeout_s=START_S)
    assert "can't be replayed without its trajectories" in said
