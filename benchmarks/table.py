"""One kind of result: a table, on the terminal and as Markdown, from a benchmark's process to the one that collects them."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import rich.table

from orchestrator.machine import local_machine

Cell = str | int | float | None
PACKAGES = ("torch", "transformers", "deepspeed", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of equal length, with what a reader needs to believe them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    """How the figures were taken, and what they leave out."""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"{self.title}: {row} has not the columns {self.columns}"

    def markdown(self) -> str:
        """Heading, note and table."""
        lines = [f"## {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        lines.append(_line(self.columns))
        lines.append("| --- |" + " ---: |" * (len(self.columns) - 1))
        lines += [_line([formatted(cell) for cell in row]) for row in self.rows]
        return "\n".join(lines) + "\n"

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        table = rich.table.Table(
            title=self.title, caption=self.note or None, title_justify="left", caption_justify="left"
        )
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(formatted(cell).replace("**", "") for cell in row))  # bold is Markdown's
        return table


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def formatted(cell: Cell) -> str:
    """Three significant digits for a fraction, thousands separated, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}"
    return f"{cell:.3g}"


def write_tables(path: Path, tables: Sequence[Table]) -> None:
    """For `read_tables`."""
    path.write_text(json.dumps([asdict(table) for table in tables]), "utf-8")


def read_tables(path: Path) -> list[Table]:
    """What another process wrote."""
    return [
        Table(
            title=raw["title"],
            columns=tuple(raw["columns"]),
            rows=tuple(tuple(row) for row in raw["rows"]),
            note=raw["note"],
        )
        for raw in json.loads(path.read_text("utf-8"))
    ]


def machine_line() -> str:
    """What the figures were taken on, in one line."""
    cores = local_machine().num_cpus
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    load = os.getloadavg()[0]
    return (
        f"{cores} cores of {_processor()}, {gib:.0f} GiB of memory, Python {platform.python_version()}, {packages}; "
        f"load average {load:.1f} at the start"
    )


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
