"""What every role's rank can do before it loads anything heavy: find its peers, set its environment, send its noise to a log file."""

from __future__ import annotations

import os
import random
import resource
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from actors.context import RankContext
from actors.errors import PreceptorError
from actors.local_files import scratch_of
from actors.mirror import Mirror, take_up
from actors.store import is_local, naming, run_path


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def log_file(run_dir: Path, role: str, rank: int) -> Path:
    """Where a rank's output goes."""
    return run_dir / "logs" / f"{role}-{rank}.log"


EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LEAST_PORT = 20000
"""Ray's workers listen below."""


def unused_port() -> int:
    """A port that nobody listens on now, and that the system gives to nobody by itself.

    Seconds pass before it is listened on. One of the range from which outgoing connections get theirs is often taken by then.
    """
    try:
        first_ephemeral = int(EPHEMERAL_PORTS.read_text().split()[0])
    except OSError:
        first_ephemeral = 32768
    candidates = range(LEAST_PORT, first_ephemeral) if first_ephemeral > LEAST_PORT + 1000 else range(61000, 65536)
    for port in random.SystemRandom().sample(candidates, k=100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise PreceptorError(f"no port of {candidates.start} to {candidates.stop - 1} is free on {socket.gethostname()}")


class Role:
    """Base of all roles. Plain: `ray.remote` is applied when a group is spawned.

    The driver imports role modules for their method names alone, so they import torch and everything above it inside methods.
    """

    def __init__(self, context: RankContext) -> None:
        self.context = context

    def start(self) -> object:
        """Loads what the role needs (collective); the report says what came of it."""
        raise AssertionError(f"{type(self).__name__} has no start")

    def rendezvous(self) -> tuple[str, int]:
        """Address and a free port of this rank's node, for the group's collectives (asked of rank 0)."""
        import ray

        address = "127.0.0.1" if self.context.world_size == 1 else ray.util.get_node_ip_address()
        return address, unused_port()

    def join(self, environment: Mapping[str, str]) -> None:
        """Sets this process's environment and redirects its output to its log file; must come before anything heavy is imported."""
        assert "torch" not in sys.modules or self.context.world_size == 1, (
            "torch was imported before the environment was set"
        )
        os.environ.update(environment)
        run_dir = run_path(self.context.run_dir)
        log = log_file(scratch_of(run_dir), self.context.role, self.context.rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        if not is_local(run_dir):
            take_up(log, log_file(run_dir, self.context.role, self.context.rank))
            Mirror(scratch_of(run_dir), run_dir, wanted=lambda file: file == log).start()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def sees(self, path: str) -> tuple[bool, str]:
        """Whether a file of the run is there for this rank too, and the name of its machine."""
        place = run_path(path)
        with naming(place, "read"):
            return place.is_file(), socket.gethostname()

    def peak_memory_bytes(self) -> int:
        """Peak of this process (CPU) or of its GPU's allocator (CUDA)."""
        if self.context.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return peak_rss_bytes()
