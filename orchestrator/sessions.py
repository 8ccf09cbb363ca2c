"""Who worked on a run, when, with what: a file in the run directory for each driver's begin, and one for its end.

They hold what neither config nor ledger says, so that a registry can be filled from run directories, and a run reproduced without one. A
session without an end was killed, or is at work.
"""

from __future__ import annotations

import fcntl
import functools
import getpass
import hashlib
import json
import os
import platform
import socket
import sysconfig
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from actors.errors import PreceptorError
from actors.store import create_only, is_local, read_bytes
from orchestrator.lineage import code_version
from orchestrator.machine import local_machine
from orchestrator.run_dir import DONE_FILE, LOCK_FILE
from orchestrator.store_lock import alive
from orchestrator.surroundings import ray_job

SESSIONS_FOLDER = "sessions"
FORMAT = 1
CPU_INFO = Path("/proc/cpuinfo")

EndState = Literal["finished", "stopped", "failed"]
State = Literal["running", "finished", "stopped", "failed", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One driver's work on a run. Times are seconds since 1970."""

    run_id: str
    """The same for all sessions of a run."""
    number: int
    """From 1."""
    started: float
    host: str
    user: str
    cwd: str
    """What relative paths of data and models are relative to."""
    code: dict[str, str]
    packages: dict[str, str]
    """Installed distributions and their versions."""
    machine: dict[str, Any]
    num_gpus: int
    """That the plan takes."""
    ray_job: str | None
    """Submission id, where Ray's job server started the driver."""
    ended: float | None = None
    state: EndState | None = None
    error: str = ""


def lock_digest(packages: dict[str, str]) -> str:
    """sha256 over distributions and their versions, whatever their order."""
    return hashlib.sha256("\n".join(sorted(f"{name}=={packages[name]}" for name in packages)).encode()).hexdigest()


def installed_packages() -> dict[str, str]:
    """Name to version of every distribution of this Python's environment. Not of all of `sys.path`: libraries such as Ray add folders of
    their own to it when they are imported."""
    places = list(dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")))
    return {one.name.lower().replace("_", "-"): one.version for one in metadata.distributions(path=places)}


def machine_facts() -> dict[str, Any]:
    """What of this machine decides how floating-point numbers come out."""
    machine = local_machine()
    model = ""
    with suppress(OSError):
        lines = CPU_INFO.read_text("utf-8", "replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cores": machine.num_cpus,
        "gpus": machine.num_gpus,
        "python": platform.python_version(),
    }


# read once: a process runs what it has loaded, whatever becomes of the files
_code = functools.cache(code_version)
_packages = functools.cache(installed_packages)


def begin_session(run_dir: Path, *, num_gpus: int) -> Session:
    """Notes that this driver works on the run."""
    earlier = read_sessions(run_dir)
    session = Session(
        run_id=earlier[0].run_id if earlier else uuid.uuid4().hex,
        number=len(earlier) + 1,
        started=time.time(),
        host=socket.gethostname(),
        user=_user(),
        cwd=_cwd(),
        code=_code(),
        packages=_packages(),
        machine=machine_facts(),
        num_gpus=num_gpus,
        ray_job=ray_job(),
    )
    begun = {key: value for key, value in asdict(session).items() if key not in ("ended", "state", "error")}
    create_only(_path(run_dir, session.number, "begin"), json.dumps({"format": FORMAT, **begun}, indent=1).encode())
    return session


def end_session(run_dir: Path, session: Session, state: EndState, error: str = "") -> None:
    """Notes how it ended."""
    ended = {"format": FORMAT, "ended": time.time(), "state": state, "error": error}
    with suppress(FileExistsError):
        create_only(_path(run_dir, session.number, "end"), json.dumps(ended, indent=1).encode())


def read_sessions(run_dir: Path) -> list[Session]:
    """All of a run, oldest first; none where the run was made by a version that kept none.

    Raises:
        PreceptorError: naming a damaged file.
    """
    found: list[Session] = []
    while (path := _path(run_dir, len(found) + 1, "begin")).exists():
        session = Session(**_read(path))
        end = _path(run_dir, len(found) + 1, "end")
        found.append(replace(session, **_read(end)) if end.exists() else session)
    return found


def state_of(run_dir: Path, sessions: list[Session]) -> State:
    """Of a run, as its folder tells it."""
    if (run_dir / DONE_FILE).exists():
        return "finished"
    if sessions and sessions[-1].state is not None:
        return sessions[-1].state
    if _is_locked(run_dir):
        return "running"
    return "lost" if sessions else "stopped"


def _is_locked(run_dir: Path) -> bool:
    """Whether a driver has the folder. False where the file system has no locks."""
    if not is_local(run_dir):
        return alive(run_dir / LOCK_FILE)
    try:
        handle = os.open(run_dir / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _path(run_dir: Path, number: int, what: str) -> Path:
    return run_dir / SESSIONS_FOLDER / f"{number:08d}.{what}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    except (OSError, ValueError) as error:
        raise PreceptorError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise PreceptorError(f"{path} is damaged, or of another version")
    return found


def _cwd() -> str:
    """Empty where the folder is gone: a job's copy of its working directory can be made anew under it, where nodes share a host."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
