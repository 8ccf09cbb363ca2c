"""Every manifest is valid, asks for what the plan says, pins its image and has no privilege; and the checks that say so can fail."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import Pipeline
from configs.schema.kubernetes import PINNED
from configs.schema.ppo import PPOStage
from orchestrator.estimate.estimate import estimate
from orchestrator.kubernetes.folder import text_of
from orchestrator.kubernetes.render import Rendered, render
from orchestrator.plan import make_plan, num_gpus
from tests.orchestrator.kubernetes.validation import crd_validator, errors, privileges, templates

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted(path.stem for path in (ROOT / "configs" / "recipes").glob("*.yaml"))
SHARED = ("cluster.kubernetes.image=registry/preceptor:1.0", "cluster.kubernetes.runs_claim=runs")
EVERYTHING = (
    *SHARED,
    "cluster.kubernetes.image_pull_secrets=[registry]",
    "cluster.kubernetes.service_account=trainer",
    "cluster.kubernetes.scheduler=volcano",
    "cluster.kubernetes.queue=research",
    "cluster.kubernetes.secrets=[hub, tracker]",
    "cluster.kubernetes.env={HF_HOME: /opt/preceptor/runs/hub, ANSWER: 'yes'}",
    "cluster.kubernetes.auth_secret=ray-token",
    "cluster.kubernetes.prepare=[python, -m, tools.make_demo, runs/demo-inputs]",
    "cluster.kubernetes.groups={head: {cpus: 8, node_selector: {pool: system}}}",
    "cluster.kubernetes.deadline_s=86400",
    "cluster.kubernetes.metrics=pod_monitor",
    "cluster.kubernetes.egress=[10.0.0.0/8, 0.0.0.0/0]",
)


def rendered(recipe: str, *overrides: str, as_job: bool = True) -> Rendered:
    return render(load_config(ROOT / "configs" / "recipes" / f"{recipe}.yaml", overrides), as_job=as_job)


def ray_object(found: Rendered) -> dict[str, Any]:
    (thing,) = (one for objects in found.files.values() for one in objects if one["apiVersion"] == "ray.io/v1")
    return thing


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_gives_valid_manifests_without_privilege(recipe: str) -> None:
    found = rendered(recipe, *SHARED)
    for name, objects in found.files.items():
        # what a cluster would read, not what was meant to be written
        read = list(yaml.safe_load_all(text_of(objects)))
        assert read == objects
        assert [error for thing in read for error in errors(thing)] == [], name
    for pod in templates(ray_object(found)):
        assert privileges(pod) == []
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            assert PINNED.fullmatch(container["image"])
            assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_pods_have_the_plans_gpus(recipe: str) -> None:
    config = load_config(ROOT / "configs" / "recipes" / f"{recipe}.yaml", SHARED)
    stages = config.stages.values() if isinstance(config, Pipeline) else (config,)
    plans = [make_plan(stage, None) for stage in stages]
    groups = ray_object(render(config, as_job=True))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    asked = {
        group["groupName"]: group["replicas"]
        * int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        for group in groups
    }
    wanted: dict[str, int] = {}
    for plan in plans:
        for group in plan.groups.values():
            if group.gpus_per_bundle:
                total = group.num_bundles * group.gpus_per_bundle
                wanted[group.name] = max(total, wanted.get(group.name, 0))
    assert {name: gpus for name, gpus in asked.items() if gpus} == {
        name.replace("_", "-").lower(): gpus for name, gpus in wanted.items()
    }
    if len(plans) == 1:
        assert sum(asked.values()) == num_gpus(plans[0])
    assert all(group["replicas"] == group["minReplicas"] == group["maxReplicas"] for group in groups)


@pytest.mark.parametrize("as_job", [True, False])
def test_every_option_gives_valid_manifests(as_job: bool) -> None:
    found = rendered("ppo-8b-8gpu", *EVERYTHING, as_job=as_job)
    objects = [thing for things in found.files.values() for thing in things]
    assert [error for thing in objects for error in errors(thing)] == []
    thing = ray_object(found)
    assert thing["kind"] == ("RayJob" if as_job else "RayCluster")
    spec = thing["spec"]["rayClusterSpec"] if as_job else thing["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    head = spec["headGroupSpec"]["template"]
    assert (head["spec"]["nodeSelector"], head["spec"]["initContainers"][0]["command"][:2]) == (
        {"pool": "system"},
        ["python", "-m"],
    )
    assert head["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": name}} for name in ("hub", "tracker")]
    assert {"name": "ANSWER", "value": "yes"} in head["spec"]["containers"][0]["env"]
    assert "annotations" not in head["metadata"]
    assert all(pod["spec"]["imagePullSecrets"] == [{"name": "registry"}] for pod in templates(thing))
    assert thing["spec"].get("activeDeadlineSeconds") == (86400 if as_job else None)
    assert {"ServiceAccount"} & {thing["kind"] for thing in objects} == set()
    assert [thing["kind"] for thing in found.files["monitor.yaml"]] == ["PodMonitor"]


def test_pods_can_write_where_their_libraries_write_and_nowhere_else() -> None:
    """Ray: /tmp and /dev/shm; vLLM, Triton, PyTorch and the hub: the home folder. The rest of the root is read-only."""
    head, *workers = list(templates(ray_object(rendered("ppo-8b-8gpu", *SHARED))))[1:]
    for pod in (head, *workers):
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        kinds = {volume.pop("name"): volume for volume in copy.deepcopy(spec["volumes"])}
        config = kinds["config"]["configMap"]["name"]
        assert {mount["mountPath"]: kinds[mount["name"]] for mount in container["volumeMounts"]} == {
            "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
            "/tmp": {"emptyDir": {}},
            "/home/preceptor": {"emptyDir": {}},
            "/etc/preceptor": {"configMap": {"name": config}},
            "/opt/preceptor/runs": {"persistentVolumeClaim": {"claimName": "runs"}},
        }
        assert [mount["mountPath"] for mount in container["volumeMounts"] if mount.get("readOnly")] == [
            "/etc/preceptor"
        ]
        assert {"name": "HOME", "value": "/home/preceptor"} in container["env"]
        assert container["workingDir"] == "/opt/preceptor"
        assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"] == 1000
        assert (spec["restartPolicy"], spec["serviceAccountName"]) == ("Never", "ppo-8b")


def test_prometheus_finds_the_port_that_ray_opens() -> None:
    job = ray_object(rendered("ppo-8b-8gpu", *SHARED))
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]
        assert group["rayStartParams"]["metrics-export-port"] == "8080"
        assert pod["metadata"]["annotations"] == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "8080",
            "prometheus.io/path": "/metrics",
        }
        assert {"name": "metrics", "containerPort": 8080} in pod["spec"]["containers"][0]["ports"]
    (monitor,) = rendered("bandit", *SHARED, "cluster.kubernetes.metrics=pod_monitor").files["monitor.yaml"]
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics"}]


def test_the_head_is_for_the_driver() -> None:
    params = ray_object(rendered("bandit", *SHARED))["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    # the operator submits to it from another pod
    assert (params["num-cpus"], params["dashboard-host"]) == ("0", "0.0.0.0")


def test_a_job_goes_on_when_it_is_tried_again() -> None:
    spec = ray_object(rendered("bandit", *SHARED, "cluster.kubernetes.retries=5"))["spec"]
    assert spec["entrypoint"] == "python -m orchestrator run /etc/preceptor/config.yaml --resume-if-begun"
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["shutdownAfterJobFinishes"]) == (5, 3600, True)
    assert spec["submissionMode"] == "K8sJobMode", "the submitter's log is the driver's"
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is False, "it would want rights, and take pods away"


def test_ranks_find_their_pods() -> None:
    """Each group's pods have the Ray resource that the config in the manifests asks for."""
    found = rendered("ppo-8b-8gpu", *SHARED, "cluster.groups={critic: {resource: big}}")
    config = yaml.safe_load(found.files["config.yaml"][0]["data"]["config.yaml"])
    asked = {name: group["resource"] for name, group in config["cluster"]["groups"].items()}
    assert asked == {
        "critic": "big",
        "policy": "preceptor-policy",
        "rollout": "preceptor-rollout",
        "scorers": "preceptor-scorers",
    }
    groups = ray_object(found)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for group in groups:
        (text,) = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(text) == {asked[group["groupName"]]: 1}


def test_shared_memory_is_the_plans() -> None:
    many = ("ppo.prompts_per_step=16384", "rollout.responses_per_prompt=8")
    small, large = (ray_object(rendered("ppo-8b-8gpu", *SHARED, *overrides)) for overrides in ((), many))
    sizes = []
    for thing in (small, large):
        group = thing["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        (shm,) = (one for one in group["template"]["spec"]["volumes"] if one["name"] == "shm")
        container = group["template"]["spec"]["containers"][0]
        assert shm["emptyDir"]["medium"] == "Memory"
        gib = int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        # of it, one GiB is for NCCL and torch; and it counts as the container's memory
        assert int(group["rayStartParams"]["object-store-memory"]) == (gib - 1) * 2**30
        assert gib < int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
        sizes.append(gib)
    # 16384 x 8 trajectories of 2048 tokens x 32 bytes are 8 GiB, which the estimate says; 1 GiB is to spare
    assert sizes == [4, 9]
    config = load_config(ROOT / "configs" / "recipes" / "ppo-8b-8gpu.yaml", many)
    assert isinstance(config, PPOStage)
    plan = make_plan(config, None)
    estimated = estimate(config, plan, None, {}).groups["policy"]
    assert plan.groups["policy"].num_bundles * estimated.shared_bytes_per_bundle == 8 * 2**30


def test_offloaded_states_have_their_memory() -> None:
    """fp32 master weights and Adam's moments of Qwen3-8B, 12 bytes a parameter, are in the pod's memory."""

    def memory_gib(*overrides: str) -> int:
        (pods,) = (one for one in rendered("ppo-8b-4x24gb", *SHARED, *overrides).nodes if one.name == "trainers")
        return pods.memory_gib

    assert memory_gib() > 8.19e9 * 12 / 2**30
    assert memory_gib() > memory_gib("policy.engine.offload_optimizer=false")


def test_a_gpu_kind_chooses_its_nodes() -> None:
    found = rendered("ppo-8b-8gpu", *SHARED, "cluster.gpu=h100-80gb", "cluster.groups={rollout: {gpu: l40s}}")
    groups = ray_object(found)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    chosen = {group["groupName"]: group["template"]["spec"].get("nodeSelector") for group in groups}
    assert chosen["policy"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert chosen["rollout"] == {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    assert groups[0]["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]


def test_only_what_must_reach_a_run_reaches_it() -> None:
    policy, budget = rendered("ppo-8b-8gpu", *SHARED, "cluster.kubernetes.egress=[10.1.0.0/16]").files["guards.yaml"]
    assert policy["spec"]["podSelector"]["matchLabels"] == {"preceptor/run": "ppo-8b"}
    ports = [[port["port"] for port in rule.get("ports", [])] for rule in policy["spec"]["ingress"]]
    assert ports == [[], [8265], [8080]]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"], "what is not named is not held back"
    assert [rule["from"][0]["namespaceSelector"]["matchLabels"] for rule in policy["spec"]["ingress"][1:]] == [
        {"kubernetes.io/metadata.name": "ray-system"},
        {"kubernetes.io/metadata.name": "monitoring"},
    ]
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"preceptor/run": "ppo-8b"}}}]
    assert policy["spec"]["egress"][-1] == {
        "to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
        "ports": [{"port": 443, "protocol": "TCP"}],
    }
    assert budget["spec"]["minAvailable"] == 5, "the head and four groups of one pod"
    # not the submitter, which comes and goes
    assert budget["spec"]["selector"]["matchLabels"] == {"preceptor/run": "ppo-8b", "preceptor/part": "node"}


def test_names_are_found_where_nodes_cache_them() -> None:
    """NodeLocal DNSCache is in the node's network, where no selector finds it: https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/"""
    policy, _ = rendered("bandit", *SHARED).files["guards.yaml"]
    asked = [rule for rule in policy["spec"]["egress"] if any(port["port"] == 53 for port in rule.get("ports", ()))]
    assert asked == [
        {
            "to": [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
                {"ipBlock": {"cidr": "169.254.0.0/16"}},
            ],
            "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
        }
    ]


@pytest.mark.parametrize("as_job", [True, False])
@pytest.mark.parametrize(
    ("scheduler", "label"), [("kueue", "kueue.x-k8s.io/queue-name"), ("volcano", "volcano.sh/queue-name")]
)
def test_a_scheduler_finds_its_queue_by_a_label(scheduler: str, label: str, as_job: bool) -> None:
    asked = (f"cluster.kubernetes.scheduler={scheduler}", "cluster.kubernetes.queue=q")
    thing = ray_object(rendered("bandit", *SHARED, *asked, as_job=as_job))
    # no others: `ray.io/gang-scheduling-enabled` is for the operator's other schedulers
    assert thing["metadata"]["labels"] == {"preceptor/run": "bandit", label: "q"}
    if as_job:
        assert thing["spec"]["shutdownAfterJobFinishes"] is True, "Kueue's webhook asks for it"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_knows_the_options_that_its_nodes_are_started_with() -> None:
    """The schema takes any text as an option of `ray start`."""
    from ray.scripts.scripts import start

    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    spec = ray_object(rendered("ppo-8b-8gpu", *SHARED))["spec"]["rayClusterSpec"]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    assert {name for group in groups for name in group["rayStartParams"]} <= known
    assert "dashboard-agent-listen-port" in known, "the port of the probes"
    (port,) = (option.default for option in start.params if "--dashboard-agent-listen-port" in option.opts)
    for group in groups:
        container = group["template"]["spec"]["containers"][0]
        probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
        assert probes == [{"path": "/api/healthz", "port": port}] * 3


# ------------------------------------------------------------------------------------------------- the checks can fail

PLANTED: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("backofLimit", lambda job: job["spec"].update(backofLimit=1)),
    ("rayVersoin", lambda job: job["spec"]["rayClusterSpec"].update(rayVersoin="2")),
    ("replica", lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replica=1)),
    ("nodeselector", lambda job: next(templates(job))["spec"].update(nodeselector={})),
    ("readOnlyRoot", lambda job: container_of(job)["securityContext"].update(readOnlyRoot=True)),
    ("port", lambda job: container_of(job)["ports"][0].update(port=1)),
    ("'two' is not of type 'integer'", lambda job: job["spec"].update(backoffLimit="two")),
]


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize(("named", "plant"), PLANTED, ids=[name for name, _ in PLANTED])
def test_a_misspelt_field_of_a_job_fails(named: str, plant: Callable[[dict[str, Any]], Any]) -> None:
    thing = copy.deepcopy(ray_object(rendered("bandit", *SHARED)))
    assert list(crd_validator("RayJob").iter_errors(thing)) == []
    plant(thing)
    found = [error.message for error in crd_validator("RayJob").iter_errors(thing)]
    assert len(found) == 1
    assert re.search(rf"\b{re.escape(named)}|{re.escape(named)}", found[0])


KINDS = {
    "ConfigMap",
    "Kustomization",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PodMonitor",
    "RayCluster",
    "RayJob",
    "ServiceAccount",
}


def made_objects() -> list[dict[str, Any]]:
    """Of every kind that is ever made."""
    metrics = "cluster.kubernetes.metrics=pod_monitor"
    rendered_both = [rendered("bandit", *SHARED, metrics, as_job=as_job) for as_job in (True, False)]
    return [thing for one in rendered_both for objects in one.files.values() for thing in objects]


def test_no_other_kinds_are_made() -> None:
    assert {thing["kind"] for thing in made_objects()} == KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_misspelt_field_fails_in_every_kind_of_object(kind: str) -> None:
    """At its top, in its metadata and in its spec."""
    for thing in (one for one in made_objects() if one["kind"] == kind):
        assert errors(thing) == []
        for part in ("metadata", "spec"):
            if part in thing:
                wrong = errors({**thing, part: {**thing[part], "misspelt": "1"}})
                assert any("misspelt" in error for error in wrong), part
        assert any("misspelt" in error for error in errors({**thing, "misspelt": "1"}))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"privileged": True}, "privileged"),
        ({"allowPrivilegeEscalation": True}, "escalation"),
        ({"capabilities": {"add": ["SYS_ADMIN"]}}, "capabilities"),
        ({"runAsUser": 0}, "root"),
        ({"readOnlyRootFilesystem": False}, "writable root"),
        ({"seccompProfile": {"type": "Unconfined"}}, "seccomp"),
    ],
)
def test_a_privilege_is_found(change: dict[str, Any], found: str) -> None:
    pod = copy.deepcopy(list(templates(ray_object(rendered("bandit", *SHARED))))[1])
    pod["spec"]["containers"][0]["securityContext"].update(change)
    assert privileges(pod) == [f"ray-head: {found}"]


@pytest.mark.parametrize(
    ("image", "fine"),
    [
        ("registry.example.com:5000/a/b:1.2.3", True),
        (f"a/b@sha256:{'0' * 64}", True),
        ("a/b:latest-2026", True),
        ("a/b:latest", False),
        ("a/b", False),
        ("registry:5000/a/b", False),
        ("a/b@sha256:1234", False),
    ],
)
def test_images_are_pinned(image: str, fine: bool) -> None:
    overrides = (*SHARED, f"cluster.kubernetes.image={image}")
    if fine:
        assert container_of(ray_object(rendered("bandit", *overrides)))["image"] == image
    else:
        with pytest.raises(ConfigError, match=r"cluster\.kubernetes\.image: got"):
            rendered("bandit", *overrides)
