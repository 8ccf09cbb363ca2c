"""No process of a run outlives its driver, however the driver ends. For a Ray of this machine alone.

Everything that is started within `nothing_left` inherits a mark in its environment, whoever starts it: Ray's processes, roles, hosts of
reward functions, what a user's function starts. Ray's processes write their titles over their environments, a small one wholly: they are
also known by the log files that they hold open, in a folder that bears the mark. Beside the driver runs a watcher, this file as a script,
that sleeps until the driver's end of a pipe is closed. Then both do the same: they give the marked processes some seconds to end, and kill
those that do not. Ray alone leaves its agents behind for a minute where a driver is killed, and processes that were stopped (SIGSTOP) for
good.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "PRECEPTOR_DRIVER"
"""The environment variable that holds the mark."""
LEAVE_S = 3.0
"""How long processes may take to end by themselves."""
KILLED_S = 10.0
"""How long killed ones may take to be gone."""


@contextmanager
def nothing_left() -> Iterator[None]:
    """When the block ends, or this process, everything that was started within it has ended."""
    # not at the top: as a script this file stands alone
    from orchestrator.signals import undisturbed

    mark, outer = uuid.uuid4().hex[:12], os.environ.get(MARK)
    watched, lifeline = os.pipe()
    watcher = subprocess.Popen(
        [sys.executable, "-I", os.path.abspath(__file__), mark],
        stdin=watched,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is not for it
    )
    os.close(watched)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        if outer is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = outer
        with undisturbed():
            end(mark)
            os.close(lifeline)
            watcher.wait(timeout=LEAVE_S + KILLED_S + 5.0)
    # after an error Ray's own logs stay for whoever looks for its reason
    shutil.rmtree(ray_folder(mark), ignore_errors=True)


def ray_folder(mark: str) -> Path:
    """Where a Ray that is started under the mark keeps its sessions, logs among them. Short, for the sockets' paths may have 107 bytes."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")).absolute() / f"preceptor-{mark}"


def end(mark: str) -> None:
    """Waits for the marked processes to end, and kills those that do not."""
    if _gone(mark, LEAVE_S, None):
        return
    _gone(mark, KILLED_S, signal.SIGKILL)


def _gone(mark: str, timeout_s: float, number: signal.Signals | None) -> bool:
    deadline = time.monotonic() + timeout_s
    while left := marked(mark):
        if number is not None:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def marked(mark: str) -> list[int]:
    """Live processes that bear the mark. A driver has Ray's logs open too, and is none of them, for itself and its watcher."""
    driver = {os.getpid(), os.getppid()}
    return [
        pid
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit())
        if pid not in driver and (_inherited(pid, mark) or _writes(pid, mark))
    ]


def _inherited(pid: int, mark: str) -> bool:
    with suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _writes(pid: int, mark: str) -> bool:
    folder = f"{ray_folder(mark)}/"
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(file).startswith(folder) and _opened_to_write(pid, file.name):
                    return True
    return False


def _opened_to_write(pid: int, fd: str) -> bool:
    """Who only reads a log (`tail -f`) is no process of the run."""
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end(sys.argv[1])
