"""From a config to manifests: the same plan as `run` makes, checked against what Kubernetes needs, and the config that the pods read.

The config in the manifests is the resolved one, with what follows from where it runs: `cluster.address` is `auto`, `run.dir` is absolute,
each group names the Ray resource of its pods (`cluster.groups.NAME.resource`), so that its ranks go there, and ranks whose threads are not
given get their share of their pod's cores: what a run would take is their share of all pods' cores. `cluster.kubernetes` is left out: a run
goes on with a newer image, and its config is still its config.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from configs.errors import ConfigError, Problem
from configs.load import dump_config
from configs.schema import Config, Pipeline, Stage
from configs.schema.kubernetes import PINNED_TEXT, KubernetesConfig
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.run import ClusterConfig
from orchestrator.estimate.estimate import beneath, estimate, stored_weights
from orchestrator.kubernetes.manifests import Run, files_of
from orchestrator.kubernetes.nodes import Estimated, NodeGroup, Staged, node_groups, resource_of
from orchestrator.kubernetes.pods import WORK_DIR, Object
from orchestrator.plan import make_plan
from orchestrator.plan_records import GroupPlan, RolePlan

JOINED: dict[str, Any] = {"address": "auto", "kubernetes": {}}
"""Of `cluster`, in the config that the pods read."""
KUEUE_POD_SETS = 8
"""Kueue's limit of kinds of pods in one workload: head, submitter and worker groups."""
SHARED_BY_STAGES = ("address", "kubernetes", "gpu", "gpus_per_node", "groups")
"""Keys of `cluster` that can't differ between the stages of a pipeline: one cluster serves all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Manifests of a run, and what they ask for."""

    name: str
    namespace: str
    nodes: tuple[NodeGroup, ...]
    """The head first."""
    files: dict[str, list[Object]]
    """By name."""


def render(config: Config, *, as_job: bool, skip_memory_check: bool = False) -> Rendered:
    """A run's manifests: a RayJob that runs it, or a RayCluster of the same pods to work on.

    `skip_memory_check`: the pods' run does without it. It is the caller's to check what is rendered.

    Raises:
        ConfigError: where the config can't run, or Kubernetes could not run it; naming key, what was got and what is allowed.
    """
    kubernetes = config.cluster.kubernetes
    problems = [*_asked(config), *_stored(config), *_one_cluster(config)]
    if problems:
        raise _refused(problems)
    stages = tuple(config.stages.values()) if isinstance(config, Pipeline) else (config,)
    # what the pods have is known when they run
    staged = [(stage, make_plan(stage, None)) for stage in stages]
    nodes = node_groups(config.cluster, staged, _estimated(config, staged))
    if problem := _too_many_kinds(kubernetes, nodes, as_job=as_job):
        raise _refused([problem])
    name = kubernetes.name or _name(config.run.dir)
    assert name is not None, "_asked refuses it"
    run = Run(
        name=name,
        kubernetes=kubernetes,
        nodes=nodes,
        config_text=dump_config(in_cluster(config, staged, nodes)),
        as_job=as_job,
        skip_memory_check=skip_memory_check,
    )
    return Rendered(name=run.name, namespace=kubernetes.namespace, nodes=nodes, files=files_of(run))


def _estimated(config: Config, staged: Staged) -> Estimated:
    """Memory of the ranks, where the sizes of their models are known without asking a hub."""
    names = beneath(config)
    host: dict[str, float] = {}
    on_cpu = 0.0
    for stage, plan in staged:
        cpu_peaks = 0.0
        for group in estimate(stage, plan, None, names).groups.values():
            if plan.groups[group.group].gpus_per_bundle:
                host[group.group] = max(group.host_bytes_per_bundle, host.get(group.group, 0.0))
            else:
                cpu_peaks += plan.groups[group.group].num_bundles * group.peak.amount
        on_cpu = max(on_cpu, cpu_peaks)
    weights = max(stored_weights(stage, names) for stage, _ in staged)
    return Estimated(host_bytes_per_bundle=host, cpu_bytes=on_cpu, stored_weights=weights)


def in_cluster(config: Config, staged: Staged, nodes: tuple[NodeGroup, ...]) -> Config:
    """The config as the pods read it."""
    values = config.model_dump()
    values["run"]["dir"] = _absolute(config.run.dir)
    values["cluster"] |= JOINED
    sections: dict[str, dict[str, Any]] = {"": values}
    if isinstance(config, Pipeline):
        sections = values["stages"]
        for name, section in sections.items():
            section["run"]["dir"] = f"{values['run']['dir']}/{name}"
    for section, (stage, plan) in zip(sections.values(), staged, strict=True):
        section["cluster"] |= JOINED
        for group in plan.groups.values():
            section["cluster"]["groups"].setdefault(group.name, {})["resource"] = resource_of(group, config.cluster)
        for role in plan.roles.values():
            _give_threads(section, stage, role, _pods_of(plan.groups[role.group], nodes))
    return type(config).model_validate(values)


def _pods_of(group: GroupPlan, nodes: tuple[NodeGroup, ...]) -> NodeGroup:
    on_gpus = group.gpus_per_bundle > 0
    return next(pods for pods in nodes if group.name in pods.holds and (pods.gpus > 0) == on_gpus)


def _give_threads(values: dict[str, Any], stage: Stage, role: RolePlan, pod: NodeGroup) -> None:
    """Sets a role's threads where they are not given: the cores of a pod for each of its GPUs, or for each of the role's ranks."""
    path = _threads_path(stage, role.role)
    if path is None:
        return
    *sections, last = path
    for name in sections:
        values = values[name]
    if values[last] is None:
        values[last] = max(1, pod.cpus // (pod.gpus if role.gpus_per_rank else role.num_ranks))


def _threads_path(stage: Stage, role: str) -> tuple[str, ...] | None:
    """The key that says how many threads a rank of the role has; None where it has one in any case."""
    if role == "rollout":
        return ("rollout", "threads_per_engine")
    if isinstance(stage, RankStage):
        return None
    if not isinstance(stage, PPOStage):
        return ("model", "placement", "threads_per_rank")
    if role == "reward":
        return ("reward", "model", "placement", "threads_per_rank")
    return (role, "placement", "threads_per_rank") if role in ("policy", "critic", "reference") else None


# ------------------------------------------------------------------------------------------------------------------- checks


def _asked(config: Config) -> list[Problem]:
    """Problems of what the config says of Kubernetes."""
    found = []
    kubernetes = config.cluster.kubernetes
    if kubernetes.image is None:
        found.append(Problem(key="cluster.kubernetes.image", got="missing", allowed=PINNED_TEXT))
    if config.cluster.address not in (None, "auto"):
        allowed = "not given, or 'auto': the run joins the Ray cluster that its manifests make"
        found.append(Problem(key="cluster.address", got=f"got {config.cluster.address!r}", allowed=allowed))
    if kubernetes.name is None and _name(config.run.dir) is None:
        allowed = "a name of letters, digits and -, at most 40: run.dir ends in none that Kubernetes takes"
        found.append(
            Problem(key="cluster.kubernetes.name", got=f"missing, and run.dir is {config.run.dir!r}", allowed=allowed)
        )
    return found


def _stored(config: Config) -> list[Problem]:
    """Problems of where the run directory is: pods have no disk that outlasts them."""
    kubernetes, run_dir = config.cluster.kubernetes, config.run.dir
    if "://" in run_dir:
        if kubernetes.egress:
            return []
        allowed = "the networks of the object store (CIDR): the network policy lets pods reach no others"
        return [Problem(key="cluster.kubernetes.egress", got=f"missing, and run.dir is {run_dir!r}", allowed=allowed)]
    if kubernetes.runs_claim is None:
        allowed = (
            "a PersistentVolumeClaim that every pod can mount (ReadWriteMany); or run.dir as a URL of an object store"
        )
        return [Problem(key="cluster.kubernetes.runs_claim", got="missing", allowed=allowed)]
    if PurePosixPath(kubernetes.runs_mount) not in PurePosixPath(_absolute(run_dir)).parents:
        allowed = f"a folder under {kubernetes.runs_mount} (cluster.kubernetes.runs_mount), where the claim is mounted"
        got = f"got {run_dir!r}" + ("" if run_dir.startswith("/") else f", which is {_absolute(run_dir)} in the pods")
        return [Problem(key="run.dir", got=got, allowed=allowed)]
    return []


def _one_cluster(config: Config) -> list[Problem]:
    """Problems of stages that want another cluster than their pipeline."""
    if not isinstance(config, Pipeline):
        return []
    return [
        Problem(
            key=f"stages.{name}.cluster.{key}",
            got="differs from the pipeline's",
            allowed=f"not given: cluster.{key} holds for all stages, as one Ray cluster serves them",
        )
        for name, stage in config.stages.items()
        for key in SHARED_BY_STAGES
        if _key(stage, key) != _key(config, key)
    ]


def _key(config: Stage | Pipeline, key: str) -> object:
    cluster: ClusterConfig = config.cluster
    return cluster.model_dump(include={key})


def _too_many_kinds(kubernetes: KubernetesConfig, nodes: tuple[NodeGroup, ...], *, as_job: bool) -> Problem | None:
    kinds = len(nodes) + (1 if as_job else 0)
    if kubernetes.scheduler != "kueue" or kinds <= KUEUE_POD_SETS:
        return None
    least = KUEUE_POD_SETS - (kinds - len(nodes)) - 1
    return Problem(
        key="cluster.kubernetes.scheduler",
        got=f"got 'kueue', and the run has {len(nodes) - 1} groups of pods",
        allowed=f"at most {least} with Kueue, which takes {KUEUE_POD_SETS} kinds of pods, head and submitter included; or 'volcano'",
    )


def _refused(problems: list[Problem]) -> ConfigError:
    return ConfigError("the run can't be rendered for Kubernetes", problems)


# --------------------------------------------------------------------------------------------------------------------- names


def _absolute(run_dir: str) -> str:
    return run_dir if "://" in run_dir else str(PurePosixPath(WORK_DIR) / run_dir)


def _name(run_dir: str) -> str | None:
    """The last part of `run.dir` as Kubernetes takes it; None where it does not."""
    name = re.sub(r"[^a-z0-9]+", "-", run_dir.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return name if re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name) else None
