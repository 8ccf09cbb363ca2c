"""What this machine has, asked without torch or Ray."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from orchestrator.plan_records import Machine

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""A container's CPU limit (cgroup v2): `quota period`, or `max period` where there is none."""
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""A container's memory limit (cgroup v2) in bytes, or `max`."""
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""One folder for each GPU that the driver knows."""


def local_machine() -> Machine:
    """This machine as far as this process may use it: cores within its affinity and its container's limit, GPUs as the NVIDIA driver
    lists them, or fewer where CUDA_VISIBLE_DEVICES says so."""
    gpus = len(list(NVIDIA_GPUS.glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = min(gpus, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    return Machine(num_cpus=local_cores(), num_gpus=gpus, where="this machine")


def local_cores() -> int:
    """Cores this process may use, at least 1. Part of a core that a container's limit leaves counts as one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_LIMIT.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def local_memory_bytes() -> int | None:
    """Memory of this machine, or less where a container's limit says so; None where the system does not tell."""
    found = []
    with suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # `max`: no limit
        found.append(int(MEMORY_LIMIT.read_text()))
    return min(found, default=None)
