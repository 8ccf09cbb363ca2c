"""Jobs of a Ray cluster, through Ray's own job client: submitted, watched, stopped.

Only the dashboard's HTTP address is needed. No token is handled here: where the cluster asks for one, Ray's client takes it from
RAY_AUTH_TOKEN or its file.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient, JobType

from actors.errors import NoAnswer, PreceptorError, UserError

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")

NAME_KEY = "job_name"
"""Metadata: the job's name, under Ray's own key, so that the dashboard shows it."""
RUN_DIR_KEY = "run_dir"
"""Metadata: the run directory of the run that the job is."""

RESOURCE_SHARE = 0.001
"""Of a custom resource for the entrypoint: it says where, and counts nothing."""
CONNECT_S = 5.0
ANSWER_S = 60.0
"""Longest silence of the job server within an answer, or while it takes a working directory."""
POLL_S = 0.5
LOOK_S = 10.0
"""After so long without a new line of its log, a followed job is asked whether it still runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What is to run."""

    entrypoint: str
    """A shell command."""
    name: str | None = None
    """Becomes part of the job's id. Letters, digits, `.`, `_`, `-`."""
    working_dir: Path | None = None
    """Folder that is copied to the cluster and that the entrypoint starts in; without what .gitignore and .rayignore name."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of the job's processes. Ray keeps it with the job, where who may use the cluster may see it."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    resource: str | None = None
    """Ray custom resource of the nodes that the entrypoint may run on; the head where it is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """What the cluster knows of a job."""

    job: str
    """Its id."""
    name: str | None
    status: Status
    message: str
    """In words; of a failed job also the end of its log."""
    metadata: Mapping[str, str]
    started_s: float | None
    """Seconds since 1970."""
    ended_s: float | None
    run_dir: str | None
    exit_code: int | None
    """Of its entrypoint, where that has ended by itself."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class _Client(JobSubmissionClient):
    """Ray's own, whose requests wait for ever."""

    def _do_request(self, method: str, endpoint: str, **arguments: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=(CONNECT_S, ANSWER_S), **arguments)


class RayJobs:
    """The jobs of one cluster. Every method raises UserError where the address does not answer or the job is not known."""

    def __init__(self, address: str) -> None:
        """`address` is the Ray dashboard's, such as http://127.0.0.1:8265.

        Raises:
            UserError: where it is none, or no job server answers there.
        """
        if set(address) & set("@?#"):  # what may hold a password or token is not repeated
            raise UserError(
                "address: got one with a user, password, query or fragment; allowed: the Ray dashboard's, such as http://127.0.0.1:8265, "
                "and a token in RAY_AUTH_TOKEN"
            )
        if not re.fullmatch(r"https?://[^/\s]+/?", address):
            raise UserError(f"address: got {address!r}; allowed: the Ray dashboard's, such as http://127.0.0.1:8265")
        self.address = address.rstrip("/")
        with self._told(), _given_address(self.address):
            self._client = _Client(self.address)

    def submit(self, request: JobRequest) -> str:
        """Starts a job and returns its id. Takes the time that the upload of its working directory takes."""
        if request.name is not None and not re.fullmatch(r"[\w.-]+", request.name, re.ASCII):
            raise UserError(f"job name: got {request.name!r}; allowed: letters, digits, '.', '_' and '-'")
        if request.working_dir is not None and not request.working_dir.is_dir():
            raise UserError(f"working directory: got {str(request.working_dir)!r}; allowed: a folder of this machine")
        runtime_env: dict[str, Any] = {}
        if request.working_dir is not None:
            runtime_env["working_dir"] = str(request.working_dir)
        if request.env:
            runtime_env["env_vars"] = dict(request.env)
        name = {} if request.name is None else {NAME_KEY: request.name}
        with self._told():
            return self._client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=None if request.name is None else f"{request.name}-{uuid.uuid4().hex[:8]}",
                runtime_env=runtime_env,
                metadata={**request.metadata, **name},
                entrypoint_resources=None if request.resource is None else {request.resource: RESOURCE_SHARE},
            )

    def state(self, job: str) -> JobState:
        """How it stands with a job."""
        with self._told(job):
            return _state(self._client.get_job_info(job))

    def jobs(self) -> list[JobState]:
        """All jobs that were submitted, the oldest first. Drivers that joined the cluster by themselves are not among them."""
        with self._told():
            found = self._client.list_jobs()
        states = [_state(details) for details in found if details.type == JobType.SUBMISSION]
        return sorted(states, key=lambda state: state.started_s or 0.0)

    def logs(self, job: str) -> str:
        """What its entrypoint has printed so far."""
        self.state(job)  # Ray says nothing readable of a job that it does not know
        with self._told(job):
            return self._client.get_job_logs(job)

    def follow(self, job: str) -> Generator[str, None, None]:
        """What its entrypoint has printed and prints, piece by piece, until the job ends. To be closed by who leaves before."""
        self.state(job)
        with self._told(job), asyncio.Runner() as runner:
            pieces: Any = self._client.tail_job_logs(job)
            waiting = None
            try:
                while True:
                    waiting = waiting or runner.get_loop().create_task(anext(pieces))
                    done, _ = runner.run(asyncio.wait({waiting}, timeout=LOOK_S))
                    if not done:
                        if self.state(job).ended:
                            return
                        continue
                    try:
                        piece = waiting.result()
                    except StopAsyncIteration:
                        return
                    waiting = None
                    yield piece
            finally:
                runner.run(_close(pieces, waiting))

    def wait(self, job: str, *, timeout_s: float) -> JobState:
        """Waits until a job has ended.

        Raises:
            PreceptorError: where it goes on after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not (state := self.state(job)).ended:
            if time.monotonic() > deadline:
                raise PreceptorError(
                    f"job {job} at {self.address} has not ended within {timeout_s:g} s: {state.status}"
                )
            time.sleep(POLL_S)
        return state

    def stop(self, job: str, *, timeout_s: float) -> JobState:
        """Asks a job to stop and waits until it has ended. A run of ours ends its step and writes a checkpoint first.

        Raises:
            PreceptorError: where it has not ended within `timeout_s`; it goes on stopping.
        """
        if not self.state(job).ended:
            with self._told(job):
                self._client.stop_job(job)
        return self.wait(job, timeout_s=timeout_s)

    @contextmanager
    def _told(self, job: str | None = None) -> Iterator[None]:
        """Ray's errors as ours."""
        try:
            yield
        except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
            raise NoAnswer(
                f"address: no Ray job server answers at {self.address} ({_reason(error)}); allowed: the dashboard's address of a running "
                "cluster, such as http://127.0.0.1:8265"
            ) from error
        except AuthenticationError as error:
            raise UserError(
                f"address: {self.address} asks for a token or refuses the one given; allowed: its token in RAY_AUTH_TOKEN, with "
                "RAY_AUTH_MODE=token"
            ) from error
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            if job is not None and "does not exist" in text:
                raise UserError(
                    f"job: got {job!r}, which {self.address} does not know; `preceptor jobs` lists what it knows"
                ) from error
            raise UserError(f"the job server at {self.address} refuses: {text[:1000]}") from error


async def _close(pieces: AsyncGenerator[str, None], waiting: asyncio.Task[str] | None) -> None:
    """Ends a stream of which the next piece may be waited for."""
    if waiting is not None and waiting.cancel():
        await asyncio.wait({waiting})
    await pieces.aclose()


def left_out(working_dir: Path, path: Path) -> bool:
    """Whether Ray leaves a file, or all of a folder, out of its copy of the working directory: what is outside, and what .gitignore or
    .rayignore of a folder above names."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    # not resolved: Ray copies what a link leads to as if it stood there
    root, path = (Path(os.path.normpath(one.absolute())) for one in (working_dir, path))
    gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1"  # Ray's own switch
    if not path.is_relative_to(root):
        return True
    above = [folder for folder in path.parents if folder.is_relative_to(root)]
    # what lies in a folder that is left out is left out
    named = [*(folder for folder in above if folder != root), path]
    if any(
        match(one)
        for folder in above
        for match in get_excludes_from_ignore_files(folder, gitignore)
        for one in named
        if one.is_relative_to(folder)
    ):
        return True
    # a pattern may name what is in a folder: `/runs/*`
    files = (file for file in path.rglob("*") if file.is_file())
    first = next(files, None)
    return first is not None and all(left_out(root, file) for file in itertools.chain([first], files))


@contextmanager
def _given_address(address: str) -> Iterator[None]:
    """Ray's client prefers RAY_ADDRESS to the address that it is given, also where that is another cluster's; only this variable is
    stronger."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _reason(error: Exception) -> str:
    if isinstance(error, requests.exceptions.Timeout):
        return "it does not answer in time"
    return "no connection"


def _state(details: JobDetails) -> JobState:
    metadata = details.metadata or {}
    return JobState(
        job=details.submission_id or details.job_id or "",
        name=metadata.get(NAME_KEY),
        status=details.status.value,
        message=details.message or "",
        metadata=metadata,
        started_s=_seconds(details.start_time),
        ended_s=_seconds(details.end_time),
        run_dir=metadata.get(RUN_DIR_KEY),
        exit_code=details.driver_exit_code,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
