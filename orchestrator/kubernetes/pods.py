"""Pods: what runs in them, with which rights, on which nodes. They pass Kubernetes' pod security standard `restricted`."""

from __future__ import annotations

import json
import shlex
from typing import Any

from configs.schema.kubernetes import HEAD_GROUP, KubernetesConfig, TolerationConfig
from orchestrator.kubernetes.nodes import NodeGroup

Object = dict[str, Any]

WORK_DIR = "/opt/preceptor"
"""Where the image has the project; the working directory of the driver and of every rank."""
HOME = "/home/preceptor"
CONFIG_FOLDER = "/etc/preceptor"
USER_ID = 1000
METRICS_PORT, DASHBOARD_PORT, GCS_PORT, AGENT_PORT = 8080, 8265, 6379, 52365
RUN_LABEL, PART_LABEL = "preceptor/run", "preceptor/part"
NODE_PART, SUBMITTER_PART = "node", "submitter"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}


def node_template(group: NodeGroup, kubernetes: KubernetesConfig, name: str, config_map: str) -> Object:
    """A Ray node's pod template."""
    head = group.name == HEAD_GROUP
    container = {
        "name": "ray-head" if head else "ray-worker",
        "image": kubernetes.image,
        "workingDir": WORK_DIR,
        "env": _variables({"HOME": HOME, **QUIET, **kubernetes.env}),
        "envFrom": [{"secretRef": {"name": secret}} for secret in kubernetes.secrets],
        "ports": _ports(head=head),
        "resources": _resources(group.cpus, f"{group.memory_gib}Gi", gpus=group.gpus),
        "securityContext": _container_security(),
        "volumeMounts": _mounts(kubernetes),
        **_probes(),
    }
    spec = _pod_spec(kubernetes, name, [_without_empty(container)], _volumes(kubernetes, config_map, group.shared_gib))
    if head and kubernetes.prepare:
        spec["initContainers"] = [_prepare(container, kubernetes)]
    spec["nodeSelector"] = group.node_selector
    spec["tolerations"] = [_toleration(one) for one in group.tolerations]
    return {"metadata": _metadata(kubernetes, name, NODE_PART), "spec": _without_empty(spec)}


def submitter_template(kubernetes: KubernetesConfig, name: str) -> Object:
    """The pod that hands the job to Ray's job server and shows its output. It needs neither the runs nor the secrets."""
    container = {
        "name": "ray-job-submitter",
        "image": kubernetes.image,
        "env": _variables({"HOME": HOME, **QUIET}),
        "resources": _resources(1, "1Gi"),
        "securityContext": _container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}],
    }
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]
    labels = {RUN_LABEL: name, PART_LABEL: SUBMITTER_PART}
    return {"metadata": {"labels": labels}, "spec": _without_empty(_pod_spec(kubernetes, name, [container], volumes))}


def ray_start_params(group: NodeGroup) -> dict[str, str]:
    """Options of `ray start`, as KubeRay wants them: texts that a shell reads."""
    params = {"metrics-export-port": str(METRICS_PORT), "object-store-memory": str(group.object_store_bytes)}
    if group.name == HEAD_GROUP:
        # the head is for the driver: no rank is placed there
        return {"dashboard-host": "0.0.0.0", "num-cpus": "0", **params}
    return {**params, "resources": shlex.quote(json.dumps(dict.fromkeys(group.resources, 1)))}


def service_account(kubernetes: KubernetesConfig, name: str) -> str:
    """The account of a run's pods: the one given, or the one that is made for it."""
    return kubernetes.service_account or name


# -------------------------------------------------------------------------------------------------------------------- parts


def _metadata(kubernetes: KubernetesConfig, name: str, part: str) -> Object:
    metadata: Object = {"labels": {RUN_LABEL: name, PART_LABEL: part}}
    if kubernetes.metrics == "annotations":
        metadata["annotations"] = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(METRICS_PORT),
            "prometheus.io/path": "/metrics",
        }
    return metadata


def _pod_spec(kubernetes: KubernetesConfig, name: str, containers: list[Object], volumes: list[Object]) -> Object:
    return {
        # nothing is restarted inside a run: what died ends it, and the next try goes on
        "restartPolicy": "Never",
        "serviceAccountName": service_account(kubernetes, name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "imagePullSecrets": [{"name": secret} for secret in kubernetes.image_pull_secrets],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": volumes,
    }


def _variables(values: dict[str, str]) -> list[Object]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def _resources(cpus: int, memory: str, *, gpus: int = 0) -> Object:
    """Requests are limits: the kubelet evicts such pods last, and a GPU can't be asked for otherwise."""
    amounts = {"cpu": str(cpus), "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _ports(*, head: bool) -> list[Object]:
    ports = (
        {"gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
        if head
        else {"metrics": METRICS_PORT}
    )
    return [{"name": name, "containerPort": port} for name, port in ports.items()]


def _probes() -> Object:
    """Ray's own health check, which needs no token and no program in the image."""
    check = {"httpGet": {"path": "/api/healthz", "port": AGENT_PORT}, "timeoutSeconds": 5}
    return {
        "startupProbe": {**check, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**check, "periodSeconds": 10, "failureThreshold": 10},
        # a node whose cores are all at work answers late; it is dead only after minutes
        "livenessProbe": {**check, "periodSeconds": 10, "failureThreshold": 60},
    }


def _mounts(kubernetes: KubernetesConfig) -> list[Object]:
    mounts: list[Object] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "home", "mountPath": HOME},
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
    ]
    if kubernetes.runs_claim is not None:
        mounts.append({"name": "runs", "mountPath": kubernetes.runs_mount})
    return mounts


def _volumes(kubernetes: KubernetesConfig, config_map: str, shared_gib: int) -> list[Object]:
    volumes: list[Object] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_gib}Gi"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
        {"name": "config", "configMap": {"name": config_map}},
    ]
    if kubernetes.runs_claim is not None:
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": kubernetes.runs_claim}})
    return volumes


def _prepare(head: Object, kubernetes: KubernetesConfig) -> Object:
    """What runs before the head: the same image, files, secrets and limits."""
    kept = ("image", "workingDir", "env", "envFrom", "resources", "securityContext", "volumeMounts")
    return _without_empty({"name": "prepare", "command": list(kubernetes.prepare), **{key: head[key] for key in kept}})


def _toleration(toleration: TolerationConfig) -> Object:
    operator = {"operator": "Exists"} if toleration.value is None else {"operator": "Equal", "value": toleration.value}
    effect = {} if toleration.effect is None else {"effect": toleration.effect}
    return {"key": toleration.key, **operator, **effect}


def _without_empty(part: Object) -> Object:
    return {key: value for key, value in part.items() if value not in ([], {})}
