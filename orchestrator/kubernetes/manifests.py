"""The objects of a run: RayJob or RayCluster, its config, its account, and what guards its pods."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from configs.schema.kubernetes import KubernetesConfig
from orchestrator.kubernetes.nodes import NodeGroup
from orchestrator.kubernetes.pods import (
    CONFIG_FOLDER,
    DASHBOARD_PORT,
    METRICS_PORT,
    NODE_PART,
    PART_LABEL,
    RUN_LABEL,
    Object,
    node_template,
    ray_start_params,
    submitter_template,
)

CONFIG_KEY = "config.yaml"
LINK_LOCAL: tuple[Object, ...] = ({"ipBlock": {"cidr": "169.254.0.0/16"}},)
"""Where NodeLocal DNSCache (169.254.20.10 by default) and clouds' own DNS answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the manifests of a run are made from."""

    name: str
    kubernetes: KubernetesConfig
    nodes: tuple[NodeGroup, ...]
    """The head first."""
    config_text: str
    """YAML of the resolved config."""
    as_job: bool
    """RayJob, which runs the config; else RayCluster, to work on."""
    skip_memory_check: bool
    """Whether the job runs what the estimate refuses."""

    @property
    def entrypoint(self) -> str:
        """Of the job: each try goes on where the one before it ended."""
        skipped = " --skip-memory-check" if self.skip_memory_check else ""
        return f"python -m orchestrator run {CONFIG_FOLDER}/{CONFIG_KEY} --resume-if-begun{skipped}"

    @property
    def config_map(self) -> str:
        """Named by its content: a run that is tried again finds the config that it was begun with."""
        return f"{self.name}-{hashlib.sha256(self.config_text.encode()).hexdigest()[:10]}"


def files_of(run: Run) -> dict[str, list[Object]]:
    """File name to the objects in it, in the order in which a cluster wants them."""
    files = {"config.yaml": [config_map(run)]}
    if run.kubernetes.service_account is None:
        files["account.yaml"] = [service_account(run)]
    files["guards.yaml"] = [network_policy(run), disruption_budget(run)]
    if run.kubernetes.metrics == "pod_monitor":
        files["monitor.yaml"] = [pod_monitor(run)]
    files["run.yaml" if run.as_job else "cluster.yaml"] = [ray_job(run) if run.as_job else ray_cluster(run)]
    return {**files, "kustomization.yaml": [kustomization(files)]}


def ray_job(run: Run) -> Object:
    """Runs the config on a cluster of its own, and again after a failure."""
    kubernetes = run.kubernetes
    deadline = {} if kubernetes.deadline_s is None else {"activeDeadlineSeconds": kubernetes.deadline_s}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(run, queued=True),
        "spec": {
            "entrypoint": run.entrypoint,
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": submitter_template(kubernetes, run.name),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": kubernetes.ttl_s,
            "backoffLimit": kubernetes.retries,
            **deadline,
            "rayClusterSpec": _cluster_spec(run),
        },
    }


def ray_cluster(run: Run) -> Object:
    """The same pods without a job."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(run, queued=True),
        "spec": _cluster_spec(run),
    }


def config_map(run: Run) -> Object:
    """The resolved config."""
    metadata = {**_metadata(run), "name": run.config_map}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {CONFIG_KEY: run.config_text},
    }


def service_account(run: Run) -> Object:
    """An account without a role: no pod of a run talks to Kubernetes, as nothing is scaled from within."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(run),
        "automountServiceAccountToken": False,
    }


def network_policy(run: Run) -> Object:
    """Pods of a run reach each other, the cluster's DNS and what `egress` names; the operator and Prometheus reach them."""
    kubernetes = run.kubernetes
    peers = [{"podSelector": {"matchLabels": {RUN_LABEL: run.name}}}]
    # a cache on the node is in the node's network, which no selector finds, and listens at a link-local address
    dns = {"to": [_namespace("kube-system"), *LINK_LOCAL], "ports": [_port(53, "UDP"), _port(53)]}
    egress: list[Object] = [{"to": peers}, dns]
    if kubernetes.egress:
        to = [{"ipBlock": {"cidr": network}} for network in kubernetes.egress]
        egress.append({"to": to, "ports": [_port(port) for port in kubernetes.egress_ports]})
    ingress = [
        {"from": peers},
        {"from": [_namespace(kubernetes.operator_namespace)], "ports": [_port(DASHBOARD_PORT)]},
        {"from": [_namespace(kubernetes.metrics_namespace)], "ports": [_port(METRICS_PORT)]},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(run),
        "spec": {
            "podSelector": {"matchLabels": {RUN_LABEL: run.name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def disruption_budget(run: Run) -> Object:
    """No pod is evicted by a drain: a run that loses one ends. Pods without a controller that can scale allow only `minAvailable`."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(run),
        "spec": {
            "minAvailable": sum(group.replicas for group in run.nodes),
            "selector": {"matchLabels": {RUN_LABEL: run.name, PART_LABEL: NODE_PART}},
        },
    }


def pod_monitor(run: Run) -> Object:
    """For the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(run),
        "spec": {
            "selector": {"matchLabels": {RUN_LABEL: run.name, PART_LABEL: NODE_PART}},
            "podMetricsEndpoints": [{"port": "metrics"}],
        },
    }


def kustomization(files: Sequence[str] | dict[str, list[Object]]) -> Object:
    """Of a folder with these files."""
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": list(files)}


# -------------------------------------------------------------------------------------------------------------------- parts


def _cluster_spec(run: Run) -> Object:
    head, *workers = run.nodes
    secret = {} if run.kubernetes.auth_secret is None else {"secretName": run.kubernetes.auth_secret}
    return {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": False,
        "authOptions": {"mode": "token", **secret},
        "headGroupSpec": {"rayStartParams": ray_start_params(head), "template": _template(head, run)},
        "workerGroupSpecs": [
            {
                "groupName": group.name,
                "replicas": group.replicas,
                "minReplicas": group.replicas,
                "maxReplicas": group.replicas,
                "rayStartParams": ray_start_params(group),
                "template": _template(group, run),
            }
            for group in workers
        ],
    }


def _template(group: NodeGroup, run: Run) -> Object:
    return node_template(group, run.kubernetes, run.name, run.config_map)


def _metadata(run: Run, *, queued: bool = False) -> Object:
    labels = {RUN_LABEL: run.name}
    queue = run.kubernetes.queue
    if queued and queue is not None and run.kubernetes.scheduler == "kueue":
        labels["kueue.x-k8s.io/queue-name"] = queue
    if queued and queue is not None and run.kubernetes.scheduler == "volcano":
        # the operator's own setting says that it is Volcano; the operator makes the pod group
        labels["volcano.sh/queue-name"] = queue
    return {"name": run.name, "namespace": run.kubernetes.namespace, "labels": labels}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _port(port: int, protocol: str = "TCP") -> Object:
    return {"port": port, "protocol": protocol}
