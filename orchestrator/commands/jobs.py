"""`preceptor submit`, `jobs`, `logs`, `stop`: runs as jobs of a Ray cluster."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.base import (
    BadInput,
    Commands,
    add_config,
    add_registry,
    add_resume_if_begun,
    add_skip_memory_check,
    console,
)

if TYPE_CHECKING:
    from orchestrator.ray_jobs import JobState, RayJobs

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
"""Loggers of Ray's client that tell of every upload, of what it always leaves out (.git, .venv) and of every closed connection."""
STOP_S = 960.0
"""Longest wait for a stopped job to end: somewhat more than `cluster.stop_timeout_s` gives it by default."""


def register(commands: Commands) -> None:
    """Adds them."""
    submit = commands.add("submit", _submit, "train what a config asks for as a job of a Ray cluster")
    add_config(submit)
    submit.add_argument("--name", help="becomes part of the job's id: letters, digits, '.', '_', '-'")
    submit.add_argument(
        "--metadata", metavar="K=V", action="append", default=[], help="kept with the job; may be repeated"
    )
    submit.add_argument(
        "--env",
        metavar="NAME",
        action="append",
        default=[],
        help="environment variable of this process to hand to the job; may be repeated",
    )
    submit.add_argument(
        "--working-dir", metavar="DIR", default=".", help="folder that is copied to the cluster; default: this one"
    )
    submit.add_argument(
        "--driver-on", metavar="RESOURCE", help="Ray custom resource of the driver's node; default: the head"
    )
    submit.add_argument("--follow", action="store_true", help="show what the job prints until it ends")
    add_skip_memory_check(submit)
    add_resume_if_begun(submit)
    add_registry(submit)
    listing = commands.add("jobs", _jobs, "list the jobs of a Ray cluster")
    listing.add_argument("--json", action="store_true", help="as JSON")
    logs = commands.add("logs", _logs, "show what a job has printed")
    logs.add_argument("job", metavar="JOB", help="its id")
    logs.add_argument("--follow", action="store_true", help="go on until the job ends")
    stop = commands.add("stop", _stop, "stop a job after its step, with a checkpoint")
    stop.add_argument("job", metavar="JOB", help="its id")
    stop.add_argument(
        "--timeout-s", type=float, default=STOP_S, metavar="S", help="longest wait for its end; default: %(default)g"
    )
    for parser in (submit, listing, logs, stop):
        parser.add_argument(
            "--address",
            metavar="URL",
            help=f"the Ray dashboard's; default: RAY_ADDRESS where that is an http address, else {DEFAULT_ADDRESS}",
        )


def _submit(arguments: argparse.Namespace) -> None:
    from configs.load import environment_overrides, load_config
    from configs.schema import Pipeline
    from orchestrator.plan import check_groups, make_plan
    from orchestrator.surroundings import handed_over

    folder = Path(arguments.working_dir)
    config_path = _within(folder, arguments.config)
    metadata = dict(_pairs(arguments.metadata))
    env = handed_over(arguments.env)
    config = load_config(arguments.config, arguments.overrides)
    overrides = [*arguments.overrides, *environment_overrides(arguments.config, arguments.overrides)]
    check_groups(config)
    for stage in config.stages.values() if isinstance(config, Pipeline) else [config]:
        make_plan(stage, None)
    _quiet_client()
    from orchestrator.uploaded import require_uploaded

    require_uploaded(config, Path(arguments.config), folder)
    if not arguments.skip_memory_check:
        from orchestrator.estimate.preflight import check_memory

        check_memory(config, here=False)
    if arguments.registry is not None:
        from orchestrator.registry.address import address_of

        address_of(arguments.registry)
    from orchestrator.ray_jobs import RUN_DIR_KEY, JobRequest

    ray_jobs = _cluster(arguments)
    job = ray_jobs.submit(
        JobRequest(
            entrypoint=_entrypoint(arguments, config_path, overrides),
            name=arguments.name,
            working_dir=folder,
            env=env,
            metadata={**metadata, "config": config_path, "stage": config.stage, RUN_DIR_KEY: config.run.dir},
            resource=arguments.driver_on,
        )
    )
    at = _at(ray_jobs)
    print(f"job {job}\nwatch it:  preceptor logs {job} --follow{at}\nstop it:   preceptor stop {job}{at}", flush=True)
    if arguments.follow:
        _follow(ray_jobs, job)


def _jobs(arguments: argparse.Namespace) -> None:
    states = _cluster(arguments).jobs()
    if arguments.json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(state) for state in states], indent=2))
        return
    import datetime
    import time

    from rich.table import Table

    table = Table("job", "status", "started", "took", "run.dir", box=None, pad_edge=False)
    for state in states:
        if state.started_s is None:
            started = took = "-"
        else:
            started = f"{datetime.datetime.fromtimestamp(state.started_s):%Y-%m-%d %H:%M:%S}"
            seconds = int((state.ended_s or time.time()) - state.started_s)
            took = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        table.add_row(state.job, state.status, started, took, state.run_dir or "-")
    console().print(table if states else "no jobs")


def _logs(arguments: argparse.Namespace) -> None:
    ray_jobs = _cluster(arguments)
    if arguments.follow:
        _follow(ray_jobs, arguments.job)
    else:
        print(ray_jobs.logs(arguments.job), end="")


def _stop(arguments: argparse.Namespace) -> None:
    if arguments.timeout_s <= 0:
        raise BadInput(f"--timeout-s: got {arguments.timeout_s:g}; allowed: more than 0")
    ray_jobs = _cluster(arguments)
    before = ray_jobs.state(arguments.job)
    if before.ended:
        print(f"job {before.job} has ended already: {before.status}")
        return
    print(f"job {before.job} ends its step and writes a checkpoint ...", flush=True)
    print(f"job {before.job}: {ray_jobs.stop(arguments.job, timeout_s=arguments.timeout_s).status}")


# ------------------------------------------------------------------------------------------------------------------- helpers


def _cluster(arguments: argparse.Namespace) -> RayJobs:
    from orchestrator.ray_jobs import RayJobs

    _quiet_client()
    given = [arguments.address, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS")]
    # RAY_ADDRESS may also name what drivers join, which answers no job client
    usable = [address for address in given[1:] if address and address.startswith(("http://", "https://"))]
    return RayJobs(arguments.address or next(iter(usable), DEFAULT_ADDRESS))


def _quiet_client() -> None:
    import logging

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def _at(ray_jobs: RayJobs) -> str:
    """What a further command needs to find the same cluster."""
    return "" if ray_jobs.address == DEFAULT_ADDRESS else f" --address {ray_jobs.address}"


def _follow(ray_jobs: RayJobs, job: str) -> None:
    """Shows what a job prints until it ends. PreceptorError where it does not succeed. Ctrl-C leaves it running."""
    from actors.errors import PreceptorError

    try:
        with closing(ray_jobs.follow(job)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        state: JobState = ray_jobs.wait(job, timeout_s=60.0)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on without you; `preceptor stop {job}{_at(ray_jobs)}` stops it", flush=True)
        raise
    if state.status != "SUCCEEDED":
        # of one whose entrypoint never ran there is no log to say why
        why = "" if state.status == "STOPPED" or state.exit_code is not None else f": {' '.join(state.message.split())}"
        raise PreceptorError(f"job {job}: {state.status}{why}")
    print(f"job {job}: {state.status}")


def _entrypoint(arguments: argparse.Namespace, config_path: str, overrides: Sequence[str]) -> str:
    """What the job runs: the same run as here, with the options that are the run's."""
    options = [
        *(["--skip-memory-check"] if arguments.skip_memory_check else []),
        *(["--resume-if-begun"] if arguments.resume_if_begun else []),
        *(["--registry", arguments.registry] if arguments.registry is not None else []),
    ]
    return shlex.join(["python", "-m", "orchestrator", "run", *options, config_path, *overrides])


def _within(folder: Path, config: str) -> str:
    """The config's path as the job will see it."""
    if not folder.is_dir():
        raise BadInput(f"--working-dir: got {str(folder)!r}, which is no folder")
    file, root = (Path(os.path.normpath(one.absolute())) for one in (Path(config), folder))
    if not file.is_relative_to(root):
        raise BadInput(
            f"CONFIG: got {config!r}, which is outside {root}; allowed: a file in --working-dir, which the job sees"
        )
    return str(file.relative_to(root))


def _pairs(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise BadInput(f"--metadata: got {text!r}; allowed: KEY=VALUE")
        yield key, value
