"""What the environment says of this process: the Ray cluster it belongs to, whether it is a job of it, and where a job's files go.

A job starts in a copy of its working directory that is gone with it. What it reads is found there; what it writes must lie elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from actors.errors import UserError
from configs.schema.run import ClusterConfig

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in a job's entrypoint, in JSON: its runtime environment and metadata."""
RAY_ADDRESS = "RAY_ADDRESS"
IN_POD = "KUBERNETES_SERVICE_HOST"
"""Set by Kubernetes in every container."""
RUNS = "PRECEPTOR_RUNS"
"""Folder or URL that relative run directories of jobs are taken from."""
HOME = "~/preceptor"
"""Where that is not set."""
LOCAL = "local"


def cluster_address(cluster: ClusterConfig) -> str | None:
    """The Ray cluster to join; None for a Ray of this machine alone.

    `cluster.address` comes first, then RAY_ADDRESS. An http address in RAY_ADDRESS is a job server's, for `preceptor submit`, and no
    cluster to join.
    """
    if cluster.address is not None:
        return None if cluster.address == LOCAL else cluster.address
    address = os.environ.get(RAY_ADDRESS, "")
    return None if address in ("", LOCAL) or address.startswith(("http://", "https://")) else address


def ray_job() -> str | None:
    """The id of the Ray job that this process is the entrypoint of, or None."""
    text = os.environ.get(RAY_JOB)
    return None if text is None else str(json.loads(text)["metadata"]["job_submission_id"])


def handed_over(names: Iterable[str]) -> dict[str, str]:
    """The variables of this process that `--env` gives to a job. UserError where one is not set."""
    names = list(names)
    for name in names:
        if name not in os.environ:
            # a value in place of a name may be a secret: it is not repeated
            got = repr(name) if name.isidentifier() else "something that is no name"
            raise UserError(f"--env: got {got}; allowed: the name of a variable that is set here")
    return {name: os.environ[name] for name in names}


def home_is_lost() -> bool:
    """Whether what this process leaves in its home folder is found by nobody: in a job that was sent to a cluster with a copy of a folder,
    and in a pod of a Ray cluster. A job without a copy was started on this machine, as a sweep's trials are."""
    job = os.environ.get(RAY_JOB)
    sent = job is not None and "working_dir" in json.loads(job)["runtime_env"]
    return sent or (IN_POD in os.environ and RAY_ADDRESS in os.environ)


def place_of_run(run_dir: str) -> str:
    """Where a run directory is: as it is given, but a job's relative one under $PRECEPTOR_RUNS (without that, ~/preceptor).

    What it returns it gives back unchanged.

    Raises:
        UserError: for a relative $PRECEPTOR_RUNS, which would lie in the job's copy of the working directory.
    """
    if ray_job() is None or "://" in run_dir or Path(run_dir).is_absolute():
        return run_dir
    text = os.environ.get(RUNS) or HOME
    runs = text if "://" in text else os.path.expanduser(text)
    if "://" not in runs and not Path(runs).is_absolute():
        raise UserError(
            f"{RUNS}: got {text!r}; allowed: an absolute path or a URL, for a job's own folder is gone with it"
        )
    return f"{runs.rstrip('/')}/{run_dir}"
