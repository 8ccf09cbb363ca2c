"""The run: its folder, seed, checkpoints, cluster and time limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.schema.base import NonNegativeInt, PositiveFloat, PositiveInt, Section

TrackerName = Literal["tensorboard", "wandb"]


class RunConfig(Section):
    """The run directory and what is kept in it."""

    dir: str = Field(min_length=1)
    """Folder that holds everything the run makes; must be new or empty (`resume` continues one)."""
    seed: NonNegativeInt = 0
    """Source of every random choice."""
    deterministic: bool = False
    """Same bits every time: each request has its own seed, a generation unit runs alone in its engine. Exact on CPU in fp32."""
    checkpoint_every: PositiveInt = 10
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: PositiveInt = 2
    """Newest whole checkpoints kept. An old one goes only after a newer one is whole."""
    trackers: tuple[TrackerName, ...] = ()
    """Where each step's metrics go beside the ledger: event files in `tensorboard/` of the run directory, Weights & Biases (with
    `pip install wandb`)."""
    wandb_project: str = Field(default="preceptor", min_length=1)
    """Project at Weights & Biases."""


class ClusterConfig(Section):
    """The Ray cluster and the limits of waiting."""

    address: str | None = None
    """Ray address (`auto` for the cluster this process belongs to); a Ray of this machine alone where it is not given."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What every role computes on."""
    num_cpus: PositiveInt | None = None
    """CPU cores to use of this machine; all where it is not given. More than there are is refused."""
    start_timeout_s: PositiveFloat = 600.0
    """Longest wait of each part of the start: placing a group, connecting a role, loading all of them."""
    call_timeout_s: PositiveFloat = 1800.0
    """Longest wait for one call to a role: a wave's generation or scoring, an update, a checkpoint."""
    collective_timeout_s: PositiveFloat = 600.0
    """Longest wait of a collective between the ranks of one role."""
