"""Runs from their directories into a registry: those that it missed, or that were made without one."""

from __future__ import annotations

from pathlib import Path

from actors.errors import UserError
from orchestrator.registry.from_dir import find_runs, read_runs
from orchestrator.registry.store import Registry


def sync(registry: Registry, folder: Path) -> int:
    """Adds the runs in a folder, or brings them up to date; how many run directories that were.

    Raises:
        UserError: there is none.
        PreceptorError: for a run directory with a damaged file.
    """
    places = list(find_runs(folder))
    if not places:
        raise UserError(f"--sync: {folder} holds no run directory; allowed: a run.dir, or a folder with some")
    for place in places:
        for found in read_runs(place):
            registry.put(found.run, packages=found.packages, alive=found.run.state == "running")
            registry.put_steps(found.run.id, found.steps)
    return len(places)
