"""One stage on the page: what it did, its figures and its curves."""

from __future__ import annotations

from orchestrator.report.answer_cards import early_and_late_section
from orchestrator.report.answers import distinct_frac, tied_frac
from orchestrator.report.charts import MOST_POINTS, Column, histogram, line_chart, reliability, stacked_bars
from orchestrator.report.figures import (
    Curves,
    curves_of,
    described,
    headline,
    perplexity,
    steps_text,
    time_text,
)
from orchestrator.report.markup import Markup, element
from orchestrator.report.numbers import counted, percent, short
from orchestrator.report.phases import PHASES, REST
from orchestrator.report.run import StageReport, State

BADGES: dict[State, str] = {"finished": "finished", "not finished": "under-way", "not begun": "not-begun"}


def stage_section(stage: StageReport, *, with_answers: bool) -> Markup:
    """All of it. `with_answers`: PPO's early and late ones too, where no comparison of stages says more."""
    kind = stage.config.stage
    head = element(
        "div",
        element("h2", stage.name),
        element("span", f"stage {kind}", class_="kind") if kind != stage.name else None,
        badge(stage.state),
        class_="head",
    )
    parts = [head, element("p", described(stage), class_="soft")]
    if stage.num_steps:
        parts += [_facts(stage), *_charts(stage)]
    elif stage.state != "not begun":
        parts.append(element("p", "No step has been committed.", class_="note"))
    if with_answers and stage.answers is not None:
        parts.append(early_and_late_section(stage.answers))
    return element("section", *parts, id=f"stage-{stage.name}")


def badge(state: State) -> Markup:
    """`finished`, `not finished`, `not begun`."""
    return element("span", state, class_=f"badge {BADGES[state]}")


def _facts(stage: StageReport) -> Markup:
    rows = [("steps", steps_text(stage)), ("time", time_text(stage.seconds)), ("result", headline(stage))]
    if stage.lineage is not None and stage.lineage.get("step") not in (None, stage.num_steps):
        rows.append(("exported", f"step {stage.lineage['step']}, the best evaluation"))
    if (found := perplexity(stage)) is not None:
        rows.append(("held-out perplexity", short(found)))
    if stage.rankings:
        rows.append(("tied prompts", percent(tied_frac(stage.rankings))))
        rows.append(("distinct answers", percent(distinct_frac(stage.rankings))))
    return _definitions(rows, "facts")


def _definitions(rows: list[tuple[str, str]], class_: str) -> Markup:
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in rows), class_=class_
    )


def _charts(stage: StageReport) -> list[Markup]:
    cards = [curve_card(curves) for curves in curves_of(stage)]
    if stage.rankings:
        scores = [score for row in stage.rankings for score in row.scores]
        drawn = histogram("Annotator's numbers", scores)
        cards.insert(0, _card("Annotator's numbers", drawn, unit=counted(len(scores), "answer")))
    if stage.phases:
        cards.append(_phases_card(stage))
    parts = [element("div", *cards, class_="charts")]
    if stage.num_steps > MOST_POINTS:
        parts.append(element("p", f"A point is the mean of {-(-stage.num_steps // MOST_POINTS)} steps.", class_="note"))
    return [*parts, *([_reliability(stage)] if stage.evaluation is not None else [])]


def curve_card(curves: Curves) -> Markup:
    """A chart with its last value; with the names of its lines, where it has several."""
    drawn = line_chart(curves.title, curves.lines, from_zero=curves.from_zero)
    last = [short(line.points[-1][1]) for line in curves.lines]
    if len(last) == 1:
        label = curves.lines[0].label
        return _card(curves.title, drawn, unit=curves.unit or label, last=last[0])
    legend = [f"{line.label} {value}" for line, value in zip(curves.lines, last, strict=True)]
    return _card(curves.title, drawn, unit=curves.unit, legend=legend)


def _phases_card(stage: StageReport) -> Markup:
    columns = [Column(first=step, last=step, parts=seconds) for step, seconds in stage.phases]
    names = [name for name in (*PHASES, REST) if any(name in column.parts for column in columns)]
    drawn = stacked_bars("Seconds by phase", columns, names)
    return _card("Seconds by phase", drawn, unit="of a step", legend=names)


def _reliability(stage: StageReport) -> Markup:
    """A reward model on groups that it never trained on."""
    found = stage.evaluation
    assert found is not None
    correlation = found.length_correlation
    figures = _definitions(
        [
            ("held-out groups", f"{found.num_groups:,}"),
            ("pairs", f"{found.num_pairs:,}"),
            ("pair accuracy", percent(found.pair_accuracy)),
            ("expected calibration error", f"{found.ece:.3f}"),
            ("correlation of score and length", "none" if correlation is None else f"{correlation:+.2f}"),
            ("scores", f"{short(found.mean)} ± {short(found.std)}"),
        ],
        "figures",
    )
    title = element("h3", "The reward model, held out")
    if found.bins is None:
        note = "This model was evaluated by a version that did not store what a reliability diagram needs."
        return element("div", title, figures, element("p", note, class_="note"), class_="card stack")
    note = (
        "Across: the probability that the model gives to one answer being better than another. Up: how often it was. On the dashed line "
        "both agree; a larger point is more pairs. Every pair is counted both ways round, so the diagram mirrors itself."
    )
    drawn = _card(
        "Reliability", reliability("Reliability", found.bins), unit="observed share over foretold probability"
    )
    text = element("div", title, figures, element("p", note, class_="note"), class_="card stack")
    return element("div", drawn, text, class_="charts")


def _card(title: str, drawn: Markup, *, unit: str = "", last: str = "", legend: list[str] | None = None) -> Markup:
    names = [element("span", text, class_=f"s{number}") for number, text in enumerate(legend or ())]
    caption = element(
        "figcaption",
        element("span", title, class_="title"),
        element("span", unit, class_="unit") if unit else None,
        element("span", last, class_="last") if last else None,
        element("span", *names, class_="legend") if names else None,
    )
    return element("figure", caption, drawn, class_="card")
