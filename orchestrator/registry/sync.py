"""Runs from their directories into a registry: those that it missed, or that were made without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actors.errors import PreceptorError, UserError
from actors.store import is_local, reading, require_listed
from configs.errors import ConfigError
from orchestrator.registry.from_dir import find_runs, read_runs
from orchestrator.registry.store import Registry


def sync(registry: Registry, folder: Path, note: Callable[[str], None]) -> int:
    """Adds the runs in a folder, or brings them up to date; how many run directories that were. One that can't be read (damaged, or of a
    version with other keys) is left out, and `note` is told why.

    Raises:
        UserError: there is none, or folder or registry can't be used.
    """
    if not is_local(folder):
        require_listed(folder, key="--sync")
    with reading(folder):
        places, num_read = list(find_runs(folder)), 0
    if not places:
        raise UserError(f"--sync: {folder} holds no run directory; allowed: a run.dir, or a folder with some")
    for place in places:
        try:
            read = read_runs(place)
        except (PreceptorError, ConfigError) as error:
            note(f"{place} is left out: {error}")
            continue
        for found in read:
            registry.put(found.run, packages=found.packages, alive=found.run.state == "running")
            registry.put_steps(found.run.id, found.steps)
        num_read += 1
    return num_read
