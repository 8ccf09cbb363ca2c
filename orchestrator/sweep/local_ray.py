"""A Ray of this machine alone: what a sweep without a cluster runs its trials on, and what Tune runs in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.errors import UserError
from orchestrator.launch import start_local
from orchestrator.leftovers import nothing_left
from orchestrator.ray_jobs import RayJobs
from orchestrator.signals import undisturbed

JOB_SERVER_S = 120.0
"""Longest wait for the job server of a Ray that has just started."""


@contextmanager
def local_ray(*, num_cpus: int, num_gpus: int, resources: Mapping[str, float], jobs: bool) -> Iterator[str]:
    """A Ray that is started for the block and ends with it, with every process of its jobs: its dashboard's address.

    Args:
        num_cpus: Ray's logical ones: all that the trials that run at once ask for together.
        num_gpus: Of this machine.
        resources: Custom ones.
        jobs: With a dashboard and so with a job server; without, the address is empty.
    """
    ours = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    with nothing_left():
        try:
            dashboard = start_local(
                {
                    "num_cpus": num_cpus,
                    "num_gpus": num_gpus,
                    "resources": dict(resources),
                    "include_dashboard": jobs,
                    "dashboard_host": "127.0.0.1",
                    "log_to_driver": False,
                    "configure_logging": False,
                    "runtime_env": {"env_vars": {"PYTHONPATH": search}},
                }
            )
            yield f"http://{dashboard}" if jobs else ""
        finally:
            with undisturbed():
                ray.shutdown()


def job_server(address: str) -> RayJobs:
    """The job server of a Ray that has just started. UserError where it does not come to answer."""
    deadline = time.monotonic() + JOB_SERVER_S
    while True:
        try:
            return RayJobs(address)
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)
