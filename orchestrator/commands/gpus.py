"""`preceptor gpus`."""

from __future__ import annotations

import argparse

from orchestrator.commands.base import Commands, console


def register(commands: Commands) -> None:
    """Adds it."""
    gpus = commands.add("gpus", _gpus, "list the kinds of GPU that cluster.gpu can name, and what they can do")
    gpus.add_argument("--json", action="store_true", help="as JSON, with the sources of the numbers")


def _gpus(arguments: argparse.Namespace) -> None:
    from configs.gpus import gpu_kinds

    kinds = gpu_kinds()
    if arguments.json:
        import json

        print(json.dumps({name: kind.model_dump() for name, kind in kinds.items()}, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "memory GiB", "bf16 TFLOP/s", "memory GB/s", "NVLink GB/s", "network GB/s", "host GiB"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for name, kind in kinds.items():
        numbers = (
            kind.memory_gib,
            kind.bf16_flops / 1e12,
            kind.memory_bytes_per_s / 1e9,
            kind.nvlink_bytes_per_s / 1e9,
            kind.network_bytes_per_s / 1e9,
            kind.host_gib,
        )
        table.add_row(name, *(f"{number:,.1f}".removesuffix(".0") if number else "-" for number in numbers))
    out = console()
    out.print(table)
    out.print(
        "\nRates are data sheets' peaks, one direction; network and host memory are assumed. --json shows the sources."
    )
