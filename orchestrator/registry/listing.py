"""Runs for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.flat import flat
from orchestrator.progress import duration
from orchestrator.registry.records import RunRecord, WholeRun
from orchestrator.report.numbers import counted, short

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.registry.select import Wanted

ID_LENGTH = 12
"""Of the ids that are shown; any beginning that is one run's alone will do."""


def runs_json(runs: Sequence[RunRecord]) -> str:
    """All that the registry has of each, its steps left out."""
    return json.dumps([_as_json(run) for run in runs], indent=1)


def run_json(found: Sequence[WholeRun]) -> str:
    """The run with its steps and packages; `stages` where it is a pipeline."""
    root, *stages = found
    whole = _whole_json(root)
    if root.run.stage == "pipeline":
        whole["stages"] = [_whole_json(stage) for stage in stages]
    return json.dumps(whole, indent=1)


def _whole_json(one: WholeRun) -> dict[str, Any]:
    return {**_as_json(one.run), "packages": one.packages, "steps": [asdict(step) for step in one.steps]}


def _as_json(run: RunRecord) -> dict[str, Any]:
    return {**asdict(run), "gpu_hours": run.gpu_hours}


def print_runs(runs: Sequence[RunRecord], wanted: Wanted, registry: str, out: Console) -> None:
    """A line for each run, with the metrics and keys that were asked for."""
    from rich.table import Table

    if not runs:
        out.print(f"no runs fit in {registry}", soft_wrap=True)
        return
    shown = [*(one.key for one in wanted.metrics), *(one.key for one in wanted.where)]
    table = Table(box=None, pad_edge=False)
    for name in ("id", "state", "stage", "started (UTC)", "time", "GPU-hours", "steps"):
        table.add_column(name, justify="right" if name in ("time", "GPU-hours", "steps") else "left", no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("run_dir", overflow="fold")
    for run in runs:
        keys = flat(run.config)
        values = [*(run.metrics.get(one.key) for one in wanted.metrics), *(keys.get(one.key) for one in wanted.where)]
        table.add_row(
            run.id[:ID_LENGTH],
            run.state,
            run.stage,
            time_text(run.started_at),
            duration(run.active_s),
            short(run.gpu_hours),
            f"{run.num_steps:,}",
            *(_value(value) for value in values),
            run.run_dir,
        )
    out.print(table)


def print_run(found: Sequence[WholeRun], out: Console) -> None:
    """All about one, a block for each stage of a pipeline."""
    for whole in found:
        _print_one(whole, out)


def _print_one(whole: WholeRun, out: Console) -> None:
    from rich.table import Table

    run = whole.run
    title = f"{run.id[:ID_LENGTH]}  {run.name}  stage {run.stage}  {run.state}"
    out.print(title, style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, text in _facts(whole):
        if text:
            table.add_row(name, text)
    out.print(table, "")


def _facts(whole: WholeRun) -> list[tuple[str, str]]:
    run = whole.run
    code = ", ".join(f"{name} {text[:12]}" for name, text in run.code.items())
    last = run.sessions[-1] if run.sessions else {}
    who = f"{last['user']} on {last['host']} in {last['cwd']}" if last else ""
    packages = f", {counted(len(whole.packages), 'package')}" if whole.packages else ""
    facts = [
        ("id", run.id),
        ("error", run.error),
        ("run_dir", run.run_dir),
        ("started", time_text(run.started_at) and f"{time_text(run.started_at)} UTC"),
        ("ended", time_text(run.ended_at) and f"{time_text(run.ended_at)} UTC"),
        (
            "time",
            f"{duration(run.active_s)} in {counted(len(run.sessions), 'session')}, {short(run.gpu_hours)} GPU-hours",
        ),
        ("steps", f"{run.num_steps:,}"),
        ("by", who),
        ("Ray job", str(last.get("ray_job") or "")),
        ("overrides", " ".join(run.overrides)),
        ("config", f"sha256 {run.config_sha256[:12]}"),
        ("code", code),
        ("lock", f"sha256 {run.lock_sha256[:12]}{packages}" if run.lock_sha256 else ""),
        ("machine", ", ".join(f"{name} {value}" for name, value in run.machine.items())),
    ]
    facts += [(f"data: {key}", fingerprint[:12]) for key, fingerprint in run.data.items()]
    facts += [(f"parent: {one['key']}", _parent(one)) for one in run.parents]
    facts += [(one["kind"], one["path"]) for one in run.artefacts]
    return facts + [(f"metric: {name}", short(value)) for name, value in sorted(run.metrics.items())]


def _parent(one: dict[str, Any]) -> str:
    known = f"run {one['run_id'][:ID_LENGTH]}, " if one.get("run_id") else ""
    return f"{known}step {one['step']} of {one['run_dir']}"


def time_text(seconds: float | None) -> str:
    """`2026-11-22 18:05`, UTC; nothing for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return short(value)
    return "" if value is None else str(value)
