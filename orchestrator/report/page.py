"""The report of a run as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.lineage import Lineage, tree_of
from orchestrator.report.answer_cards import comparison_section, win_text
from orchestrator.report.document import document, tile
from orchestrator.report.figures import base_models, headline, minutes_text, state_text, steps_text, time_text
from orchestrator.report.markup import Markup, element
from orchestrator.report.run import RunReport, StageReport
from orchestrator.report.stage_section import badge, stage_section

if TYPE_CHECKING:
    from rich.tree import Tree

OPEN_DEPTH = 2
"""Levels of lineage that are unfolded at first."""


def page(run: RunReport) -> str:
    """The whole document."""
    title = f"{run.run_dir.name}: report"
    parts = [_headline(run)]
    if len(run.stages) > 1:
        parts.append(_stages_table(run))
    if run.comparison is not None:
        parts.append(comparison_section(run.comparison))
    parts += [stage_section(stage, with_answers=run.comparison is None) for stage in run.stages]
    parts += [_lineage_section(run.stages), _config_section(run)]
    return document(title, parts, made_by="preceptor report", source=str(run.run_dir))


def _headline(run: RunReport) -> Markup:
    name = "finished" if run.finished else "under-way"
    head = element(
        "div", element("h1", run.run_dir.name), element("span", state_text(run), class_=f"badge {name}"), class_="head"
    )
    tiles = [("time", time_text(run.seconds)), ("steps", f"{sum(stage.num_steps for stage in run.stages):,}")]
    if len(run.stages) > 1:
        tiles.insert(0, ("stages", f"{len(run.stages)}"))
    if run.comparison is not None:
        first, last = run.comparison.figures[0], run.comparison.figures[-1]
        tiles.append((f"{last.source} wins against {first.source}", win_text(last)))
    cells = [tile(what, text) for what, text in tiles]
    cells.append(tile("started from", ", ".join(base_models(run)), broad=True))
    return element("header", head, element("p", str(run.run_dir), class_="soft"), element("dl", *cells, class_="tiles"))


def _stages_table(run: RunReport) -> Markup:
    columns = ("stage", "state", "steps", "minutes", "result")
    numbers = ("steps", "minutes")
    head = element("tr", *(element("th", text, class_="number" if text in numbers else None) for text in columns))
    rows = [
        element(
            "tr",
            element("td", element("a", stage.name, href=f"#stage-{stage.name}")),
            element("td", badge(stage.state)),
            element("td", steps_text(stage), class_="number steps"),
            element("td", minutes_text(stage.seconds), class_="number minutes"),
            element("td", headline(stage), class_="result"),
        )
        for stage in run.stages
    ]
    return element("section", element("div", element("table", head, *rows, class_="stages"), class_="card wide"))


def _config_section(run: RunReport) -> Markup:
    fold = element("details", element("summary", "every key"), element("pre", run.config_text), class_="card fold")
    return element("section", element("h2", "Config"), fold)


# ------------------------------------------------------------------------------------------------------------------- lineage


def _lineage_section(stages: Sequence[StageReport]) -> Markup:
    title = element("h2", "Lineage")
    found = [stage.lineage for stage in stages if stage.lineage is not None]
    if not found:
        return element("section", title, element("p", "No stage has an export that tells its lineage.", class_="note"))
    parents = {name for lineage in found for name in _made_from(lineage)}
    ends = [lineage for lineage in found if lineage.get("run_dir") not in parents]
    return element("section", title, *(element("div", lineage_list(one), class_="card") for one in ends))


def _made_from(lineage: object) -> set[str]:
    """Run directories of everything that an artefact was made from, its own left out."""
    if isinstance(lineage, list):
        return {name for one in lineage for name in _made_from(one)}
    if not isinstance(lineage, dict):
        return set()
    below = [value for value in lineage.values() if isinstance(value, dict | list)]
    named = {str(one["run_dir"]) for one in lineage.values() if isinstance(one, dict) and "run_dir" in one}
    return named | _made_from(below)


def lineage_list(lineage: Lineage) -> Markup:
    """What `preceptor lineage` prints, as a list that folds."""
    try:
        tree = tree_of(lineage)
    except (KeyError, TypeError):
        return element(
            "p",
            "An export's lineage was written by another version, in a form that this one can't read.",
            class_="note",
        )
    return element("ul", _node(tree, 0), class_="tree")


def _node(tree: Tree, depth: int) -> Markup:
    label = str(tree.label)
    if not tree.children:
        return element("li", label)
    below = element("ul", *(_node(child, depth + 1) for child in tree.children))
    opened = {"open": ""} if depth < OPEN_DEPTH else {}
    return element("li", element("details", element("summary", label), below, **opened))
