"""`make bench`: figures of the system on this machine, `python -m benchmarks.bench [--model DIR] [--out FILE] [--only PART ...]`.

Each part runs in a process of its own, one after the other, so that none is measured in the memory or on the threads of another. Take the
figures on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.table import Table, machine_line, read_tables

PARTS = ("logits_memory", "packing", "system")
WITHOUT_MODEL = ("logits_memory",)
"""Parts that need none."""
TIMEOUT_S = 3600.0


def run_part(part: str, work: Path, model: Path | None) -> list[Table]:
    """A part's tables.

    Raises:
        RuntimeError: where its process failed; what it said is on stderr.
    """
    folder = work / part
    folder.mkdir()
    out = folder / "tables.json"
    command = [sys.executable, "-m", f"benchmarks.{part}", str(out)]
    if part not in WITHOUT_MODEL:
        command += ["--work", str(folder)]
        command += ["--model", str(model)] if model is not None else []
    code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S).returncode
    if code != 0:
        raise RuntimeError(f"benchmarks.{part} ended with exit code {code}")
    return read_tables(out)


def markdown(tables: Sequence[Table], where: str, model: str) -> str:
    """The page that is written."""
    return "\n".join([f"# Benchmarks\n\n{where}. Model: {model}.\n", *(table.markdown() for table in tables)])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where a part failed; the others are still shown and written."""
    parser = argparse.ArgumentParser(prog="benchmarks.bench", description="Figures of the system on this machine.")
    parser.add_argument(
        "--model", type=Path, default=None, help="Hugging Face folder (default: a small Llama made on the fly)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench.md"), help="Markdown file (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    arguments = parser.parse_args(argv)
    model = arguments.model.absolute() if arguments.model is not None else None
    if model is not None and not (model / "config.json").is_file():
        parser.error(f"--model: {model} is no Hugging Face folder")
    where, console = machine_line(), Console()
    tables: list[Table] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="preceptor-bench-") as work:
        for part in arguments.only:
            console.rule(part)
            try:
                found = run_part(part, Path(work), model)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failures.append(str(error))
                continue
            tables += found
            for table in found:
                console.print(table.rich())
    name = model.name if model is not None else "a Llama of 11M parameters with random weights, vocabulary 32,000"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(markdown(tables, where, name), "utf-8")
    console.print(f"{where}\nwritten to {arguments.out}", soft_wrap=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
