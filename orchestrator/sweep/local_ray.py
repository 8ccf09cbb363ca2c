"""A Ray of this machine alone, with a job server: what a sweep without a cluster runs its trials on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from actors.errors import UserError
from orchestrator.launch import start_local
from orchestrator.leftovers import nothing_left
from orchestrator.ray_jobs import RayJobs
from orchestrator.signals import undisturbed

JOB_SERVER_S = 120.0
"""Longest wait for the job server of a Ray that has just started."""


@contextmanager
def local_jobs(num_cpus: int, num_gpus: int) -> Iterator[RayJobs]:
    """The jobs of a Ray that is started for the block and ends with it, and every process of its jobs too.

    `num_cpus` are Ray's logical ones: all that the trials that run at once ask for together.
    """
    with nothing_left():
        try:
            dashboard = start_local(
                {
                    "num_cpus": num_cpus,
                    "num_gpus": num_gpus,
                    "include_dashboard": True,
                    "dashboard_host": "127.0.0.1",
                    "log_to_driver": False,
                    "configure_logging": False,
                }
            )
            yield _answering(f"http://{dashboard}")
        finally:
            with undisturbed():
                ray.shutdown()


def _answering(address: str) -> RayJobs:
    deadline = time.monotonic() + JOB_SERVER_S
    while True:
        try:
            return RayJobs(address)
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)
