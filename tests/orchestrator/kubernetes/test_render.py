"""`preceptor k8s render` from outside: what the pods read, the folder that it writes, and every refusal's one message."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import Pipeline
from configs.schema.kubernetes import KubernetesConfig
from orchestrator import cli
from orchestrator.commands.base import BAD_INPUT, FINE
from orchestrator.kubernetes.render import render
from orchestrator.plan import Machine, make_plan

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "configs" / "recipes"
SHARED = ("cluster.kubernetes.image=registry/preceptor:1.0", "cluster.kubernetes.runs_claim=runs")


def refusal(recipe: str, *overrides: str, as_job: bool = True) -> list[str]:
    """The problems of a config that can't be rendered."""
    with pytest.raises(ConfigError) as caught:
        render(load_config(RECIPES / f"{recipe}.yaml", overrides), as_job=as_job)
    title, *lines = str(caught.value).split("\n")
    assert title == "the run can't be rendered for Kubernetes:"
    return [line.strip() for line in lines]


# ---------------------------------------------------------------------------------------------------- what the pods read


@pytest.mark.parametrize("recipe", ["bandit", "demo", "ppo-8b-8gpu"])
def test_the_pods_read_the_config_that_was_rendered(recipe: str, tmp_path: Path) -> None:
    config = load_config(RECIPES / f"{recipe}.yaml", SHARED)
    text = render(config, as_job=True).files["config.yaml"][0]["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text)
    read = load_config(tmp_path / "config.yaml")
    assert read.run.dir == f"/opt/preceptor/{config.run.dir}"
    assert (read.cluster.address, read.cluster.kubernetes) == ("auto", KubernetesConfig())
    stages = [(config, read)]
    if isinstance(config, Pipeline) and isinstance(read, Pipeline):
        stages = list(zip(config.stages.values(), read.stages.values(), strict=True))
    for before, after in stages:
        assert of_its_place(make_plan(before, None)) == of_its_place(make_plan(after, None))  # type: ignore[arg-type]
        # beyond where it runs nothing is changed
        without: dict[str, Any] = {"run": {"dir"}, "cluster": {"address", "groups", "kubernetes"}, "stages": True}
        assert of_its_place(before.model_dump(exclude=without)) == of_its_place(after.model_dump(exclude=without))
        assert after.cluster.address == "auto"


def of_its_place(value: Any) -> Any:
    """Without what says where it runs: threads, and the resources that its pods have."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if not isinstance(value, dict):
        return value
    return {key: of_its_place(one) for key, one in value.items() if not key.startswith(("threads", "resource"))}


def threads(recipe: str, *overrides: str) -> dict[str, int]:
    """Of each rank, by role, when the run plans on its Ray cluster."""
    found = render(load_config(RECIPES / f"{recipe}.yaml", (*SHARED, *overrides)), as_job=True)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(found.files["config.yaml"][0]["data"]["config.yaml"])
        config = load_config(path)
    assert not isinstance(config, Pipeline)
    # what Ray counts: the head has none
    cores = sum(group.replicas * group.cpus for group in found.nodes if group.name != "head")
    gpus = sum(group.num_gpus for group in found.nodes)
    plan = make_plan(config, Machine(num_cpus=cores, num_gpus=gpus, where="Ray"))
    return {name: role.threads for name, role in plan.roles.items()}


def test_ranks_have_their_share_of_their_own_pod() -> None:
    # 8 cores for each GPU; of 512 in all, 8 ranks would else take 64 each, on one pod of 64
    assert set(threads("ppo-70b-64gpu").values()) == {8}
    assert threads("ppo-70b-64gpu", "critic.placement.threads_per_rank=3")["critic"] == 3
    bandit = threads("bandit", "cluster.kubernetes.groups={cpu: {cpus: 6}}", "policy.placement.num_ranks=2")
    assert (bandit["policy"], bandit["rollout"], bandit["reward_function_0"]) == (3, 6, 1)


def test_a_stage_without_gpus_goes_to_the_pods_without() -> None:
    apart = (*SHARED, "cluster.device=cuda", "stages.sft.cluster.device=cpu")
    found = render(load_config(RECIPES / "demo.yaml", apart), as_job=True)
    stages = yaml.safe_load(found.files["config.yaml"][0]["data"]["config.yaml"])["stages"]
    resources = {name: stages[name]["cluster"]["groups"]["policy"]["resource"] for name in ("pretrain", "sft", "ppo")}
    assert resources == {"pretrain": "preceptor-policy", "sft": "preceptor-cpu", "ppo": "preceptor-policy"}
    assert {group.name: group.resources for group in found.nodes if group.name in ("cpu", "policy")} == {
        "cpu": ("preceptor-cpu",),
        "policy": ("preceptor-policy",),
    }


def test_a_newer_image_or_a_larger_head_leaves_the_config_as_it_is() -> None:
    texts = {
        render(load_config(RECIPES / "bandit.yaml", (*SHARED, *more)), as_job=True).files["config.yaml"][0]["metadata"][
            "name"
        ]
        for more in ((), ("cluster.kubernetes.image=b:2",), ("cluster.kubernetes.groups.head.cpus=9",))
    }
    other = render(load_config(RECIPES / "bandit.yaml", (*SHARED, "run.seed=7")), as_job=True)
    assert len(texts) == 1
    assert other.files["config.yaml"][0]["metadata"]["name"] not in texts


def test_the_run_is_named_by_its_folder() -> None:
    def name(*overrides: str) -> str:
        return render(load_config(RECIPES / "bandit.yaml", (*SHARED, *overrides)), as_job=True).name

    assert name("run.dir=/opt/preceptor/runs/My_Run.2/") == "my-run-2"
    assert name("cluster.kubernetes.name=other") == "other"


# ------------------------------------------------------------------------------------------------------------- the folder


def called(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_a_folder_and_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "k8s"
    code, said, _ = called(capsys, "k8s", "render", RECIPES / "ppo-8b-8gpu.yaml", *SHARED, "-o", out)
    assert code == FINE
    assert sorted(path.name for path in out.iterdir()) == [
        "account.yaml",
        "config.yaml",
        "guards.yaml",
        "kustomization.yaml",
        "run.yaml",
    ]
    listed = yaml.safe_load((out / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in out.iterdir())
    rows = {line.split()[0]: line.split()[1:4] for line in said.splitlines() if line}
    assert (rows["policy"], rows["rollout"]) == (["1", "3", "24"], ["1", "1", "8"])
    assert f"kubectl apply -k {out}" in said
    assert "GPUs 8" in said


def test_a_folder_that_it_made_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("k8s", "render", RECIPES / "bandit.yaml", *SHARED, "-o", tmp_path / "k8s")
    assert called(capsys, *arguments)[0] == FINE
    assert called(capsys, *arguments, "cluster.kubernetes.service_account=mine", "--cluster")[0] == FINE
    found = sorted(path.name for path in (tmp_path / "k8s").iterdir())
    assert found == ["cluster.yaml", "config.yaml", "guards.yaml", "kustomization.yaml"], (
        "account.yaml and run.yaml are gone"
    )


@pytest.mark.parametrize("foreign", ["notes.txt", "mine.yaml"])
def test_a_folder_with_other_files_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: str
) -> None:
    arguments = ("k8s", "render", RECIPES / "bandit.yaml", *SHARED, "-o", tmp_path / "k8s")
    assert called(capsys, *arguments)[0] == FINE
    (tmp_path / "k8s" / foreign).write_text("mine: 1\n")
    before = {path.name: path.read_bytes() for path in (tmp_path / "k8s").iterdir()}
    code, _, said = called(capsys, *arguments, "run.seed=3")
    assert code == BAD_INPUT
    assert said == (
        f"preceptor: -o: {tmp_path / 'k8s'} holds what `preceptor k8s render` did not make ({foreign}); "
        "allowed: a new or empty folder, or one that it made\n"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "k8s").iterdir()} == before


def test_what_is_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    code, _, said = called(capsys, "k8s", "render", RECIPES / "bandit.yaml", *SHARED, "-o", tmp_path / "file" / "k8s")
    assert code == BAD_INPUT
    assert said == (
        f"preceptor: -o: {tmp_path}/file/k8s can't be written: {tmp_path}/file is no folder that can be; "
        "allowed: a new or empty folder\n"
    )


def test_what_cannot_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("k8s", "render", RECIPES / "ppo-8b-8gpu.yaml", *SHARED, "cluster.gpu=l40s", "-o", tmp_path / "k8s")
    code, _, said = called(capsys, *arguments)
    assert code == BAD_INPUT
    assert said.startswith(
        "preceptor: stage ppo does not fit (`--skip-memory-check` starts it all the same):\n  memory of group 'policy': needs 6"
    )
    assert list(tmp_path.iterdir()) == []
    assert called(capsys, *arguments, "--skip-memory-check")[0] == FINE
    job = yaml.safe_load((tmp_path / "k8s" / "run.yaml").read_text())
    # the pods' run checks the same again
    assert job["spec"]["entrypoint"].endswith(" --resume-if-begun --skip-memory-check")


def test_this_machines_memory_says_nothing_of_the_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.estimate.preflight.local_memory_bytes", lambda: 1.0)
    assert called(capsys, "k8s", "render", RECIPES / "bandit.yaml", *SHARED, "-o", tmp_path / "k8s")[0] == FINE


def test_nothing_is_written_where_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, "k8s", "render", RECIPES / "bandit.yaml", "-o", tmp_path / "k8s")[0] == BAD_INPUT
    assert list(tmp_path.iterdir()) == []


def test_rendering_loads_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom orchestrator import cli\n"
        f"assert cli.main(['k8s', 'render', {str(RECIPES / 'ppo-8b-8gpu.yaml')!r}, *{SHARED!r}, '-o', {str(tmp_path / 'k')!r}]) == 0\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# --------------------------------------------------------------------------------------------------------------- refusals


def test_an_image_is_required() -> None:
    assert refusal("bandit", SHARED[1]) == [
        "cluster.kubernetes.image: missing; allowed: an image by digest (registry/name@sha256:...) or by a tag other than latest "
        "(registry/name:1.2.3)"
    ]


def problem(overrides: dict[str, Any], tmp_path: Path) -> str:
    """What the loader says of a `cluster.kubernetes` section."""
    recipe = yaml.safe_load((RECIPES / "bandit.yaml").read_text())
    recipe.setdefault("cluster", {})["kubernetes"] = overrides
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    (_, line) = str(caught.value).split("\n")
    return line.strip().rpartition(" (")[0]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"image": "a/b:latest"},
            "cluster.kubernetes.image: got 'a/b:latest'; allowed: an image by digest (registry/name@sha256:...) or by a tag other than "
            "latest (registry/name:1.2.3)",
        ),
        (
            {"name": "a" * 41},
            f"cluster.kubernetes.name: got '{'a' * 41}'; allowed: text of the form ^[a-z][a-z0-9]*(-[a-z0-9]+)*$, or null, at most 40 "
            "characters",
        ),
        (
            {"namespace": "Mine"},
            "cluster.kubernetes.namespace: got 'Mine'; allowed: text of the form ^[a-z0-9]+(-[a-z0-9]+)*$",
        ),
        (
            {"scheduler": "kueue"},
            "cluster.kubernetes.queue: missing; allowed: the queue's name, as scheduler is 'kueue'",
        ),
        (
            {"queue": "q"},
            "cluster.kubernetes.queue: got 'q'; allowed: null, as scheduler is 'none'; or scheduler 'kueue' or 'volcano'",
        ),
        (
            {"egress": ["0.0.0.0/0", "10.1.2.3/16"]},
            "cluster.kubernetes.egress.1: got '10.1.2.3/16' (10.1.2.3/16 has host bits set); allowed: a network such as 10.1.0.0/16",
        ),
        (
            {"scheduler": "kueue", "queue": "q" * 64},
            f"cluster.kubernetes.queue: got '{'q' * 64}'; allowed: text of the form ^[a-z0-9]+([.-][a-z0-9]+)*$, or null, at most 63 "
            "characters",
        ),
        (
            {"env": {"HF_TOKEN": "hf_x"}},
            "cluster.kubernetes.env.HF_TOKEN: got the name of a secret; allowed: a Secret's name in cluster.kubernetes.secrets",
        ),
    ],
)
def test_a_section_that_does_not_go_together_is_refused(section: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert problem(section, tmp_path) == said


def test_a_run_directory_needs_a_place_that_outlasts_the_pods() -> None:
    assert refusal("bandit", SHARED[0]) == [
        "cluster.kubernetes.runs_claim: missing; allowed: a PersistentVolumeClaim that every pod can mount (ReadWriteMany); or run.dir as "
        "a URL of an object store"
    ]
    assert refusal("bandit", *SHARED, "run.dir=out/x") == [
        "run.dir: got 'out/x', which is /opt/preceptor/out/x in the pods; allowed: a folder under /opt/preceptor/runs "
        "(cluster.kubernetes.runs_mount), where the claim is mounted"
    ]
    assert refusal("bandit", *SHARED, "run.dir=/data/x")[0].startswith(
        "run.dir: got '/data/x'; allowed: a folder under"
    )


def test_an_object_store_needs_a_way_out_and_no_secret() -> None:
    store = (SHARED[0], "run.dir=s3://bucket/run")
    assert refusal("bandit", *store) == [
        "cluster.kubernetes.egress: missing, and run.dir is 's3://bucket/run'; allowed: the networks of the object store (CIDR): the "
        "network policy lets pods reach no others"
    ]
    config = load_config(RECIPES / "bandit.yaml", (*store, "cluster.kubernetes.egress=[10.0.0.0/8]"))
    found = render(config, as_job=True)
    assert found.name == "run"
    assert "s3://bucket/run" in found.files["config.yaml"][0]["data"]["config.yaml"]
    assert "persistentVolumeClaim" not in str(found.files)


def test_a_run_joins_the_cluster_of_its_manifests() -> None:
    assert refusal("bandit", *SHARED, "cluster.address=10.0.0.1:6379") == [
        "cluster.address: got '10.0.0.1:6379'; allowed: not given, or 'auto': the run joins the Ray cluster that its manifests make"
    ]


def test_a_run_without_a_name_is_refused() -> None:
    assert refusal("bandit", *SHARED, "run.dir=runs/2026") == [
        "cluster.kubernetes.name: missing, and run.dir is 'runs/2026'; allowed: a name of letters, digits and -, at most 40: run.dir ends "
        "in none that Kubernetes takes"
    ]


def test_stages_of_a_pipeline_share_their_cluster() -> None:
    assert refusal("demo", *SHARED, "stages.sft.cluster.gpus_per_node=4") == [
        "stages.sft.cluster.gpus_per_node: differs from the pipeline's; allowed: not given: cluster.gpus_per_node holds for all stages, "
        "as one Ray cluster serves them"
    ]
    assert refusal("demo", *SHARED, "stages.ppo.cluster.address=10.0.0.1:6379")[0].startswith(
        "stages.ppo.cluster.address: "
    )


QUEUED = ("cluster.kubernetes.scheduler=kueue", "cluster.kubernetes.queue=q")


def test_every_ppo_run_has_few_enough_kinds_of_pods_for_kueue() -> None:
    apart = ("reference.placement.group=reference", "reward.functions=[{function: 'm:f'}]")
    found = render(load_config(RECIPES / "ppo-8b-8gpu.yaml", (*SHARED, *QUEUED, *apart)), as_job=True)
    assert len(found.nodes) == 7, "head, five groups on GPUs, one without; the submitter is Kueue's eighth"


def test_too_many_kinds_of_pods_for_kueue_are_refused() -> None:
    named = [f"stages.{name}.model.placement.group={name}" for name in ("pretrain", "sft")]
    asked = (*SHARED, *QUEUED, "cluster.device=cuda", *named)
    assert refusal("demo", *asked) == [
        "cluster.kubernetes.scheduler: got 'kueue', and the run has 8 groups of pods; allowed: at most 6 with Kueue, which takes 8 kinds "
        "of pods, head and submitter included; or 'volcano'"
    ]
    assert refusal("demo", *asked, as_job=False)[0].endswith("; or 'volcano'")
    assert render(load_config(RECIPES / "demo.yaml", (*SHARED, "cluster.device=cuda", *named)), as_job=True)
