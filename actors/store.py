"""Places of runs, models and data: folders of a file system, and URLs of object stores through fsspec.

A place is a `pathlib.Path` or, for a URL, a `upath.UPath`, which has the same methods: `/`, `name`, `exists`, `read_bytes`, `iterdir`,
`glob`, `stat`, `unlink`. It is written down as a `Path`, so that one kind of code serves both; what an object store can't do, or does
otherwise, goes through the functions of this module: create, write, list and remove. An object store has no folders, appends nothing and
renames nothing, so nothing in a run directory may rely on it. `actors.local_files` is for libraries that want files of this machine.
"""

from __future__ import annotations

import errno
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from actors import durable
from actors.errors import PreceptorError, UserError
from configs.errors import ConfigError
from configs.secrets import ALLOWED, holds_secret

LOCAL_SCHEMES = ("file", "local")
CONFLICT = "ConditionalRequestConflict"
"""What S3 says (409) to one of two creates of one moment. Asked again it has an answer."""
CREATE_TRIES = 5


def run_path(text: str, key: str = "run.dir") -> Path:
    """The place that a path or URL names; of a path relative to where the process is.

    Raises:
        UserError: naming the key, for a URL with a secret in it, of an unknown scheme, or whose library is not installed.
    """
    if "://" not in text:
        return Path(text)
    if holds_secret(text):
        raise UserError(f"{key}: got a URL that holds a password, key or signature; allowed: {ALLOWED}")
    scheme, _, rest = text.partition("://")
    if scheme in LOCAL_SCHEMES:
        return Path(rest)
    import fsspec
    from upath import UPath

    if scheme not in fsspec.available_protocols():
        raise UserError(
            f"{key}: got {text!r}, whose scheme fsspec does not know; allowed: a folder, or a URL such as s3://, gs:// or abfs://"
        )
    # other drivers and ranks write too: what was listed before says nothing
    place = UPath(text.rstrip("/"), use_listings_cache=False)
    try:
        _ = place.fs
    except ImportError as error:
        raise UserError(f"{key}: {scheme}:// needs a library that is not installed: {error}") from error
    return cast(Path, place)


def is_local(path: Path) -> bool:
    """Whether it is of a file system, and not of an object store."""
    return isinstance(path, Path)


def reason(error: Exception) -> str:
    """Why, in one line. fsspec's errors often have nothing but a text."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return " ".join(f"{type(error).__name__}: {error}".split())


def object_of(path: Path) -> tuple[Any, str]:
    """Of a URL, its fsspec file system and its name there."""
    place = cast(Any, path)
    return place.fs, place.path


@contextmanager
def naming(path: Path, done: str) -> Iterator[None]:
    """Within the block, an object store's errors become one that names the object. The store's own library has tried again before.

    Raises:
        PreceptorError: `PATH can't be DONE: REASON`.
    """
    try:
        yield
    except (FileExistsError, PreceptorError, ConfigError):
        raise
    except Exception as error:
        # every store's library has exceptions of its own, which are no OSError
        raise PreceptorError(f"{path} can't be {done}: {reason(error)}") from error


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """For a block that reads many of a place's files, `naming` where it is a store's. A file system's own errors name their file."""
    if is_local(place):
        yield
        return
    with naming(place, "read"):
        yield


def read_bytes(path: Path) -> bytes:
    """What is in a file; FileNotFoundError where there is none. Of a store by one request, so that it is of one moment."""
    if is_local(path):
        return path.read_bytes()
    store, name = object_of(path)
    try:
        with naming(path, "read"):
            found: bytes = store.cat_file(name)
    except PreceptorError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "No such object", str(path)) from error
        raise
    return found


def size_of(path: Path) -> int | None:
    """Bytes of a file; None where there is none. `exists` and `is_file` of fsspec take a store that fails for one that says no.

    Raises:
        PreceptorError: naming what can't be asked for.
    """
    with naming(path, "read"):
        try:
            if is_local(path):
                local = path.stat()
                return local.st_size if stat.S_ISREG(local.st_mode) else None
            store, name = object_of(path)
            found = store.info(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
    return int(found["size"]) if found["type"] == "file" else None


# ------------------------------------------------------------------------------------------------------------------- writing


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that may exist, whole or not at all."""
    if is_local(path):
        durable.write_whole(path, data)
        return
    store, name = object_of(path)
    with naming(path, "written"):
        store.pipe_file(name, data)


def create_only(path: Path, data: bytes) -> None:
    """Writes a whole file that must not exist yet; FileExistsError where it does. Of any number of writers one comes through.

    On a file system by a hard link, in a store by its conditional write (S3: `If-None-Match: *`).
    """
    if is_local(path):
        durable.create_only(path, data)
        return
    store, name = object_of(path)
    # S3's library asks again where an answer was lost, and may then find what it has written itself
    writer = uuid.uuid4().hex
    on_s3 = "s3" in store.protocol
    marked = {"Metadata": {"writer": writer}} if on_s3 else {}
    with naming(path, "written"):
        for tries in range(1, CREATE_TRIES + 1):
            try:
                store.pipe_file(name, data, mode="create", **marked)
            except OSError as error:
                if CONFLICT in str(error.__cause__) and tries < CREATE_TRIES:
                    time.sleep(0.1 * 2**tries)
                    continue
                if isinstance(error, FileNotFoundError | PermissionError) or not store.exists(name):
                    raise
                if on_s3 and store.metadata(name).get("writer") == writer:
                    return
                raise FileExistsError(str(path)) from error
            else:
                return


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents, where they are missing. A store needs none."""
    if is_local(folder):
        durable.make_folder(folder)


def put_file(local: Path, target: Path) -> None:
    """Uploads a file of this machine, whole or not at all, in parts where it is large."""
    store, name = object_of(target)
    with naming(target, "written"):
        store.put_file(str(local), name)


# ------------------------------------------------------------------------------------------------------ listing and removing


def entries(folder: Path) -> list[Path]:
    """What is in the folder, by name; nothing where there is none."""
    if is_local(folder):
        return sorted(folder.iterdir(), key=lambda path: path.name) if folder.exists() else []
    store, root = object_of(folder)
    with naming(folder, "listed"):
        try:
            found = store.ls(root, detail=False)
        except FileNotFoundError:
            return []
    names = {name.rstrip("/").rpartition("/")[2] for name in found if name.strip("/") != root.strip("/")}
    return [folder / name for name in sorted(names)]


def remove_tree(folder: Path) -> None:
    """Removes a folder with all that is in it, where it exists."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    store, name = object_of(folder)
    with naming(folder, "removed"), suppress(FileNotFoundError):
        store.rm(name, recursive=True)


def empty(folder: Path) -> None:
    """Removes all that is in the folder."""
    if not is_local(folder):
        remove_tree(folder)
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


# -------------------------------------------------------------------------------------------------------- before the start


def require_store(folder: Path, *, key: str = "run.dir") -> None:
    """Refuses a URL under which no run could be kept: tries, at the start, what every run does. Leaves nothing.

    Raises:
        UserError: naming the key and why: no such bucket, no rights, no credentials, nobody answers, or no conditional write.
    """
    probe, conditional = folder / f".probe-{uuid.uuid4().hex}", False
    with _usable(folder, key):
        create_only(probe, b"")
        try:
            create_only(probe, b"")
        except FileExistsError:
            conditional = True
        with naming(probe, "removed"):
            probe.unlink()
    require_listed(folder, key=key)
    if not conditional:
        raise UserError(
            f"{key}: the store of {folder} overwrites where it is asked to create, so that two drivers could commit one step; allowed: one "
            "with conditional writes (S3, Google Cloud Storage, Azure), or a folder that all nodes share"
        )


def require_listed(folder: Path, *, key: str = "run.dir") -> None:
    """UserError where what is under a URL can't be listed. Writes nothing."""
    store, name = object_of(folder)
    with _usable(folder, key), naming(folder, "read"):
        try:
            store.ls(name)
        except FileNotFoundError as error:
            # nothing there yet is fine; a bucket that does not exist is an answer of the store's
            if error.__cause__ is not None:
                raise


@contextmanager
def _usable(folder: Path, key: str) -> Iterator[None]:
    try:
        yield
    except PreceptorError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UserError(
            f"{key}: {folder} can't be used: {reason(cause)}; allowed: a bucket that exists, credentials in the environment or in the "
            "files that its library reads, and the rights to list, read, create and remove objects"
        ) from error
