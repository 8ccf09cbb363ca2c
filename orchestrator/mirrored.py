"""The driver's side of logs that grow on this machine and belong into an object store."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
