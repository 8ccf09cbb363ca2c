"""Kubernetes: what `preceptor k8s render` writes into manifests beside what follows from the plan."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import NonNegativeInt, PositiveInt, Section, refuse
from configs.secrets import is_secret

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=63)]
"""Of an object or namespace: a DNS label."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$", max_length=253)]
"""Of an object whose name may have dots: a Secret, a claim, a service account."""
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]

CPU_GROUP, HEAD_GROUP = "cpu", "head"
"""Worker group of all roles that need no GPU; the head, where the driver runs."""
PINNED = re.compile(r"[\w./:-]+(@sha256:[0-9a-f]{64}|:(?!latest$)[\w][\w.-]{0,127})", re.ASCII)
PINNED_TEXT = "an image by digest (registry/name@sha256:...) or by a tag other than latest (registry/name:1.2.3)"


class TolerationConfig(Section):
    """A taint of nodes that pods put up with."""

    key: str = Field(min_length=1)
    """Of the taint."""
    value: str | None = None
    """Of the taint; any where it is not given."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Of the taint; all where it is not given."""


class KubernetesGroupConfig(Section):
    """The pods of one worker group. What is not given follows from the plan."""

    cpus: PositiveInt | None = None
    """CPU cores of each pod."""
    memory_gib: PositiveInt | None = None
    """Memory of each pod in GiB, shared memory included."""
    shared_memory_gib: PositiveInt | None = None
    """Size of /dev/shm of each pod in GiB."""
    node_selector: dict[str, str] | None = None
    """Labels that its nodes have, in place of those of its kind of GPU."""
    tolerations: tuple[TolerationConfig, ...] | None = None
    """Taints that its pods put up with, in place of `nvidia.com/gpu` for pods with GPUs and none for others."""


class KubernetesConfig(Section):
    """What the manifests say beside what follows from the plan."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40)] | None = None
    """Name of the run's objects, at most 40 characters; where it is not given, the last part of `run.dir`."""
    namespace: Name = "preceptor"
    """Namespace of all objects; it must exist."""
    image: str | None = None
    """Image of every pod, by digest or by a tag other than `latest`; required to render."""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    """Secrets with the registry's credentials."""
    service_account: ObjectName | None = None
    """Service account of the pods; where it is not given, one without any rights is made."""
    scheduler: Literal["none", "kueue", "volcano"] = "none"
    """Who starts all pods or none."""
    queue: Annotated[ObjectName, Field(max_length=63)] | None = None
    """Queue of the scheduler: Kueue's LocalQueue, or Volcano's queue."""
    runs_claim: ObjectName | None = None
    """PersistentVolumeClaim that holds run directories; every pod mounts it (ReadWriteMany). Not needed where `run.dir` is a URL."""
    runs_mount: str = Field(default="/opt/preceptor/runs", pattern=r"^/[\w./-]*[\w]$")
    """Folder where the claim is mounted. Relative paths begin at /opt/preceptor."""
    secrets: tuple[ObjectName, ...] = ()
    """Secrets whose keys become environment variables of every pod, such as HF_TOKEN or AWS_SECRET_ACCESS_KEY."""
    env: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of every pod. Never a secret: it is in the manifests."""
    auth_secret: ObjectName | None = None
    """Secret whose key `auth_token` is Ray's token; where it is not given, KubeRay makes one for each cluster."""
    prepare: tuple[str, ...] = ()
    """Command and its arguments that run on the head before Ray starts, at each try: fetch or make data. Must be repeatable."""
    groups: dict[str, KubernetesGroupConfig] = Field(default_factory=dict)
    """Pods by worker group: a group of the plan with GPUs, `cpu` for all without, or `head`."""
    gpu_quota: NonNegativeInt | None = None
    """GPUs that the namespace may use; a run that takes more is refused."""
    retries: NonNegativeInt = 2
    """Further tries after a failure, each with a new Ray cluster; the run goes on from its last committed step."""
    deadline_s: PositiveInt | None = None
    """Longest time of one try in seconds, from when its pods are asked for; a try that takes longer ends the run: it is not tried again."""
    ttl_s: NonNegativeInt = 3600
    """Time in seconds that a finished run's pods stay."""
    operator_namespace: Name = "ray-system"
    """Namespace of the KubeRay operator, which must reach the head."""
    metrics: Literal["annotations", "pod_monitor"] = "annotations"
    """How Prometheus finds the pods: annotations, or a PodMonitor of the Prometheus operator."""
    metrics_namespace: Name = "monitoring"
    """Namespace of Prometheus, which must reach every pod."""
    egress: tuple[Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+/\d{1,3}$")], ...] = ()
    """Networks outside the cluster that pods may reach (CIDR): object store, model hub, trackers. `0.0.0.0/0` is all of IPv4."""
    egress_ports: tuple[Port, ...] = (443,)
    """Ports that they may reach there."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.image is not None and not PINNED.fullmatch(self.image):
            raise refuse("image", f"got {self.image!r}", PINNED_TEXT)
        if self.scheduler != "none" and self.queue is None:
            raise refuse("queue", "missing", f"the queue's name, as scheduler is {self.scheduler!r}")
        if self.scheduler == "none" and self.queue is not None:
            raise refuse(
                "queue", f"got {self.queue!r}", "null, as scheduler is 'none'; or scheduler 'kueue' or 'volcano'"
            )
        for number, network in enumerate(self.egress):
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise refuse(
                    f"egress.{number}", f"got {network!r} ({error})", "a network such as 10.1.0.0/16"
                ) from None
        for name in self.env:
            if is_secret(name):
                raise refuse(f"env.{name}", "got the name of a secret", "a Secret's name in cluster.kubernetes.secrets")
        return self
