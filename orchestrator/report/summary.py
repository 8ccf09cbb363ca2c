"""The report on a terminal: one screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.report.answer_cards import figure_columns
from orchestrator.report.answers import Comparison
from orchestrator.report.figures import base_models, headline, minutes_text, state_text, steps_text, time_text
from orchestrator.report.numbers import counted
from orchestrator.report.run import RunReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_summary(run: RunReport, page: Path, console: Console) -> None:
    """Stages, the win rate where there is one, and where everything is."""
    models = ", ".join(base_models(run))
    console.print(f"{run.run_dir.name}: {state_text(run)}; {time_text(run.seconds)}; started from {models}\n")
    console.print(stages_table(run), "")
    if run.comparison is not None:
        console.print(comparison_table(run.comparison), "")
    console.print(f"run     {run.run_dir}", soft_wrap=True)
    console.print(f"report  {page}", soft_wrap=True)


def stages_table(run: RunReport) -> Table:
    """One row for each stage."""
    table = _table("stage", "state", "steps:", "minutes:", "result")
    for stage in run.stages:
        kind = stage.config.stage
        name = stage.name if stage.name == kind else f"{stage.name} ({kind})"
        table.add_row(name, stage.state, steps_text(stage), minutes_text(stage.seconds), headline(stage))
    return table


def comparison_table(found: Comparison) -> Table:
    """One row for each source; what is known of none has no column."""
    columns = {name: texts for name, texts in figure_columns(found).items() if any(texts)}
    table = _table("answers of", *(f"{name}:" for name in columns))
    for place, one in enumerate(found.figures):
        table.add_row(one.source, *(texts[place] for texts in columns.values()))
    error = f"; win rate against {found.figures[0].source}, ± is one standard error over prompts"
    table.caption = counted(found.num_prompts, "prompt") + (error if "win rate" in columns else "")
    return table


def _table(*columns: str) -> Table:
    """A colon at a column's end sets it to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left")
    for column in columns:
        table.add_column(column.removesuffix(":"), justify="right" if column.endswith(":") else "left", overflow="fold")
    return table
