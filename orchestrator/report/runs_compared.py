"""Runs side by side: last metrics, what their configs differ in, curves over each other. As a table, JSON, an HTML page and a PNG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.errors import UserError
from configs.yaml_file import quote
from orchestrator.differences import subject_of_run
from orchestrator.progress import SHOWN, duration
from orchestrator.registry.from_dir import last_metrics
from orchestrator.registry.listing import ID_LENGTH
from orchestrator.registry.records import RunRecord, StepRecord, WholeRun
from orchestrator.report.charts import Line
from orchestrator.report.document import document
from orchestrator.report.figures import Curves
from orchestrator.report.markup import Markup, element
from orchestrator.report.numbers import counted, short
from orchestrator.report.run import Points
from orchestrator.report.stage_section import curve_card

if TYPE_CHECKING:
    from rich.console import Console

MOST_COLOURS = 7
"""Lines that the page can tell apart."""
PNG_COLUMNS = 3
PNG_DPI = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One run; a pipeline's metrics are named after their stages: `ppo/score`."""

    label: str
    run: RunRecord
    metrics: dict[str, float]
    """The last value of each."""
    curves: dict[str, Points]
    keys: dict[str, Any]
    """Of the config."""
    defaults: frozenset[str]
    """Those that have the schema's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsCompared:
    """Two or more."""

    sides: tuple[Side, ...]
    metrics: tuple[str, ...]
    """Those to show."""
    keys: tuple[str, ...]
    """Of the config, that are not the same in all."""


def compare_runs(found: Sequence[Sequence[WholeRun]], metrics: Sequence[str]) -> RunsCompared:
    """Each run with its stages. Without `metrics` those that a run's own lines show, and the held-out ones.

    Raises:
        UserError: a metric that none of the runs has.
    """
    labels = _labels([runs[0].run for runs in found])
    sides = tuple(_side(runs, label) for runs, label in zip(found, labels, strict=True))
    known = list(dict.fromkeys(name for side in sides for name in side.metrics))
    for name in metrics:
        if name not in known:
            raise UserError(
                f"--metric: got {name!r}; allowed: {', '.join(known) or 'none: no run has committed a step'}"
            )
    shown = list(metrics) or [name for name in known if _is_shown(name)]
    keys = dict.fromkeys(key for side in sides for key in side.keys)
    differing = [key for key in keys if _differs(key, sides)]
    return RunsCompared(sides=sides, metrics=tuple(shown), keys=tuple(differing))


def _differs(key: str, sides: Sequence[Side]) -> bool:
    """As `preceptor diff` has it: what one run lacks and all others have at its default is no difference."""
    values = [side.keys[key] for side in sides if key in side.keys]
    lacked = len(values) < len(sides) and any(key in side.keys and key not in side.defaults for side in sides)
    return lacked or any(value != values[0] for value in values)


def _side(runs: Sequence[WholeRun], label: str) -> Side:
    root, *stages = runs
    parts = [(f"{stage.run.name}/", stage.steps) for stage in stages] or [("", root.steps)]
    known = subject_of_run(label, runs)
    return Side(
        label=label,
        run=root.run,
        metrics={prefix + name: value for prefix, steps in parts for name, value in last_metrics([*steps]).items()},
        curves={prefix + name: points for prefix, steps in parts for name, points in _curves(steps).items()},
        keys=known.facts["config"],
        defaults=known.defaults,
    )


def _curves(steps: Sequence[StepRecord]) -> dict[str, Points]:
    found: dict[str, dict[int, float]] = {}
    for one in steps:
        for name, value in one.metrics.items():
            found.setdefault(name, {})[one.step] = value
    return {name: tuple(sorted(values.items())) for name, values in found.items()}


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    """The folders' names, with ids where two have one; of a pipeline's stage with the pipeline's."""
    names = [f"{Path(run.run_dir).parent.name}/{run.name}" if run.part_of else run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} {run.id[:ID_LENGTH]}"
        for name, run in zip(names, runs, strict=True)
    ]


def _is_shown(name: str) -> bool:
    """`score`, `held_out/score`, and as `ppo/score` of a pipeline."""
    last = name.rpartition("/")[2]
    if last == "merit":  # the loss once more, with its sign turned
        return False
    return ("held_out/" in name and not last.endswith("_error")) or (name.count("/") < 2 and last in SHOWN)


# ------------------------------------------------------------------------------------------------------------------ as text


def rows(found: RunsCompared) -> list[tuple[str, list[str]]]:
    """What to show of each run, line by line: facts, metrics, keys."""
    table: list[tuple[str, list[str]]] = [
        ("id", [side.run.id[:ID_LENGTH] for side in found.sides]),
        ("state", [side.run.state for side in found.sides]),
        ("steps", [f"{side.run.num_steps:,}" for side in found.sides]),
        ("time", [duration(side.run.active_s) for side in found.sides]),
        ("GPU-hours", [short(side.run.gpu_hours) for side in found.sides]),
    ]
    table += [(name, [short(side.metrics.get(name)) for side in found.sides]) for name in found.metrics]
    return table


def key_rows(found: RunsCompared) -> list[tuple[str, list[str]]]:
    """The keys that are not the same, with each run's value."""
    return [(key, [_value(side.keys[key]) if key in side.keys else "" for side in found.sides]) for key in found.keys]


def print_runs_compared(found: RunsCompared, out: Console) -> None:
    """Two tables."""
    from rich.table import Table

    for what, lines in (("", rows(found)), ("differs", key_rows(found))):
        table = Table(box=None, pad_edge=False)
        table.add_column(what, no_wrap=True)
        for side in found.sides:
            table.add_column(side.label, justify="right", overflow="fold")
        for name, values in lines:
            table.add_row(name, *values)
        if lines:
            out.print(table, "")
    if not found.keys:
        out.print("the configs are the same")


def runs_compared_json(found: RunsCompared) -> str:
    """Everything, curves included."""
    sides = [
        {
            "label": side.label,
            "id": side.run.id,
            "run_dir": side.run.run_dir,
            "state": side.run.state,
            "num_steps": side.run.num_steps,
            "active_s": side.run.active_s,
            "gpu_hours": side.run.gpu_hours,
            "metrics": side.metrics,
            "differs": {key: side.keys.get(key) for key in found.keys},
            "curves": side.curves,
        }
        for side in found.sides
    ]
    return json.dumps({"metrics": found.metrics, "runs": sides}, indent=1) + "\n"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else quote(value)


# ------------------------------------------------------------------------------------------------------------- as pictures


def _drawn(found: RunsCompared) -> list[tuple[str, list[tuple[int, str, Points]]]]:
    """Metric to its lines (number of the run, label, points); one point alone is no curve."""
    charts = []
    for name in found.metrics:
        lines = [
            (at, side.label, side.curves[name])
            for at, side in enumerate(found.sides)
            if len(side.curves.get(name, ())) > 1
        ]
        if lines:
            charts.append((name, lines))
    return charts


def runs_compared_page(found: RunsCompared) -> str:
    """One HTML file without scripts or network."""
    few = RunsCompared(sides=found.sides[:MOST_COLOURS], metrics=found.metrics, keys=found.keys)
    cards = [
        curve_card(
            Curves(
                title=name,
                unit="" if len(lines) > 1 else lines[0][1],
                from_zero=False,
                lines=tuple(Line(label=label, points=points) for _, label, points in lines),
            )
        )
        for name, lines in _drawn(few)
    ]
    parts = [
        element("header", element("h1", f"{counted(len(found.sides), 'run')} compared")),
        element("section", _html_table(found, rows(found))),
        element("section", element("h2", "What differs"), _html_table(found, key_rows(found)))
        if found.keys
        else element("p", "The configs are the same.", class_="note"),
    ]
    if cards:
        left_out = len(found.sides) - len(few.sides)
        note = element(
            "p", f"Curves of the first {MOST_COLOURS} runs; {left_out} more are in the table.", class_="note"
        )
        parts.append(
            element(
                "section", element("h2", "Curves"), element("div", *cards, class_="charts"), note if left_out else None
            )
        )
    source = ", ".join(side.run.run_dir for side in found.sides)
    return document("Runs compared", parts, made_by="preceptor compare", source=source)


def _html_table(found: RunsCompared, lines: Sequence[tuple[str, list[str]]]) -> Markup:
    head = element("tr", element("th", ""), *(element("th", side.label, class_="number") for side in found.sides))
    body = [
        element("tr", element("td", name), *(element("td", text, class_="number") for text in values))
        for name, values in lines
    ]
    return element("div", element("table", head, *body), class_="card wide")


def runs_compared_png(found: RunsCompared) -> bytes:
    """The curves, in a grid.

    Raises:
        UserError: there is nothing to draw.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    charts = _drawn(found)
    if not charts:
        raise UserError("--png: no metric has two steps yet; allowed: runs with at least two committed steps")
    columns = min(PNG_COLUMNS, len(charts))
    num_rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * num_rows + 0.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for at, (name, lines) in enumerate(charts, start=1):
        axes = figure.add_subplot(num_rows, columns, at)
        for number, label, points in lines:
            axes.plot(
                [step for step, _ in points], [value for _, value in points], color=f"C{number % 10}", label=label
            )
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    out = io.BytesIO()
    canvas.print_figure(out, format="png", dpi=PNG_DPI)
    return out.getvalue()
