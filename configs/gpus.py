"""Kinds of GPU and what they can do: `configs/facts/gpus.yaml`, checked."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter

from configs.errors import ConfigError, Problem
from configs.schema.base import NonNegativeFloat, PositiveFloat, Section
from configs.yaml_file import read_yaml

GPU_FACTS = Path(__file__).parent / "facts" / "gpus.yaml"


class GPUKind(Section):
    """One kind of GPU. Rates are peaks of the data sheets: what a program reaches of them is an assumption of whoever uses them."""

    memory_gib: PositiveFloat
    """What CUDA reports as its total, in GiB."""
    bf16_flops: PositiveFloat
    """Dense bf16 floating-point operations a second, with fp32 accumulation."""
    memory_bytes_per_s: PositiveFloat
    """Of its own memory."""
    nvlink_bytes_per_s: NonNegativeFloat
    """To the other GPUs of its node, one direction; 0: no NVLink, PCIe instead."""
    pcie_bytes_per_s: PositiveFloat
    """To the node's memory, one direction."""
    network_bytes_per_s: PositiveFloat
    """Assumed: to other nodes, one direction, its share of the node's network."""
    host_gib: PositiveFloat
    """Assumed: its share of the node's memory, in GiB."""
    kubernetes_product: str = Field(min_length=1)
    """Value of the label `nvidia.com/gpu.product`, which NVIDIA's GPU feature discovery gives to nodes that have it."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Where the numbers come from."""

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * 1024**3

    @property
    def host_bytes(self) -> float:
        return self.host_gib * 1024**3


_ADAPTER: TypeAdapter[dict[str, GPUKind]] = TypeAdapter(dict[str, GPUKind])


@cache
def gpu_kinds() -> dict[str, GPUKind]:
    """Every known kind by name, in the order of the file."""
    values, _ = read_yaml(GPU_FACTS)
    return _ADAPTER.validate_python(values)


def gpu_kind(name: str, key: str = "cluster.gpu") -> GPUKind:
    """The kind of that name; `key` is the config key that asks for it.

    Raises:
        ConfigError: unknown, with the nearest names and all that are known.
    """
    kinds = gpu_kinds()
    if name in kinds:
        return kinds[name]
    near = difflib.get_close_matches(name.lower(), kinds, n=1, cutoff=0.5) or [
        known for known in kinds if known.startswith(name.lower())
    ]
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigError("unknown GPU kind", [Problem(key=key, got=f"got {name!r}{hint}", allowed=", ".join(kinds))])
