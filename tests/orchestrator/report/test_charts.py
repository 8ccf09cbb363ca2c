"""Charts by their coordinates, numbers by what people read, and text that must not become markup."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from actors.algorithms.calibration_bin import CalibrationBin
from orchestrator.report.charts import (
    Column,
    Frame,
    Line,
    histogram,
    line_chart,
    merged_columns,
    reliability,
    stacked_bars,
    thinned,
)
from orchestrator.report.markup import Markup, element
from orchestrator.report.numbers import counted, percent, short, tick_label, ticks, whole_ticks

FRAME = Frame(x=(0, 10), y=(-1, 1), width=120, height=60, left=10, right=10, top=5, bottom=15)


def texts(svg: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in svg.iter("text")]


def titles(svg: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in svg.iter("title")]


def test_values_have_their_places() -> None:
    assert FRAME.at(0, -1) == (10, 45)
    assert FRAME.at(10, 1) == (110, 5)
    assert FRAME.at(5, 0) == (60, 25)


def test_a_line_goes_through_its_points() -> None:
    """Steps 1 to 3 span 46 to 348, values 0 to 4 span 158 to 8."""
    svg = ElementTree.fromstring(line_chart("Loss", [Line(label="loss", points=((1, 4.0), (2, 1.0), (3, 0.0)))]))
    (line,) = svg.iter("polyline")
    assert line.get("points") == "46.0,8.0 197.0,120.5 348.0,158.0"
    assert texts(svg) == ["0", "1", "2", "3", "4", "1", "2", "3"]
    assert titles(svg) == ["step 1: 4", "step 2: 1", "step 3: 0"]
    assert svg.get("aria-label") == "Loss"


def test_lines_of_one_chart_share_its_scale() -> None:
    lines = [Line(label="a", points=((1, 0.0), (4, 1.0))), Line(label="b", points=((2, 4.0),))]
    svg = ElementTree.fromstring(line_chart("x", lines))
    assert [one.get("points") for one in svg.iter("polyline")] == ["46.0,158.0 348.0,120.5", "146.7,8.0"]
    assert titles(svg) == ["a, step 1: 0", "a, step 4: 1", "b, step 2: 4"]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-9, 1e12])
@pytest.mark.parametrize("from_zero", [False, True])
def test_a_single_value_has_a_scale(value: float, from_zero: bool) -> None:
    svg = ElementTree.fromstring(line_chart("x", [Line(label="a", points=((7, value),))], from_zero=from_zero))
    (line,) = svg.iter("polyline")
    x, y = map(float, (line.get("points") or "").split(","))
    assert x == 197
    assert 8 <= y <= 158


def test_parts_are_stacked_in_order() -> None:
    columns = [Column(first=1, last=1, parts={"a": 1.0, "b": 3.0}), Column(first=2, last=2, parts={"b": 2.0})]
    svg = ElementTree.fromstring(stacked_bars("Seconds", columns, ("a", "b")))
    found = [(float(one.get("y") or 0), float(one.get("height") or 0)) for one in svg.iter("rect")]
    # 0 to 4 seconds are 150 high and end at 158
    assert found == [(120.5, 37.5), (8, 112.5), (158, 0), (83, 75)]
    assert titles(svg)[1] == "step 1: b 3 s of 4 s"


def test_a_histogram_counts_every_value_once() -> None:
    svg = ElementTree.fromstring(histogram("Numbers", [0.0, 0.1, 0.9, 1.0, 1.0], num_bins=4))
    assert [text.rpartition(": ")[2] for text in titles(svg)] == ["2 answers", "0 answers", "0 answers", "3 answers"]
    assert "<rect" in histogram("Numbers", [2.0, 2.0])


def test_reliability_draws_bins_that_hold_something() -> None:
    bins = (
        CalibrationBin(count=0, mean_prob=None, observed_frac=None),
        CalibrationBin(count=4, mean_prob=0.25, observed_frac=0.0),
        CalibrationBin(count=1, mean_prob=0.75, observed_frac=1.0),
    )
    svg = ElementTree.fromstring(reliability("Reliability", bins))
    dots = [(one.get("cx"), one.get("cy"), one.get("r")) for one in svg.iter("circle")]
    assert dots == [("121.5", "278", "12"), ("272.5", "8", "7.5")]
    assert titles(svg)[0] == "foretold 0.250, came true 0.000, 4 pairs"


def test_many_steps_become_means_of_blocks() -> None:
    points = [(step, float(step)) for step in range(1, 8)]
    assert thinned(points, 7) == points
    assert thinned(points, 3) == [(3, 2.0), (6, 5.0), (7, 7.0)]
    columns = [Column(first=step, last=step, parts={"a": float(step)}) for step in range(1, 6)]
    assert [(one.label, one.parts) for one in merged_columns(columns, 3)] == [
        ("steps 1 to 2", {"a": 1.5}),
        ("steps 3 to 4", {"a": 3.5}),
        ("step 5", {"a": 5.0}),
    ]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 4, [0, 1, 2, 3, 4]), (0.1, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_and_take_in_both_ends(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_steps_are_whole() -> None:
    assert whole_ticks(1, 3) == [1, 2, 3]
    assert whole_ticks(1, 38) == [10, 20, 30]
    assert whole_ticks(5, 5) == [5]


def test_numbers_for_people() -> None:
    assert [short(x) for x in (0.0, 0.12345, -12.345, 12345.6, 1.23e-6, 2e7, None)] == [
        "0", "0.123", "-12.3", "12,346", "1.23e-6", "2e7", "",
    ]  # fmt: skip
    assert [tick_label(x, 0.05) for x in (0.0, 0.05)] == ["0.00", "0.05"]
    assert [tick_label(x, 2e-6) for x in (0.0, 2e-6)] == ["0", "2e-6"]
    assert (counted(1, "step"), counted(1200, "step"), percent(0.6251)) == ("1 step", "1,200 steps", "62.5%")


def test_what_is_not_markup_is_escaped() -> None:
    hostile = "<script>alert('x')</script>&\"</p>"
    made = element("p", hostile, Markup("<b>kept</b>"), title=hostile, class_="a", data_x=1.5, id=None)
    assert "<script" not in made
    assert made.endswith("<b>kept</b></p>")
    assert re.findall(r" (\S+)=", made[: made.index(">")]) == ["title", "class", "data-x"]
    assert ElementTree.fromstring(made).get("title") == hostile
    assert ElementTree.fromstring(made).text == hostile
    assert "<script" not in line_chart(hostile, [Line(label=hostile, points=((1, 1.0),))] * 2)
