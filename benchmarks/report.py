"""What a finished run says of itself: `python -m benchmarks.report RUN_DIR [--out FILE]`.

Reads the run directory of a pipeline or of one stage (config, ledger, plan, evaluation beside an export) and starts nothing. Prints the
tables and writes them as Markdown, to `RUN_DIR/report.md` where no other file is named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from actors.errors import PreceptorError, UserError
from actors.reward_trainer import STATS_FILE, load_reward_stats
from benchmarks.ledger_tables import (
    busy_table,
    evaluation_table,
    memory_table,
    phase_table,
    steps_table,
    supervised_table,
    sync_table,
)
from benchmarks.table import Table
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import Pipeline, Stage
from configs.schema.ppo import PPOStage
from orchestrator.ledger import Ledger, LedgerEntry, SupervisedEntry
from orchestrator.run_dir import CONFIG_FILE, DONE_FILE, EXPORT_FOLDER, PLAN_FILE


def tables_of(run_dir: Path) -> dict[str, list[Table]]:
    """Tables of each stage that has begun, by the stage's name in the run ("" for a run of one stage).

    Raises:
        UserError: where the folder holds no run, or none of its stages has a committed step.
        PreceptorError: for a damaged ledger.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"{run_dir} holds no run: it has no {CONFIG_FILE}")
    config = load_config(run_dir / CONFIG_FILE)
    if isinstance(config, Pipeline):
        stages = {name: (run_dir / name, stage) for name, stage in config.stages.items()}
    else:
        stages = {"": (run_dir, config)}
    found = {name: _stage_tables(folder, stage) for name, (folder, stage) in stages.items()}
    found = {name: tables for name, tables in found.items() if tables}
    if not found:
        raise UserError(f"{run_dir} has no committed step yet: there is nothing to report")
    return found


def _stage_tables(folder: Path, stage: Stage) -> list[Table]:
    if isinstance(stage, PPOStage):
        ppo = Ledger(folder, LedgerEntry)
        return _ppo_tables([ppo.read(step) for step in range(1, ppo.last_step() + 1)], folder, stage)
    supervised = Ledger(folder, SupervisedEntry)
    return _supervised_tables([supervised.read(step) for step in range(1, supervised.last_step() + 1)], folder)


def _ppo_tables(entries: Sequence[LedgerEntry], folder: Path, config: PPOStage) -> list[Table]:
    if not entries:
        return []
    memory, busy = memory_table(entries[-1].metrics), busy_table(entries)
    tables = [plan_table(folder), phase_table(entries, config), busy, sync_table(entries), memory, steps_table(entries)]
    return [table for table in tables if table is not None]


def _supervised_tables(entries: Sequence[SupervisedEntry], folder: Path) -> list[Table]:
    if not entries:
        return []
    tables = [plan_table(folder), supervised_table(entries)]
    if (folder / EXPORT_FOLDER / STATS_FILE).exists():
        tables.append(evaluation_table(load_reward_stats(str(folder / EXPORT_FOLDER))))
    memory = memory_table(entries[-1].metrics)
    return [*tables, memory] if memory is not None else tables


def plan_table(folder: Path) -> Table:
    """What ran where."""
    roles = json.loads((folder / PLAN_FILE).read_text("utf-8"))["roles"].values()
    rows = tuple((role["role"], role["num_ranks"], role["device"], role["threads"], role["group"]) for role in roles)
    done = "finished" if (folder / DONE_FILE).exists() else "not finished"
    return Table(
        title="Roles", columns=("role", "ranks", "device", "threads", "group"), rows=rows, note=f"The stage is {done}."
    )


def markdown(run_dir: Path, stages: dict[str, list[Table]]) -> str:
    """The whole report."""
    parts = [f"# Report of {run_dir.name}\n"]
    for name, tables in stages.items():
        if name:
            parts.append(f"# Stage {name}\n")
        parts += [table.markdown() for table in tables]
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 with one message."""
    parser = argparse.ArgumentParser(prog="benchmarks.report", description="Figures of a finished run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--out", type=Path, default=None, help="Markdown file (default: report.md in the run directory)"
    )
    arguments = parser.parse_args(argv)
    try:
        stages = tables_of(arguments.run_dir.absolute())
    except (PreceptorError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    console = Console()
    for name, tables in stages.items():
        if name:
            console.rule(f"stage {name}")
        for table in tables:
            console.print(table.rich())
    out = arguments.out or arguments.run_dir / "report.md"
    out.write_text(markdown(arguments.run_dir.absolute(), stages), "utf-8")
    console.print(f"written to {out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
