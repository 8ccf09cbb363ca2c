"""The run: its folder, seed, checkpoints, cluster and time limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.schema.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from configs.schema.kubernetes import KubernetesConfig

TrackerName = Literal["tensorboard", "wandb", "mlflow", "prometheus"]


class RunConfig(Section):
    """The run directory and what is kept in it."""

    dir: str = Field(min_length=1)
    """Folder, or URL of an object store such as `s3://bucket/run`, that holds everything the run makes; must be new or empty (`resume`
    continues one)."""
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
    `pip install wandb`), MLflow (with `pip install mlflow-skinny`), Prometheus (through Ray's metrics port)."""
    wandb_project: str = Field(default="preceptor", min_length=1)
    """Project at Weights & Biases."""
    mlflow_experiment: str = Field(default="preceptor", min_length=1)
    """Experiment at MLflow."""


class GroupConfig(Section):
    """One placement group: where in the cluster it goes. What is not given here is as `cluster` says."""

    gpu: str | None = Field(default=None, min_length=1)
    """Kind of its GPUs, such as `h100-80gb`."""
    gpus_per_node: PositiveInt | None = None
    """GPUs of each of its nodes."""
    resource: str | None = Field(default=None, min_length=1)
    """Ray custom resource that its nodes have; the group goes to no others."""
    strategy: Literal["auto", "pack", "spread", "strict_pack", "strict_spread"] = "auto"
    """How its bundles are laid over nodes, in Ray's words. `auto` packs ranks, which talk to each other, and spreads engines that are
    alone in their group."""


class ClusterConfig(Section):
    """The Ray cluster and the limits of waiting."""

    address: str | None = None
    """Ray address (`auto` for the cluster this machine belongs to, `local` for a Ray of this machine alone). Where it is not given: the
    cluster that RAY_ADDRESS names (Ray sets it in jobs), without that a Ray of this machine alone."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What every role computes on."""
    gpu: str | None = Field(default=None, min_length=1)
    """Kind of the GPUs, such as `h100-80gb`: what memory and time are estimated for."""
    gpus_per_node: PositiveInt = 8
    """GPUs of each node."""
    gpu_hour_price: NonNegativeFloat | None = None
    """What one GPU costs an hour, in any currency; the plan then shows what the run costs."""
    groups: dict[str, GroupConfig] = Field(default_factory=dict)
    """Name of a placement group to where it goes; groups that are not named here go anywhere."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """What `preceptor k8s render` writes into manifests beside what follows from the plan."""
    num_cpus: PositiveInt | None = None
    """CPU cores to use of this machine; all where it is not given. More than there are is refused."""
    autoscaling: bool = False
    """The cluster starts nodes when they are asked for: what its nodes can't hold now is waited for instead of refused."""
    placement_timeout_s: PositiveFloat = 60.0
    """Longest wait for a cluster to have room for all groups. More where an autoscaler has to start nodes first."""
    start_timeout_s: PositiveFloat = 600.0
    """Longest wait of each part of the start: connecting a role, loading all of them."""
    stop_timeout_s: PositiveFloat = 900.0
    """Longest that a stopped job of a Ray cluster may take to end its step and write a checkpoint, in seconds; then Ray kills it."""
    call_timeout_s: PositiveFloat = 1800.0
    """Longest wait for one call to a role: a wave's generation or scoring, an update, a checkpoint."""
    collective_timeout_s: PositiveFloat = 600.0
    """Longest wait of a collective between the ranks of one role."""
