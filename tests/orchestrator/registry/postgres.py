"""A real PostgreSQL for a test session: Debian's package, a data folder of its own, a free port on this machine."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BIN = "/usr/lib/postgresql"
TIMEOUT_S = 60.0


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL's programs: Debian keeps those that servers need out of PATH."""
    found = sorted(Path(BIN).glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    named = shutil.which("initdb")
    return Path(named).resolve().parent if named else None


def _as_other(user: pwd.struct_passwd | None) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if user is None:
        return []
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


def _user() -> pwd.struct_passwd | None:
    """Who runs the server: this user (None), or `postgres` or `nobody` where this one is root."""
    if os.getuid() != 0:
        return None
    entries = {entry.pw_name: entry for entry in pwd.getpwall()}
    return entries.get("postgres") or entries["nobody"]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """URL of the server's own database, password included; the server ends with the context. `folder` must be reachable by others."""
    bin_folder = binaries()
    if bin_folder is None:
        pytest.skip(f"no PostgreSQL: no initdb in {BIN}/*/bin nor in PATH (apt-get install postgresql)")
    user, port, password = _user(), _free_port(), secrets.token_hex(8)
    data, password_file = folder / "data", folder / "password"
    password_file.write_text(password)
    if user is not None:
        for place in (folder, password_file):
            os.chown(place, user.pw_uid, user.pw_gid)

    def call(*command: str) -> None:
        done = subprocess.run(
            [*_as_other(user), *command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            # a server that inherits this process's pipes would keep them open
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")

    call(
        str(bin_folder / "initdb"), "-D", str(data), "-U", "tester", "-A", "scram-sha-256", f"--pwfile={password_file}", "--no-sync",
        "-E", "UTF8", "--locale=C",
    )  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off -c max_connections=60"
    pg_ctl = str(bin_folder / "pg_ctl")
    try:
        call(pg_ctl, "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start")
        yield f"postgresql://tester:{password}@127.0.0.1:{port}/postgres"
    finally:
        call(pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop")
