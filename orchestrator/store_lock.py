"""A lock object for runs in an object store, which has no locks: who works on the run, with signs of life.

A courtesy, as the lock of a folder is: it tells a second driver at once. What makes a step count once is the ledger's conditional write.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from actors.errors import PreceptorError, UserError
from actors.store import naming, object_of, read_bytes, write_whole

BEAT_S = 5.0
"""Between two signs of life."""
WATCH_S = 20.0
"""How long a lock of another machine is watched for one: no clocks are compared."""


def this_driver() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def announced(folder: Path, lock: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Says in `lock` that this driver works on the run in `folder` while the block runs.

    Whoever left a lock on this machine has died, since its lock file is free. One of another machine is watched.

    Raises:
        UserError: where another driver gives a sign of life.
    """
    found = _read(lock)
    if found and found["host"] != socket.gethostname():
        note(f"{lock} names {found['driver']}: waiting {WATCH_S:g} s for a sign of life")
        _refuse_living(folder, lock, found)
    token = uuid.uuid4().hex
    ended = threading.Event()
    _beat(lock, token, 0)
    thread = threading.Thread(target=_beats, args=(lock, token, ended), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=BEAT_S)
        _remove(lock, token)


def alive(lock: Path) -> bool:
    """Whether a driver gave a sign of life of late, by the store's clock and this machine's."""
    if not _read(lock):
        return False
    store, name = object_of(lock)
    with naming(lock, "read"):
        age = datetime.now(UTC) - store.modified(name)
    return age < timedelta(seconds=3 * WATCH_S)


def _refuse_living(folder: Path, lock: Path, found: dict[str, Any]) -> None:
    deadline = time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 5)
        now = _read(lock)
        if not now:
            return
        if now != found:
            raise UserError(
                f"{folder} is in use by {now['driver']}; allowed: one driver at a time. Wait for it or stop it"
            )


def _beats(lock: Path, token: str, ended: threading.Event) -> None:
    """A store that is away for a while is told once: the ledger is what counts."""
    beat, told = 0, False
    while not ended.wait(BEAT_S):
        beat += 1
        try:
            found = _read(lock)
            if found and found["token"] != token:
                sys.stderr.write(f"{lock} was taken over by {found['driver']}\n")
                return
            if not ended.is_set():
                _beat(lock, token, beat)
        except PreceptorError as error:
            if not told:
                sys.stderr.write(f"no sign of life: {error}\n")
                told = True


def _beat(lock: Path, token: str, beat: int) -> None:
    mine = {"driver": this_driver(), "host": socket.gethostname(), "token": token, "beat": beat}
    write_whole(lock, json.dumps(mine).encode())


def _read(lock: Path) -> dict[str, Any]:
    """Nothing where there is no lock, or none of ours."""
    with naming(lock, "read"):
        try:
            found = json.loads(read_bytes(lock))
        except (FileNotFoundError, ValueError):
            return {}
    return found if isinstance(found, dict) and {"driver", "host", "token"} <= found.keys() else {}


def _remove(lock: Path, token: str) -> None:
    try:
        if _read(lock).get("token") == token:
            with naming(lock, "removed"):
                lock.unlink()
    except PreceptorError as error:
        sys.stderr.write(f"{error}: the next driver of another machine waits {WATCH_S:g} s\n")
