"""A run by what a user calls it: its folder, or the beginning of its id."""

from __future__ import annotations

from actors.errors import UserError
from actors.store import is_local, run_path
from orchestrator.registry.address import OPTION, VARIABLE, Address, address_of
from orchestrator.registry.from_dir import read_runs
from orchestrator.registry.records import WholeRun
from orchestrator.registry.store import Registry


def look_up(text: str, option: str | None) -> list[WholeRun]:
    """The run, and after it its stages where it is a pipeline. A folder is read itself, whatever a registry has of it.

    Raises:
        UserError: there is none, or several ids begin so.
        PreceptorError: for a run directory with a damaged file.
    """
    place = run_path(text, "RUN")
    if not is_local(place) or place.is_dir():
        return read_runs(place.absolute())
    if "/" in text:
        raise UserError(
            f"RUN: got {text!r}, which is no folder; allowed: a run directory, or the beginning of a run's id (`preceptor runs --under "
            "DIR` lists those whose directory was in DIR)"
        )
    with Registry(needed(option, f"RUN: got {text!r}, which is no folder"), create=False) as registry:
        found = registry.find(text)
        stages = registry.runs(stages=True, part_of=found.run.id)
        return [found, *(registry.find(stage.id) for stage in reversed(stages))]


def needed(option: str | None, what: str) -> Address:
    """The registry's address. UserError, beginning with `what`, where it is off."""
    address = address_of(option)
    if address is None:
        raise UserError(f"{what}, and the registry is off; allowed: {OPTION} URL or {VARIABLE}=URL")
    return address
