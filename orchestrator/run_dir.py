"""The run directory: taken by one driver at a time, left as it was found where a run never began."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actors.errors import UserError
from actors.local_files import scratch_of
from actors.models.checks import architecture_differences
from actors.store import create_only, empty, entries, is_local, read_bytes, require_listed, require_store, run_path
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import Config
from orchestrator.flat import flat
from orchestrator.ledger import num_committed
from orchestrator.store_lock import announced, this_driver

CONFIG_FILE = "config.yaml"
OVERRIDES_FILE = "overrides.json"
PLAN_FILE = "plan.json"
DONE_FILE = "done.json"
DATA_FILE = "data.json"
MODELS_FILE = "models.json"
LOCK_FILE = "driver.lock"
EXPORT_FOLDER = "export"
RANKINGS_FILE = "rankings.jsonl"
"""Within the export of stage `rank`."""


def rankings_file(step: int) -> str:
    """What stage `rank` made of a wave, under the run directory."""
    return f"rankings/{step:08d}.jsonl"


@contextmanager
def new_run(path: str, config_text: str) -> Iterator[Path]:
    """A new run's directory, with its config in it from the first moment, so that whatever happens it can be resumed.

    Where the block fails for bad input before a step was committed, or for anything before a plan was made, the directory is left as it
    was found: empty, or not there.

    Raises:
        UserError: where it is occupied or can't be written.
    """
    folder = run_path(path).absolute()
    made = _make(folder)
    try:
        with locked(folder):
            _require_empty(folder, path)
            _write_config(folder, config_text, path)
            try:
                yield folder
            except BaseException as error:
                if _never_began(folder, error):
                    empty(folder)
                raise
    finally:
        for created in made:
            # only those that are empty again
            with suppress(OSError):
                created.rmdir()


@contextmanager
def existing_run(path: str, note: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """The folder of an existing run, taken.

    Raises:
        UserError: where it holds none, or another driver works on it.
    """
    folder = require_run(path)
    with locked(folder, note):
        yield folder


def require_run(path: str) -> Path:
    """The folder of an existing run. UserError where it holds none."""
    folder = run_path(path, "RUN_DIR").absolute()
    if not is_local(folder):
        require_listed(folder, key="RUN_DIR")
    if not (folder / CONFIG_FILE).exists():
        raise UserError(
            f"{folder} holds no run: {CONFIG_FILE} is missing; allowed: the run.dir of an earlier `preceptor run`"
        )
    return folder


def stored_config(folder: Path) -> Config:
    """The config that a run keeps."""
    if is_local(folder):
        return load_config(folder / CONFIG_FILE)
    with tempfile.TemporaryDirectory(prefix="preceptor-") as here:
        copy = Path(here) / CONFIG_FILE
        copy.write_bytes(read_bytes(folder / CONFIG_FILE))
        return load_config(copy)


@contextmanager
def locked(folder: Path, note: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keeps other drivers out while the block runs, and ends with this process however it ends.

    A courtesy that tells the second driver at once. Where the file system has no locks, the ledger still fences it out at its first commit.
    A store has none: there a file of this machine keeps out the machine's own drivers, and an object with signs of life the others'.
    `note` is told of a wait.

    Raises:
        UserError: where another driver has the folder, or it can't be written.
    """
    if is_local(folder):
        with _locked_file(folder / LOCK_FILE, folder):
            yield
        return
    with _locked_file(scratch_of(folder).with_suffix(".lock"), folder), announced(folder, folder / LOCK_FILE, note):
        yield


@contextmanager
def _locked_file(lock: Path, folder: Path) -> Iterator[None]:
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
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
        os.pwrite(handle, f"{this_driver()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def same_data(folder: Path, fingerprint: str, source: str) -> None:
    """Notes what data a run was begun with, and refuses other data when it goes on: its prompts would have other numbers.

    Raises:
        UserError: where `source` has changed since.
    """
    path = folder / DATA_FILE
    begun_with = _begun_with(path, {"fingerprint": fingerprint})["fingerprint"]
    if begun_with != fingerprint:
        raise UserError(
            f"{source} is not the data that this run was begun with: its fingerprint is {fingerprint[:12]}, {path} says "
            f"{begun_with[:12]}. Put the old data back, or start a new run"
        )


def same_models(folder: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Notes of what shape the models were that a run was begun with, by key, and refuses others when it goes on: its checkpoints would
    not fit them. Where the run promises bits, their weights are noted too: reference and reward model are read anew by every driver.

    Raises:
        UserError: where a model has been replaced by one of another architecture, or with other weights.
    """
    path = folder / MODELS_FILE
    begun_with = _begun_with(path, {key: dict(model) for key, model in models.items()})
    for key, model in models.items():
        if different := architecture_differences(begun_with[key], dict(model)):
            raise UserError(
                f"{key} is not the model that this run was begun with: {path} and its config.json differ in {'; '.join(different)}. "
                "Put the old model back, or start a new run"
            )
        if begun_with[key].get("weights") != model.get("weights"):
            raise UserError(
                f"{key} has other weights than the model that this run was begun with ({path}), and run.deterministic promises the same "
                "bits. Put the old model back, or start a new run"
            )


def _begun_with(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What the run noted in `path` when it began; what it notes now, where it begins. Both have the same keys.

    Raises:
        UserError: where the file is damaged.
    """
    with suppress(FileExistsError):
        create_only(path, json.dumps(now).encode())
    try:
        begun_with = json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(begun_with, dict) or begun_with.keys() != now.keys():
        raise UserError(f"{path} is damaged: it does not hold {', '.join(now)}")
    return begun_with


def same_plan(folder: Path, plan: str, *, deterministic: bool, note: Callable[[str], None]) -> None:
    """Keeps the plan (JSON) that a run was begun with, and compares it with what a resume would go on with.

    The same config gives another plan on a machine with other cores: other threads add up in another order, and give other bits.

    Raises:
        UserError: where they differ and the run is `deterministic`; naming the keys. Any other run only says so.
    """
    path = folder / PLAN_FILE
    with suppress(FileExistsError):
        create_only(path, plan.encode())
    planned = json.loads(plan)
    before, now = flat(_begun_with(path, planned)), flat(planned)
    changed = [
        f"{key}: got {now.get(key, 'nothing')}, was {before.get(key, 'nothing')}"
        for key in (*before, *(key for key in now if key not in before))
        if key not in now or key not in before or now[key] != before[key]
    ]
    if not changed:
        return
    differences = f"the plan is not the one that this run was begun with ({path}): {'; '.join(changed)}"
    if deterministic:
        raise UserError(
            f"{differences}. run.deterministic promises the same bits only with the same plan; allowed: to resume where there are as many "
            "cores and GPUs as the run was begun with"
        )
    note(f"{differences}. The run goes on with the new one")


def _make(folder: Path) -> list[Path]:
    """Makes the folder; those that were not there before, innermost first."""
    if not is_local(folder):
        require_store(folder)
        return []
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


def require_writable(folder: Path) -> None:
    """UserError where `folder` could not be made or written, as far as can be told without writing anything."""
    if not is_local(folder):
        require_listed(folder)
        return
    there = next(one for one in (folder, *folder.parents) if one.exists() or one.is_symlink())
    if not there.is_dir():
        raise UserError(f"run.dir: {there} is not a folder; allowed: a new or empty folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"run.dir: {there} can't be written; allowed: a folder in which files can be made")


def _require_empty(folder: Path, path: str) -> None:
    if any(entry.name != LOCK_FILE for entry in entries(folder)):
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
