"""What was rendered, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.kubernetes.render import Rendered

if TYPE_CHECKING:
    from rich.console import RenderableType


def describe(rendered: Rendered, out: str) -> RenderableType:
    """A table of pods, and what to do next."""
    from rich.console import Group
    from rich.table import Table

    table = Table("pods", "number", "GPUs", "CPUs", "memory", "/dev/shm", "nodes", "for", box=None, pad_edge=False)
    for group in rendered.nodes:
        nodes = ", ".join(f"{key}={value}" for key, value in group.node_selector.items()) or "any"
        holds = ", ".join(group.holds) or "the driver"
        memory, shared = f"{group.memory_gib} GiB", f"{group.shared_gib} GiB"
        table.add_row(
            group.name, str(group.replicas), str(group.gpus or "-"), str(group.cpus), memory, shared, nodes, holds
        )
    gpus = sum(group.num_gpus for group in rendered.nodes)
    return Group(
        table,
        "",
        f"GPUs {gpus}, files {', '.join(rendered.files)}",
        f"start it with: kubectl apply -k {out}    (namespace {rendered.namespace}; docs/kubernetes.md)",
    )
