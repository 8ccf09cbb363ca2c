"""Tables: what a cell becomes, Markdown, and the way from one process to another."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.table import Cell, Table, formatted, machine_line, read_tables, write_tables

TABLE = Table(
    title="Speeds",
    columns=("way", "tokens/s", "ratio"),
    rows=(("a|b", 12345.6, 0.98765), ("c", None, 2)),
    note="Two ways.",
)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("as it is", "as it is"),
        (0.012345, "0.0123"),
        (123.456, "123"),
        (-1234.5, "-1,234"),
        (1234567, "1,234,567"),
        (0, "0"),
    ],
)
def test_a_cell_has_three_digits_or_its_thousands(cell: Cell, text: str) -> None:
    assert formatted(cell) == text


def test_markdown_is_a_table_with_its_note() -> None:
    assert TABLE.markdown().splitlines() == [
        "## Speeds",
        "",
        "Two ways.",
        "",
        "| way | tokens/s | ratio |",
        "| --- | ---: | ---: |",
        "| a\\|b | 12,346 | 0.988 |",
        "| c |  | 2 |",
    ]


def test_the_terminal_shows_every_cell() -> None:
    console = Console(width=100)
    with console.capture() as shown:
        console.print(TABLE.rich())
    assert all(text in shown.get() for text in ("Speeds", "tokens/s", "12,346", "0.988", "Two ways."))


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables.json", [TABLE, TABLE])
    assert read_tables(tmp_path / "tables.json") == [TABLE, TABLE]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(AssertionError, match="Speeds"):
        Table(title="Speeds", columns=("way", "tokens/s"), rows=(("a",),))


def test_the_machine_is_named_with_its_cores_and_versions() -> None:
    import torch

    assert f"torch {torch.__version__}" in machine_line()
    assert " cores of " in machine_line()
