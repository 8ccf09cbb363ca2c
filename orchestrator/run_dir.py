"""The run directory: taken by one driver at a time, left as it was found where a run never began."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actors.errors import UserError
from configs.errors import ConfigError
from orchestrator.ledger import create_only, num_committed

CONFIG_FILE = "config.yaml"
PLAN_FILE = "plan.json"
DONE_FILE = "done.json"
DATA_FILE = "data.json"
LOCK_FILE = "driver.lock"


@contextmanager
def new_run(path: str, config_text: str) -> Iterator[Path]:
    """A new run's directory, with its config in it from the first moment, so that whatever happens it can be resumed.

    Where the block fails for bad input before a step was committed, or for anything before a plan was made, the directory is left as it
    was found: empty, or not there.

    Raises:
        UserError: where it is occupied or can't be written.
    """
    folder = Path(path).absolute()
    made = _make(folder)
    try:
        with locked(folder):
            _require_empty(folder, path)
            _write_config(folder, config_text, path)
            try:
                yield folder
            except BaseException as error:
                if _never_began(folder, error):
                    _empty(folder)
                raise
    finally:
        for created in made:
            # only those that are empty again
            with suppress(OSError):
                created.rmdir()


@contextmanager
def existing_run(path: str) -> Iterator[Path]:
    """The folder of an existing run, taken.

    Raises:
        UserError: where it holds none, or another driver works on it.
    """
    folder = require_run(path)
    with locked(folder):
        yield folder


def require_run(path: str) -> Path:
    """The folder of an existing run. UserError where it holds none."""
    folder = Path(path).absolute()
    if not (folder / CONFIG_FILE).exists():
        raise UserError(
            f"{folder} holds no run: {CONFIG_FILE} is missing; allowed: the run.dir of an earlier `preceptor run`"
        )
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other drivers out while the block runs, and ends with this process however it ends.

    A courtesy that tells the second driver at once. Where the file system has no locks, the ledger still fences it out at its first commit.

    Raises:
        UserError: where another driver has the folder, or it can't be written.
    """
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(handle, 200).decode(errors="replace").strip() or "another driver"
            raise UserError(
                f"{folder} is in use by {who}; allowed: one driver at a time. Wait for it or stop it"
            ) from None
        except OSError:
            pass  # no locks here
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def same_data(folder: Path, fingerprint: str, source: str) -> None:
    """Notes what data a run was begun with, and refuses other data when it goes on: its prompts would have other numbers.

    Raises:
        UserError: where `source` has changed since.
    """
    path = folder / DATA_FILE
    with suppress(FileExistsError):
        create_only(path, json.dumps({"fingerprint": fingerprint}).encode())
    try:
        begun_with = json.loads(path.read_bytes())["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if begun_with != fingerprint:
        raise UserError(
            f"{source} is not the data that this run was begun with: its fingerprint is {fingerprint[:12]}, {path} says "
            f"{begun_with[:12]}. Put the old data back, or start a new run"
        )


def _make(folder: Path) -> list[Path]:
    """Makes the folder; those that were not there before, innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"run.dir: {folder} is not a folder; allowed: a new or empty folder") from None
    except OSError as error:
        for created in missing:
            with suppress(OSError):
                created.rmdir()
        raise UserError(
            f"run.dir: {folder} can't be written ({error.strerror}); allowed: a folder in which files can be made"
        ) from error
    return missing


def _require_empty(folder: Path, path: str) -> None:
    if any(entry.name != LOCK_FILE for entry in folder.iterdir()):
        raise UserError(
            f"run.dir: {folder} is not empty; allowed: a new or empty folder. `preceptor resume {path}` continues a run"
        )


def _write_config(folder: Path, text: str, path: str) -> None:
    try:
        create_only(folder / CONFIG_FILE, text.encode())
    except FileExistsError:
        raise UserError(
            f"run.dir: {folder} was taken by another run at the same moment; allowed: {path} elsewhere"
        ) from None


def _never_began(folder: Path, error: BaseException) -> bool:
    if num_committed(folder):
        return False
    return isinstance(error, UserError | ConfigError) or not any(folder.rglob(PLAN_FILE))


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
