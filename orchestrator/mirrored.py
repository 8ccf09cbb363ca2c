"""The driver's side of logs that grow on this machine and belong into an object store."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actors.errors import PreceptorError, UserError
from actors.local_files import scratch_of
from actors.mirror import Mirror, take_up
from actors.store import is_local, naming, read_bytes, run_path, write_whole
from orchestrator.progress import DRIVER_LOG

RANK_LOG = re.compile(r".+-\d+\.log")
"""Ranks upload their own: they may be on other machines."""


@contextmanager
def mirrored(run_dir: Path) -> Iterator[Path]:
    """Where this driver appends to files of the run: the run directory, or for a URL a folder of this machine. What is in that is uploaded
    while the block runs, and whole when it ends, with the last words of this machine's ranks, however they ended."""
    here = scratch_of(run_dir)
    if is_local(run_dir):
        yield here
        return
    _upload_left(here, run_dir)
    shutil.rmtree(here)
    here = scratch_of(run_dir)
    take_up(here / DRIVER_LOG, run_dir / DRIVER_LOG)
    mirror = Mirror(here, run_dir, wanted=lambda file: not RANK_LOG.fullmatch(file.name))
    mirror.start()
    try:
        yield here
    finally:
        mirror.close()
        shutil.rmtree(here, ignore_errors=True)


def _upload_left(here: Path, run_dir: Path) -> None:
    """What a driver of this machine that was killed could not upload. Where the run has gone on elsewhere since, its logs are another's."""
    for file in sorted(path for path in here.rglob("*") if path.is_file()):
        there = run_dir / file.relative_to(here).as_posix()
        said, known = file.read_bytes(), b""
        with suppress(FileNotFoundError):
            known = read_bytes(there)
        if len(said) > len(known) and said.startswith(known):
            write_whole(there, said)


def add_to_log(run_dir: str, text: str) -> Path | None:
    """Adds to the driver's log of a run in a store, where it has one; says where that is. Whoever tells an error must not fail at this."""
    try:
        log = run_path(run_dir) / DRIVER_LOG
        with naming(log, "written"):
            if not log.is_file():
                return None
            write_whole(log, read_bytes(log) + text.encode("utf-8", "replace"))
    except (PreceptorError, UserError):
        return None
    return log
