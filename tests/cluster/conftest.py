"""One real Ray cluster for all tests of this folder: five raylets on one host with a job server, custom resources standing for GPU
groups, and a copy of the repository with inputs to submit from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.errors import UserError
from orchestrator.ray_jobs import JobRequest, RayJobs
from tests.resilience.runs import make_project, until

ROOT = Path(__file__).resolve().parents[2]
TRAIN, ENGINES = "gpus_to_train", "gpus_to_generate"
"""Custom resources that stand for two kinds of GPU nodes."""


ANY_PORT = {"dashboard_agent_listen_port": 0}
"""Each node's agent takes jobs and gives logs at a port that is the same on every host by default: several nodes on one host, or another
Ray there, would be without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The cluster."""

    address: str
    """What drivers join."""
    dashboard: str
    """What job clients talk to."""
    head: str
    """Node id."""
    train: frozenset[str]
    engines: frozenset[str]
    runs: Path
    """PRECEPTOR_RUNS of its jobs."""
    project: Path
    """Copy of the repository to submit from."""


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    runs, project = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("submit") / "preceptor"
    make_copy(project)
    # what jobs inherit from the nodes
    changed = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PRECEPTOR_RUNS": str(runs),
        "OF_THE_NODES": "yes",
    }
    before = {key: os.environ.get(key) for key in changed}
    os.environ.update(changed)
    try:
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": True, "dashboard_port": 0, **ANY_PORT},
        )
        groups = {TRAIN: frozenset[str](), ENGINES: frozenset[str]()}
        for number, resource in enumerate((TRAIN, TRAIN, ENGINES, ENGINES)):
            node = made.add_node(
                num_cpus=4,
                num_gpus=0,
                resources={resource: 1},
                # as on a host of its own: a node unpacks a job's folder anew where it finds one, under the feet of who runs in it
                runtime_env_dir_name=f"runtime_resources_{number}",
                **ANY_PORT,
            )
            groups[resource] |= {node.node_id}
        made.wait_for_nodes()
        dashboard = f"http://{made.head_node.webui_url}"
        try:
            until(lambda: takes_jobs(dashboard), "the job server's agent", timeout_s=120.0, every_s=0.5)
            yield Started(
                address=made.address,
                dashboard=dashboard,
                head=made.head_node.node_id,
                train=groups[TRAIN],
                engines=groups[ENGINES],
                runs=runs,
                project=project,
            )
        finally:
            ray.shutdown()
            made.shutdown()
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@pytest.fixture(autouse=True)
def _no_job_left(cluster: Started) -> Iterator[None]:
    """A test that fails leaves no job to the next."""
    yield
    jobs = RayJobs(cluster.dashboard)
    for state in jobs.jobs():
        if not state.ended:
            jobs.stop(state.job, timeout_s=120.0)


def takes_jobs(dashboard: str) -> bool:
    """The job server starts before the agent that it hands jobs to."""
    try:
        RayJobs(dashboard).submit(JobRequest(entrypoint="true"))
    except UserError as error:
        if "No available agent" not in str(error):
            raise
        return False
    return True


def make_copy(folder: Path) -> None:
    """The repository as a clone would have it, the demo's inputs, and those of a small PPO run."""
    shutil.copytree(
        ROOT,
        folder,
        ignore=shutil.ignore_patterns(".git", ".venv", ".venv-tools", "runs", "bench-out", ".*_cache", "__pycache__"),
    )
    inputs = folder / "runs" / "demo-inputs"
    subprocess.run([sys.executable, "-m", "tools.make_demo", str(inputs)], cwd=folder, check=True, timeout=120)
    small = folder / "runs" / "ppo-inputs"
    small.mkdir()
    make_project(small)
    shutil.move(small / "paying.py", folder / "paying.py")
    (folder / "runs" / "left-behind").mkdir()
    (folder / "runs" / "left-behind" / "rows.jsonl").write_text(json.dumps({"text": "not copied"}))


@contextmanager
def joined(cluster: Started) -> Iterator[None]:
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()
