"""From plans to pods: one worker group for each GPU group, one for all that needs no GPU, and the head, where the driver runs.

A pod is a Ray node. GPUs of the pods of a group are as many as the plan's group has: a group smaller than a node takes a part of one, a
larger one is spread evenly over nodes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from configs.errors import ConfigError, Problem
from configs.fields import either
from configs.gpus import gpu_kind
from configs.schema import Stage
from configs.schema.kubernetes import CPU_GROUP, HEAD_GROUP, TolerationConfig
from configs.schema.run import ClusterConfig
from orchestrator.estimate.groups import shared_bytes
from orchestrator.estimate.numbers import GIB
from orchestrator.plan_records import GroupPlan, Plan, RolePlan

CPUS_PER_GPU = 8
"""A data loader, a tokenizer and the launching thread of each role on a GPU, and Ray's processes; nodes of 8 have 96 and more."""
MEMORY_PER_GPU_GIB = 64
"""Where the kind of GPU is not known: weights read from files, pinned buffers, libraries."""
HOST_MEMORY_SHARE = 0.8
"""Of a node's memory for each GPU; the rest is the system's and the kubelet's."""
CPU_ROLE_MEMORY_GIB = 4
"""Of each rank without a GPU: libraries (torch, vLLM) and a small model."""
HEAD_CPUS, HEAD_MEMORY_GIB = 4, 16
"""Ray's control service, dashboard and job server, and the driver, which holds no tensor."""
SMALLEST_SHARED_GIB = 4
"""For what libraries put there (NCCL, torch), and the smallest object store that is of use."""
SPARE_SHARED_GIB = 1
"""Of /dev/shm for NCCL and torch; the rest is Ray's object store."""
RESOURCE_PREFIX = "preceptor-"
GPU_TAINT = TolerationConfig(key="nvidia.com/gpu", effect="NoSchedule")
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Equal pods."""

    name: str
    replicas: int
    gpus: int
    """Of each pod."""
    cpus: int
    memory_gib: int
    """Shared memory included."""
    shared_gib: int
    resources: tuple[str, ...]
    """Ray custom resources that its pods have; none on the head."""
    node_selector: dict[str, str]
    tolerations: tuple[TolerationConfig, ...]
    holds: tuple[str, ...]
    """Groups of the plan whose bundles go there."""

    @property
    def num_gpus(self) -> int:
        return self.replicas * self.gpus

    @property
    def object_store_bytes(self) -> int:
        return (self.shared_gib - SPARE_SHARED_GIB) * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Pods of one GPU group."""

    replicas: int
    gpus: int

    def holds(self, group: GroupPlan) -> bool:
        return self.replicas * (self.gpus // group.gpus_per_bundle) >= group.num_bundles


Staged = Sequence[tuple[Stage, Plan]]
"""The stages of a run and their plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """Memory that is estimated, in bytes, where the models' sizes are known; of a pipeline its largest stage's."""

    host_bytes_per_bundle: dict[str, float]
    """Of a group's ranks in the node's memory, by group: what is offloaded, weights on their way to the GPU."""
    cpu_bytes: float
    """Of all ranks without a GPU together."""
    stored_weights: float
    """Of a weight sync, in Ray's object store at once."""


UNKNOWN = Estimated(host_bytes_per_bundle={}, cpu_bytes=0.0, stored_weights=0.0)


def node_groups(cluster: ClusterConfig, staged: Staged, estimated: Estimated = UNKNOWN) -> tuple[NodeGroup, ...]:
    """The head, then the worker groups. Of a pipeline: what its largest stage needs, group by group.

    Raises:
        ConfigError: where a group does not fit nodes, a kind of GPU is unknown, more GPUs than the quota are needed, or pods of a group
            are described that does not exist.
    """
    _check_names(cluster, staged)
    groups = [group for _, plan in staged for group in plan.groups.values()]
    names = dict.fromkeys(group.name for group in groups if group.gpus_per_bundle)
    workers = [_gpu_nodes(name, cluster, staged, estimated) for name in names]
    if not all(group.gpus_per_bundle for group in groups):
        workers.append(_cpu_nodes(cluster, staged, estimated))
    _check_quota(cluster, workers)
    return (_head(cluster), *workers)


def resource_of(group: GroupPlan, cluster: ClusterConfig) -> str:
    """The Ray custom resource by which a group's bundles find their pods."""
    given = cluster.groups.get(group.name)
    if given is not None and given.resource is not None:
        return given.resource
    return f"{RESOURCE_PREFIX}{pod_name(group.name) if group.gpus_per_bundle else CPU_GROUP}"


def pod_name(group: str) -> str:
    """A group's name as Kubernetes allows it."""
    return group.lower().replace("_", "-").replace(".", "-")


# ------------------------------------------------------------------------------------------------------------------- groups


def _gpu_nodes(name: str, cluster: ClusterConfig, staged: Staged, estimated: Estimated) -> NodeGroup:
    using = [(stage, plan) for stage, plan in staged if name in plan.groups and plan.groups[name].gpus_per_bundle]
    groups = [plan.groups[name] for _, plan in using]
    shape = _largest([_shape(group, cluster) for group in groups], groups)
    selector, gib_per_gpu = _of_kind(name, cluster)
    bundles = shape.gpus // min(group.gpus_per_bundle for group in groups)
    shared = _shared_gib(
        shared_bytes(stage, plan, plan.groups[name], bundles=bundles, weights=estimated.stored_weights)
        for stage, plan in using
    )
    held = bundles * estimated.host_bytes_per_bundle[name] if name in estimated.host_bytes_per_bundle else 0.0
    threads = max(sum(plan.roles[role].threads for role in plan.groups[name].roles) for _, plan in using)
    pods = NodeGroup(
        name=pod_name(name),
        replicas=shape.replicas,
        gpus=shape.gpus,
        cpus=max(CPUS_PER_GPU, threads) * shape.gpus,
        memory_gib=max(gib_per_gpu * shape.gpus, 2 * shared, math.ceil(held / GIB) + shared),
        shared_gib=shared,
        resources=(resource_of(groups[0], cluster),),
        node_selector=selector,
        tolerations=(GPU_TAINT,),
        holds=(name,),
    )
    return _described(cluster, pods)


def _shape(group: GroupPlan, cluster: ClusterConfig) -> Shape:
    """The fewest equal pods that hold a group, none larger than a node."""
    given = cluster.groups.get(group.name)
    per_node = (given.gpus_per_node if given else None) or cluster.gpus_per_node
    where = f"cluster.groups.{group.name}.gpus_per_node" if given and given.gpus_per_node else "cluster.gpus_per_node"
    in_node = per_node // group.gpus_per_bundle
    if not in_node:
        raise _refused(
            where,
            f"got {per_node}",
            f"at least {group.gpus_per_bundle}: an engine of group {group.name} takes {group.gpus_per_bundle} GPUs of one node",
        )
    replicas = math.ceil(group.num_bundles / in_node)
    if group.num_bundles % replicas:
        fewer = group.num_bundles - group.num_bundles % replicas
        raise _refused(
            where,
            f"got {per_node}, and group {group.name} of {group.num_bundles} x {group.gpus_per_bundle} GPUs does not fill {replicas} "
            "nodes evenly",
            f"a group that does, such as {fewer} or {fewer + replicas} ranks, or other nodes",
        )
    return Shape(replicas=replicas, gpus=group.num_bundles // replicas * group.gpus_per_bundle)


def _largest(shapes: Sequence[Shape], groups: Sequence[GroupPlan]) -> Shape:
    """The smallest that holds the group of every stage."""
    fitting = [shape for shape in shapes if all(shape.holds(group) for group in groups)]
    if fitting:
        return min(fitting, key=lambda shape: shape.replicas * shape.gpus)
    return Shape(replicas=max(one.replicas for one in shapes), gpus=max(one.gpus for one in shapes))


def _of_kind(name: str, cluster: ClusterConfig) -> tuple[dict[str, str], int]:
    """Node labels of a group's kind of GPU, and a pod's memory in GiB for each GPU."""
    given = cluster.groups.get(name)
    kind, key = cluster.gpu, "cluster.gpu"
    if given is not None and given.gpu is not None:
        kind, key = given.gpu, f"cluster.groups.{name}.gpu"
    if kind is None:
        return {}, MEMORY_PER_GPU_GIB
    found = gpu_kind(kind, key)
    return {"nvidia.com/gpu.product": found.kubernetes_product}, int(found.host_gib * HOST_MEMORY_SHARE)


def _cpu_nodes(cluster: ClusterConfig, staged: Staged, estimated: Estimated) -> NodeGroup:
    """One pod for all roles without a GPU."""
    groups = {group.name: group for _, plan in staged for group in _cpu_groups(plan)}
    ranks = max(sum(role.num_ranks for role in _cpu_roles(plan)) for _, plan in staged)
    threads = max((role.num_ranks * role.threads for _, plan in staged for role in _cpu_roles(plan)), default=1)
    shared = _shared_gib(
        shared_bytes(stage, plan, group, bundles=group.num_bundles, weights=estimated.stored_weights)
        for stage, plan in staged
        for group in _cpu_groups(plan)
    )
    pods = NodeGroup(
        name=CPU_GROUP,
        replicas=1,
        gpus=0,
        cpus=max(threads, ranks, cluster.num_cpus or 1),
        memory_gib=max(ranks * CPU_ROLE_MEMORY_GIB, math.ceil(estimated.cpu_bytes / GIB)) + shared,
        shared_gib=shared,
        resources=tuple(dict.fromkeys(resource_of(group, cluster) for group in groups.values())),
        node_selector={},
        tolerations=(),
        holds=tuple(groups),
    )
    return _described(cluster, pods)


def _head(cluster: ClusterConfig) -> NodeGroup:
    pods = NodeGroup(
        name=HEAD_GROUP,
        replicas=1,
        gpus=0,
        cpus=HEAD_CPUS,
        memory_gib=HEAD_MEMORY_GIB,
        shared_gib=SMALLEST_SHARED_GIB,
        resources=(),
        node_selector={},
        tolerations=(),
        holds=(),
    )
    return _described(cluster, pods)


def _described(cluster: ClusterConfig, pods: NodeGroup) -> NodeGroup:
    """The pods as `cluster.kubernetes.groups` describes them, where it does."""
    given = cluster.kubernetes.groups.get(pods.holds[0] if pods.gpus else pods.name)
    if given is None:
        return pods
    changed = replace(
        pods,
        cpus=given.cpus or pods.cpus,
        memory_gib=given.memory_gib or pods.memory_gib,
        shared_gib=given.shared_memory_gib or pods.shared_gib,
        node_selector=pods.node_selector if given.node_selector is None else given.node_selector,
        tolerations=pods.tolerations if given.tolerations is None else given.tolerations,
    )
    for name, least in (("shared_memory_gib", SMALLEST_SHARED_GIB), ("memory_gib", changed.shared_gib + 1)):
        got = changed.shared_gib if name == "shared_memory_gib" else changed.memory_gib
        if got < least:
            why = "for Ray's object store and NCCL" if name == "shared_memory_gib" else "shared memory counts as memory"
            raise _refused(f"cluster.kubernetes.groups.{pods.name}.{name}", f"got {got}", f"at least {least}: {why}")
    return changed


def _shared_gib(stored: Iterable[float]) -> int:
    """Of /dev/shm of a pod: the most that Ray's object store holds there by the estimate (bytes), and what is to spare."""
    return max(SMALLEST_SHARED_GIB, math.ceil(max(stored, default=0.0) / GIB) + SPARE_SHARED_GIB)


def _cpu_groups(plan: Plan) -> list[GroupPlan]:
    return [group for group in plan.groups.values() if not group.gpus_per_bundle]


def _cpu_roles(plan: Plan) -> Iterator[RolePlan]:
    yield from (role for role in plan.roles.values() if not plan.groups[role.group].gpus_per_bundle)


# ------------------------------------------------------------------------------------------------------------------- checks


def _check_names(cluster: ClusterConfig, staged: Staged) -> None:
    groups = {group.name: group for _, plan in staged for group in plan.groups.values() if group.gpus_per_bundle}
    pods: dict[str, str] = {CPU_GROUP: "the pods of all roles without a GPU", HEAD_GROUP: "the head"}
    for name in groups:
        if not DNS_LABEL.fullmatch(pod_name(name)):
            allowed = "at most 40 letters, digits, - and _: it names pods"
            raise _refused("placement.group", f"got {name!r}", allowed)
        if pod_name(name) in pods:
            allowed = f"another name: its pods are called as {pods[pod_name(name)]}"
            raise _refused("placement.group", f"got {name!r}", allowed)
        pods[pod_name(name)] = f"those of group {name}"
    for name in cluster.kubernetes.groups:
        if name not in (*groups, CPU_GROUP, HEAD_GROUP):
            allowed = either([*groups, CPU_GROUP, HEAD_GROUP])
            raise _refused(f"cluster.kubernetes.groups.{name}", "unknown group", allowed)


def _check_quota(cluster: ClusterConfig, pods: Sequence[NodeGroup]) -> None:
    quota, needed = cluster.kubernetes.gpu_quota, sum(group.num_gpus for group in pods)
    if quota is not None and needed > quota:
        listed = " + ".join(f"{group.name} {group.num_gpus}" for group in pods if group.gpus)
        raise _refused("cluster.kubernetes.gpu_quota", f"the groups take {needed} GPUs ({listed})", f"at most {quota}")


def _refused(key: str, got: str, allowed: str) -> ConfigError:
    return ConfigError("the run can't be laid over Kubernetes nodes", [Problem(key=key, got=got, allowed=allowed)])
