"""Runs as jobs of a real Ray cluster of several nodes on one host: submitted, watched, stopped; roles where the plan puts them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from ray.job_submission import JobSubmissionClient

from orchestrator import cli
from orchestrator.ray_jobs import RayJobs
from tests.cluster.conftest import ENGINES, TRAIN, Started, joined
from tests.resilience.runs import (
    START_S,
    Driver,
    make_project,
    merged,
    ppo_config,
    reward_config,
    steps_committed,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TYPED = "ray job submit --address {dashboard} --working-dir . -- python -m orchestrator run configs/recipes/demo.yaml"
DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "jobs.md"


def test_the_demo_runs_as_it_is_typed_and_stops_with_a_checkpoint(cluster: Started) -> None:
    assert TYPED.format(dashboard="http://127.0.0.1:8265") in DOCUMENTED.read_text("utf-8").splitlines()
    options, command = TYPED.format(dashboard=cluster.dashboard).removeprefix("ray ").split(" -- ")
    typed = subprocess.run(
        [Path(sys.executable).parent / "ray", *options.split(), "--no-wait", "--", *command.split()],
        cwd=cluster.project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert typed.returncode == 0, typed.stderr
    jobs = RayJobs(cluster.dashboard)
    job = re.findall(r"raysubmit_\w+", typed.stdout)[0]
    stage = cluster.runs / "runs" / "demo" / "pretrain"

    def stepping() -> bool:
        assert not jobs.state(job).ended, jobs.logs(job)
        return steps_committed(stage) >= 2

    until(stepping, "two steps", timeout_s=START_S, every_s=0.2)
    leave_while_following(cluster, job)
    # Ray's own command, which kills what has not ended after 3 s, unless the run has asked for more
    subprocess.run(
        [Path(sys.executable).parent / "ray", "job", "stop", "--address", cluster.dashboard, "--no-wait", job],
        capture_output=True,
        timeout=60,
        check=True,
    )
    state = jobs.wait(job, timeout_s=120.0)
    log = jobs.logs(job)
    assert state.status == "STOPPED", log
    assert "SIGTERM: stopping after this step with a checkpoint" in log
    assert f"Go on with: preceptor resume {cluster.runs}/runs/demo" in log
    steps = steps_committed(stage)
    assert (stage / "checkpoints" / f"{steps:08d}" / "manifest.json").exists(), log


def leave_while_following(cluster: Started, job: str) -> None:
    """Ctrl-C ends the watching and not the job."""
    watching = subprocess.Popen(
        [sys.executable, "-u", "-m", "orchestrator", "logs", job, "--follow", "--address", cluster.dashboard],
        cwd=cluster.project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() != ""
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=60)
    assert (watching.returncode, err) == (130, "preceptor: interrupted\n"), out
    assert out.endswith(
        f"\njob {job} goes on without you; `preceptor stop {job} --address {cluster.dashboard}` stops it\n"
    )
    assert RayJobs(cluster.dashboard).state(job).status == "RUNNING"


SECRET = "a-value-that-nobody-may-see"
PPO = ppo_config(
    run={"dir": "runs/ppo", "deterministic": False},
    data={"path": "runs/ppo-inputs/prompts.jsonl"},
    cluster={
        "groups": {
            "policy": {"resource": TRAIN, "strategy": "strict_spread"},
            "critic": {"resource": TRAIN},
            "rollout": {"resource": ENGINES},
            "reference": {"resource": ENGINES},
        }
    },
    policy={"model": "runs/ppo-inputs/model", "placement": {"num_ranks": 2}},
    critic={"placement": {"num_ranks": 2}},
    rollout={"num_engines": 2},
    ppo={"steps": 2},
)
"""Two ranks of the policy on two nodes, so that their collectives go from raylet to raylet; engines elsewhere, so that weights do too."""


def placed_on(group: str) -> list[str]:
    """Node of each bundle of a group that is placed now."""
    for facts in ray.util.placement_group_table().values():
        if facts["name"].startswith(f"preceptor-{group}-") and facts["state"] == "CREATED":
            return [facts["bundles_to_node_id"][index] for index in sorted(facts["bundles_to_node_id"])]
    return []


def test_each_role_lands_on_its_group_and_a_step_crosses_nodes(
    cluster: Started, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cluster.project)
    monkeypatch.setenv("FORWARDED", SECRET)
    Path("ppo.yaml").write_text(yaml.safe_dump(PPO))
    options = [*("--address", cluster.dashboard), *("--name", "small-ppo"), *("--metadata", "team=blue")]
    assert cli.main(["submit", "ppo.yaml", "ppo.steps=2", *options, "--env", "FORWARDED", "--driver-on", TRAIN]) == 0
    said = capfd.readouterr().out
    jobs = RayJobs(cluster.dashboard)
    [state] = [state for state in jobs.jobs() if state.name == "small-ppo"]
    job = state.job
    assert f"preceptor logs {job} --follow --address {cluster.dashboard}" in said
    assert f"preceptor stop {job} --address {cluster.dashboard}" in said
    known = {"config": "ppo.yaml", "stage": "ppo", "run_dir": "runs/ppo", "job_name": "small-ppo"}
    assert dict(state.metadata) == known | {"team": "blue"}
    with joined(cluster):
        places: dict[str, list[str]] = {}

        def placed() -> bool:
            assert not jobs.state(job).ended, jobs.logs(job)
            places.update({group: placed_on(group) for group in ("policy", "critic", "reference", "rollout")})
            return all(places.values())

        until(placed, "all groups placed", timeout_s=START_S, every_s=0.2)
    assert set(places["policy"]) == cluster.train
    assert len(set(places["critic"])) == 1
    assert set(places["critic"]) < cluster.train
    assert set(places["reference"]) < cluster.engines
    assert set(places["rollout"]) == cluster.engines
    assert cli.main(["logs", job, "--follow", "--address", cluster.dashboard]) == 0
    log = capfd.readouterr().out
    assert f"{cluster.runs}/runs/ppo/export holds the model" in log
    assert SECRET not in said + log
    run = cluster.runs / "runs" / "ppo"
    assert steps_committed(run) == 2
    assert JobSubmissionClient(cluster.dashboard).get_job_info(job).driver_node_id in cluster.train
    written = [path for path in run.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert written == []
    assert cli.main(["jobs", "--address", cluster.dashboard]) == 0
    [line] = [line for line in capfd.readouterr().out.splitlines() if line.startswith(job)]
    assert line.split()[1] == "SUCCEEDED"
    assert line.split()[-1] == "runs/ppo"
    assert cli.main(["stop", job, "--address", cluster.dashboard]) == 0
    assert capfd.readouterr().out == f"job {job} has ended already: SUCCEEDED\n"


def test_a_search_runs_its_trials_as_jobs_and_ends_the_worse_one(cluster: Started, tmp_path: Path) -> None:
    """The command is a process of its own, as a user starts it, with a Ray of this machine beside the cluster for Tune."""
    make_project(tmp_path)
    small = reward_config(run={"deterministic": False, "checkpoint_every": 1000}, training={"epochs": 20})
    inputs = {"data": {"path": str(tmp_path / "rankings.jsonl")}, "model": {"model": str(tmp_path / "model")}}
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(merged(small, inputs)))
    folder = tmp_path / "search"
    # the seed draws the learning rate that learns first
    space = ("model.optimizer.lr=[3e-3,1e-9]", "--search", "asha", "--samples", "2", "--seed", "8", "--parallel", "2")
    rungs = ("--max-steps", "180", "--grace-steps", "5", "--reduction", "2", "--metric", "loss", "--mode", "min")
    at = ("--address", cluster.dashboard, "--working-dir", str(cluster.project), "--registry", "off")
    with Driver(tmp_path, folder, "sweep", "reward.yaml", *space, *rungs, *at, "--dir", str(folder)) as driver:
        assert driver.ended(timeout_s=START_S) == 0, driver.output
        driver.nothing_left()
    good, bad = (json.loads(path.read_bytes()) for path in sorted((folder / "records").glob("*.json")))
    assert (good["status"], bad["status"]) == ("finished", "pruned")
    jobs = RayJobs(cluster.dashboard)
    assert [jobs.state(trial["job"]).status for trial in (good, bad)] == ["SUCCEEDED", "STOPPED"]
    steps = steps_committed(folder / "trials" / "0002")
    assert 5 <= steps < 180
    assert (folder / "trials" / "0002" / "checkpoints" / f"{steps:08d}" / "manifest.json").exists()
