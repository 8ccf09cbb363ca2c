"""Manifests against schemas that others wrote: KubeRay's CRDs and Kubernetes' own, both made strict, and the rules of pod security."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

CRDS = Path(__file__).resolve().parents[4] / "shared" / "data" / "kuberay"
KUBERNETES = ("1.30.0", "1.37.0")
"""The oldest and the newest version that manifests are held against."""
NO_SCHEMAS_HERE: dict[str, dict[str, Any]] = {
    # https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/
    "Kustomization": {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "resources": {"type": "array", "items": {"type": "string"}},
    },
    # https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.PodMonitor
    "PodMonitor": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"port": {"type": "string"}}},
                },
            },
        },
    },
}
"""What our objects have of two kinds, written down from their references."""
FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}


@cache
def crd_validator(kind: str) -> Any:
    """Of KubeRay's v1 schema of a kind, with unknown fields refused. Skips where the schemas are not there."""
    path = CRDS / FILES[kind]
    if not path.is_file():
        pytest.skip(f"KubeRay's schemas are not in {CRDS}")
    crd = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1")
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def strict(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever fields are listed."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    listed = isinstance(made.get("properties"), dict) and made.get("type") == "object"
    if listed and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def errors(thing: dict[str, Any]) -> list[str]:
    """What the schemas say against an object, its pods included."""
    if thing["kind"] in NO_SCHEMAS_HERE:
        parts = NO_SCHEMAS_HERE[thing["kind"]]
        validator = jsonschema.Draft202012Validator(
            strict({"type": "object", "required": list(parts), "properties": parts})
        )
        found = [error.message for error in validator.iter_errors(thing)]
        return [*found, *(_metadata_errors(thing) if "metadata" in thing else ())]
    if thing["apiVersion"] == "ray.io/v1":
        found = [f"{error.json_path}: {error.message}" for error in crd_validator(thing["kind"]).iter_errors(thing)]
        found += _metadata_errors(thing)
        pods = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **pod["metadata"]}, "spec": pod["spec"]}
            for pod in templates(thing)
        ]
        return [*found, *(error for pod in pods for error in core_errors(pod))]
    return core_errors(thing)


def _metadata_errors(thing: dict[str, Any]) -> list[str]:
    """What Kubernetes says against an object's metadata, which the schemas of others leave open."""
    return core_errors({"apiVersion": "v1", "kind": "ConfigMap", "metadata": thing["metadata"]})


def core_errors(thing: dict[str, Any]) -> list[str]:
    found = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{version}: {error.json_path}: {error.message}")
    return found


def templates(thing: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pod templates of a RayJob or RayCluster: submitter, head, workers."""
    spec = thing["spec"]
    if thing["kind"] == "RayJob":
        yield spec["submitterPodTemplate"]
        spec = spec["rayClusterSpec"]
    yield spec["headGroupSpec"]["template"]
    yield from (group["template"] for group in spec["workerGroupSpecs"])


def privileges(pod: dict[str, Any]) -> list[str]:
    """What a pod template has beyond the pod security standard `restricted`, written down from the standard itself:
    https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    spec = pod["spec"]
    found = [f"{key} {spec[key]}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found += [f"volume {volume['name']}" for volume in spec["volumes"] if not set(volume) - {"name"} <= allowed]
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        own = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        wrong = {
            "privileged": own.get("privileged", False),
            "escalation": own.get("allowPrivilegeEscalation", True),
            "capabilities": own.get("capabilities") != {"drop": ["ALL"]},
            "root": not own.get("runAsNonRoot", False) or own.get("runAsUser") == 0,
            "seccomp": own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
            "host ports": any("hostPort" in port for port in container.get("ports", ())),
            # beyond the standard
            "writable root": not own.get("readOnlyRootFilesystem", False),
            "token of Kubernetes": spec.get("automountServiceAccountToken", True),
        }
        found += [f"{container['name']}: {what}" for what, is_so in wrong.items() if is_so]
    return found
