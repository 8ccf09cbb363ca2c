"""Writes docs/config.md, every key of every stage, from the schema. A test compares the two.

usage: python tools/make_config_reference.py [OUT]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.load import describe  # noqa: E402 - the repository's root is not on a script's path
from orchestrator.commands.training import STAGES  # noqa: E402

OUT = ROOT / "docs" / "config.md"
INTRO = """# Config reference

Every key of every stage, written from the schema by `python tools/make_config_reference.py`; `preceptor schema ppo` shows one
stage in the terminal. How files, `base:` and overrides go together is in [running.md](running.md#config). `N` stands for the number of
an element, a name in brackets for a variant.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRO, *(line for stage in STAGES for line in section(stage))])


def section(stage: str) -> Iterator[str]:
    """One stage's table."""
    yield f"## `stage: {stage}`\n"
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for row in describe(stage):
        cells = (f"`{row.key}`", row.type, f"`{row.default}`", row.description)
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    yield ""


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else OUT).write_text(page(), "utf-8")
