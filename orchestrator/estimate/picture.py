"""The GPUs of a step over its time: groups as rows, phases as bars, the critical path underlined, idle shares at the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.errors import UserError
from orchestrator.estimate.numbers import duration_text, number_text
from orchestrator.estimate.records import PhaseTime, StepTime

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from orchestrator.estimate.preflight import PlannedStage

FORMATS = (".png", ".svg")
COLOURS = {
    "generate": "#56B4E9",
    "score": "#F0E442",
    "update": "#E69F00",
    "sync": "#009E73",
    "turn": "#BBBBBB",
}
"""Okabe and Ito (2008): told apart with any kind of colour vision. Dark text is readable on all of them."""
INK, PALE = "#222222", "#F4F4F4"
MEANINGS = {name: name for name in COLOURS} | {"turn": "to and from the host"}
BAR, MAX_ENGINES = 0.72, 8
"""Height of a row's bars, of 1; engines drawn one by one."""


def check_picture(path: str) -> Path:
    """The file to write.

    Raises:
        UserError: for a kind of picture that is not made, or a folder that is not there.
    """
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"--picture: got {path!r}; allowed: a name that ends in {' or '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise UserError(
            f"--picture: got {path!r}; allowed: a file in a folder that exists, and {str(file.parent)!r} does not"
        )
    return file


def write_pictures(planned: Mapping[str, PlannedStage], config: str, path: Path) -> None:
    """One of each stage whose time is known; of a pipeline's stages each has its name in the file's.

    Raises:
        UserError: where none is known, with the reasons.
    """
    drawn = 0
    for name, stage in planned.items():
        time = stage.estimate.time
        if time is not None:
            gpus = {
                group.name: group.num_bundles * group.gpus_per_bundle
                for group in stage.plan.groups.values()
                if group.gpus_per_bundle
            }
            file = path if len(planned) == 1 else path.with_stem(f"{path.stem}-{name}")
            write_picture(time, gpus, f"{Path(config).name}, stage {name}, {_kinds(stage)}", file)
            drawn += 1
    if not drawn:
        on_gpus = [stage for stage in planned.values() if stage.config.cluster.device == "cuda"]
        reasons = dict.fromkeys(text for stage in on_gpus for text in stage.estimate.unknown)
        raise UserError(f"--picture: there is nothing to draw: {'; '.join(reasons) or 'on CPU no time is estimated'}")


def _kinds(stage: PlannedStage) -> str:
    return ", ".join(dict.fromkeys(group.gpu for group in stage.estimate.groups.values() if group.gpu is not None))


def write_picture(time: StepTime, gpus: dict[str, int], title: str, path: Path) -> None:
    """Writes the timeline of a step; `gpus` of each group, in the order of the rows. matplotlib is imported only here."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {"font.family": "DejaVu Sans", "font.size": 10, "svg.hashsalt": "preceptor", "hatch.linewidth": 0.6}
    ):
        figure = Figure(figsize=(12, 2.3 + 0.85 * len(gpus)), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for row, (group, count) in enumerate(gpus.items()):
            _row(axes, [phase for phase in time.phases if phase.group == group], len(gpus) - 1 - row, time.step_s)
            _margins(axes, group, count, time.idle_frac[group], len(gpus) - 1 - row)
        _axes(axes, len(gpus), time.step_s)
        _words(figure, axes, time, title)
        # no date: the same estimate gives the same file
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)


def _row(axes: Axes, phases: Sequence[PhaseTime], row: int, step_s: float) -> None:
    axes.barh(row, step_s, height=BAR, color=PALE, edgecolor="#CCCCCC", linewidth=0.6, hatch="///", zorder=1)
    bundles = sorted({phase.bundle for phase in phases if phase.bundle is not None})[:MAX_ENGINES]
    bars: dict[tuple[str, float, float], list[tuple[float, float]]] = {}
    for phase in phases:
        if phase.bundle is None:
            low, height = row - BAR / 2, BAR
        elif phase.bundle in bundles:
            height = BAR / len(bundles)
            low = row + BAR / 2 - height * (bundles.index(phase.bundle) + 1)
        else:
            continue
        width = phase.end_s - phase.start_s
        bars.setdefault((COLOURS[phase.phase], low, height), []).append((phase.start_s, width))
        if height > BAR / 2:
            _label(axes, phase, row, width / step_s)
    for (colour, low, height), spans in bars.items():
        axes.broken_barh(spans, (low, height), facecolor=colour, edgecolor="white", linewidth=0.4, zorder=3)
    critical = [(phase.start_s, phase.end_s - phase.start_s) for phase in phases if phase.critical]
    axes.broken_barh(critical, (row - BAR / 2 - 0.095, 0.07), facecolor=INK, zorder=4)


def _label(axes: Axes, phase: PhaseTime, row: int, share: float) -> None:
    """The role in its bar. Of some 1,000 points of width a letter takes 6, and a line of small ones stands upright in 12."""
    if share > 0.012:
        upright = share < 0.0085 * (len(phase.role) + 2)
        size, rotation = (7.5, 90) if upright else (9, 0)
        middle = (phase.start_s + phase.end_s) / 2
        axes.text(
            middle, row, phase.role, ha="center", va="center", color=INK, fontsize=size, rotation=rotation, zorder=5
        )


def _margins(axes: Axes, group: str, gpus: int, idle_frac: float, row: int) -> None:
    count = f"{gpus} GPU{'s' if gpus > 1 else ''}"
    for x, align, first, second in ((-0.008, "right", group, count), (1.008, "left", f"{idle_frac:.0%}", "idle")):
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": align, "clip_on": False}
        axes.text(x, row + 0.02, first, va="bottom", fontsize=11, fontweight="bold", color=INK, **beside)
        axes.text(x, row - 0.02, second, va="top", fontsize=9, color="#555555", **beside)


def _axes(axes: Axes, rows: int, step_s: float) -> None:
    axes.set_xlim(0, step_s)
    axes.set_ylim(-0.6, rows - 0.4)
    axes.set_yticks([])
    axes.set_xlabel("seconds from the begin of the step")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def _words(figure: Figure, axes: Axes, time: StepTime, title: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    facts = [f"step {duration_text(time.step_s)}", f"{number_text(time.tokens_per_s)} tokens/s"]
    if time.run_s is not None and time.gpu_hours is not None:
        facts += [f"run {duration_text(time.run_s)}", f"{number_text(time.gpu_hours)} GPU-hours"]
    if time.cost is not None:
        facts.append(f"cost {number_text(time.cost)}")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    axes.set_title("estimated: " + " · ".join(facts), loc="left", fontsize=10, color="#444444", pad=10)
    used = [name for name in COLOURS if any(phase.phase == name for phase in time.phases)]
    handles: list[Artist] = [Patch(facecolor=COLOURS[name], label=MEANINGS[name]) for name in used]
    handles.append(Line2D([], [], color=INK, linewidth=4, label="critical path"))
    handles.append(Patch(facecolor=PALE, edgecolor="#BBBBBB", hatch="///", label="idle"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9)
