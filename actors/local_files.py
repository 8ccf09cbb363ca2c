"""For libraries that read and write files of this machine alone: safetensors, transformers, vLLM, and whatever appends to a log.

On a file system they get the place itself. For a URL: what they write goes to a temporary file (`TMPDIR` says where) and is uploaded when
it is whole; what they read is downloaded once, whole or not at all, into a cache that the processes of a machine share.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from actors.durable import make_folder, sync
from actors.errors import PreceptorError, UserError
from actors.store import is_local, naming, object_of, put_file

CACHE_FOLDER = "preceptor"
"""Under XDG_CACHE_HOME, by default `~/.cache`."""
DOWNLOAD_S = 3600.0
"""Longest wait for another process that downloads the same."""


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Where a library writes the file `target`, whose folder exists; in its place, and lasting, when the block has ended."""
    if is_local(target):
        yield target
        sync(target)
        return
    with tempfile.TemporaryDirectory(prefix="preceptor-") as folder:
        here = Path(folder) / target.name
        yield here
        put_file(here, target)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Where a library writes the files of the folder `target`; in their places when the block has ended. On a file system whoever writes
    them syncs them."""
    if is_local(target):
        make_folder(target)
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="preceptor-") as folder:
        here = Path(folder)
        yield here
        for file in sorted(path for path in here.rglob("*") if path.is_file()):
            put_file(file, target / file.relative_to(here).as_posix())


def local_copy(folder: Path, patterns: Sequence[str] = ("*",)) -> Path:
    """The folder, or a copy of its files (of those whose name matches one of `patterns`) where it is a URL. Another version of any file
    gives another copy.

    Waits while another process of this machine downloads the same, `DOWNLOAD_S` at most.

    Raises:
        UserError: where there are no such files.
        PreceptorError: naming what can't be read.
    """
    if is_local(folder):
        return folder
    store, root = object_of(folder)
    with naming(folder, "read"):
        # what `ukey` of fsspec is made of: name, size, time, and where there is one the digest
        found = {name: str(info) for name, info in store.find(root, detail=True).items()}
    names = {name: name.removeprefix(root).lstrip("/") for name in sorted(found)}
    names = {name: short for name, short in names.items() if any(fnmatch(Path(short).name, one) for one in patterns)}
    if not names:
        raise UserError(f"{folder} does not exist, or has no file of the kinds {', '.join(patterns)}")
    if any(".." in short.split("/") for short in names.values()):
        raise UserError(f"{folder} has objects with '..' in their names, which are no files of a folder")
    version = "\n".join([str(folder), *(found[name] for name in names)])
    copy = _cache() / hashlib.sha256(version.encode()).hexdigest()[:32]
    with copy.with_suffix(".lock").open("w") as lock:
        _take(lock, folder)
        if not copy.is_dir():
            _download(folder, names, copy)
    return copy


def _take(lock: IO[str], folder: Path) -> None:
    """Waits until no other process of this machine downloads the same.

    Raises:
        PreceptorError: where one has done so for `DOWNLOAD_S`.
    """
    deadline = time.monotonic() + DOWNLOAD_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise PreceptorError(
                    f"{folder} is being copied by another process for more than {DOWNLOAD_S:g} s ({lock.name})"
                ) from None
            time.sleep(0.1)
        else:
            return


def _download(folder: Path, names: dict[str, str], copy: Path) -> None:
    store, _ = object_of(folder)
    new = copy.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    try:
        for name, short in names.items():
            target = new / short
            target.parent.mkdir(parents=True, exist_ok=True)
            with naming(folder / short, "read"):
                store.get_file(name, str(target))
        new.rename(copy)
    except OSError as error:
        raise PreceptorError(f"{folder} can't be copied to {new}: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def read_once(folder: Path) -> Iterator[Path]:
    """A local copy that is needed within the block alone, such as a checkpoint's: gone afterwards. Others that read it must have done so
    by the end of the block, or get a copy of their own."""
    copy = local_copy(folder)
    try:
        yield copy
    finally:
        if not is_local(folder):
            shutil.rmtree(copy, ignore_errors=True)


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CACHE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# -------------------------------------------------------------------------------------------------------------- the logs' side


def scratch_of(run_dir: Path) -> Path:
    """Where this machine's processes append to a run's files: the run directory, or for a URL a folder of this machine that belongs to it.
    What lies there is uploaded by `actors.mirror`.

    Raises:
        UserError: where somebody else has a folder of that name.
    """
    if is_local(run_dir):
        return run_dir
    key = hashlib.sha256(str(run_dir).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"preceptor-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else; allowed: a TMPDIR of your own")
    return folder
