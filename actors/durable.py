"""Files and folders of file systems that outlast a power loss: on disk, and named on disk, before anything speaks of them.

`actors.store` has the same for any place of a run, object stores too.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from actors.errors import UserError


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on disk. Whoever wrote it has let go of it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems keep folders as they please, and say so
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents, where they are missing, and has them named on disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that may exist, whole or not at all. Of several writers at once the last stays."""
    make_folder(path.parent)
    new = _new_file(path.parent, data)
    try:
        os.replace(new, path)
    except OSError:
        os.unlink(new)
        raise
    sync(path.parent)


def create_only(path: Path, data: bytes) -> None:
    """Writes a whole file that must not exist yet; FileExistsError where it does. Nobody ever sees half of it.

    A hard link fails where the name is taken, which a rename would not.
    """
    make_folder(path.parent)
    name = _new_file(path.parent, data)
    try:
        os.link(name, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise UserError(
                f"run.dir: the file system of {path.parent} has no hard links, which make a step count once; allowed: one that has them, "
                "or the URL of an object store"
            ) from error
        raise
    finally:
        os.unlink(name)
    sync(path.parent)


def _new_file(folder: Path, data: bytes) -> str:
    """A file on disk with a name of its own, which nobody else writes; gone where it can't be written."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)  # a temporary file is its owner's alone
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(name)
        raise
    return name


def sync_tree(folder: Path) -> None:
    """Waits until all files under a folder, and their names, are on disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))
