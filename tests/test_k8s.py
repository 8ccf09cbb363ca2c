"""The folder k8s/: what is made from recipes is up to date, kustomize finds its parts, images are built as they should be."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli
from orchestrator.kubernetes.folder import MARK
from orchestrator.kubernetes.pods import HOME, USER_ID, WORK_DIR
from tests.orchestrator.kubernetes.validation import errors, privileges, templates
from tools.make_k8s import K8S, OVERLAYS, files

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY\b", re.IGNORECASE)


def resolved(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization: its resources, files and folders alike. Overlays here are whole in themselves: nothing is patched."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources"}
    found: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        found += resolved(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    return found


# ---------------------------------------------------------------------------------------------------------- kustomizations


def test_what_is_made_is_up_to_date() -> None:
    made = files()
    there = {str(path.relative_to(K8S)) for path in (K8S / "overlays").rglob("*") if path.is_file()}
    assert there == {name for name in made if name.startswith("overlays/")}
    old = [name for name, text in made.items() if (K8S / name).read_text() != text]
    assert old == [], "python -m tools.make_k8s makes them anew"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_whole_and_valid(overlay: str) -> None:
    objects = resolved(K8S / "overlays" / overlay)
    assert [error for thing in objects for error in errors(thing)] == []
    kinds = [thing["kind"] for thing in objects]
    assert sorted(kinds) == sorted(
        [
            "Namespace",
            "PersistentVolumeClaim",
            "ConfigMap",
            "ServiceAccount",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "RayJob",
        ]
    )
    (job,) = (thing for thing in objects if thing["kind"] == "RayJob")
    assert [why for pod in templates(job) for why in privileges(pod)] == []
    # what is named is there, in one namespace
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    for pod in list(templates(job))[1:]:
        for volume in pod["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in names
    (space,) = (thing["metadata"]["name"] for thing in objects if thing["kind"] == "Namespace")
    assert {thing["metadata"]["namespace"] for thing in objects if thing["kind"] != "Namespace"} == {space}


def test_the_namespace_enforces_the_strictest_standard() -> None:
    (space,) = (thing for thing in resolved(K8S / "base") if thing["kind"] == "Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_files_that_are_made_say_so() -> None:
    for path in (K8S / "overlays").rglob("*.yaml"):
        assert path.read_text().startswith(f"{MARK}\n"), path


def test_the_pages_example_gives_the_pages_pods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my-run.yaml").write_text(example.replace("base: ", f"base: {ROOT}/"))
    assert cli.main(["k8s", "render", str(tmp_path / "my-run.yaml"), "-o", str(tmp_path / "out")]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.split("\n\n")[0].splitlines()]
    assert "\n".join(shown) in page
    assert (tmp_path / "out" / "run.yaml").is_file()


# -------------------------------------------------------------------------------------------------------------- dashboard


def shown(board: dict[str, Any]) -> set[str]:
    """Metrics of the run, as the legends name them: those of the ledger."""
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    return {target["legendFormat"].split()[0] for target in targets if "preceptor_" in target["expr"]}


@cache
def exists(name: str) -> bool:
    """Whether code that makes metrics, and not what shows them, has the name as a text: whole, or after the slash of a role or part."""
    first, _, last = name.rpartition("/")
    if first == "reward":
        return last.isdigit()
    texts = f"{name}|{last}" if first in ("policy", "critic", "held_out") else name
    makers = [*(ROOT / "orchestrator").glob("*.py"), *(ROOT / "actors").rglob("*.py")]
    return any(re.search(rf"[\"']({texts})[\"']", path.read_text()) for path in makers)


def test_a_metric_that_is_not_there_is_found() -> None:
    assert not any(exists(name) for name in ("skore", "polisy/entropy", "policy/entrpy", "reward/score"))


def test_the_dashboard_shows_metrics_that_are_there() -> None:
    board = json.loads((K8S / "monitoring" / "dashboard.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    ours = {query for query in queries if "preceptor_" in query}
    assert 'ray_preceptor_score{run=~"$run"}' in ours
    # as Prometheus names them: the ledger's metric, its slash an underscore
    assert ours == {f'ray_preceptor_{name.replace("/", "_")}{{run=~"$run"}}' for name in shown(board)}
    assert [name for name in shown(board) if not exists(name)] == []
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_panels_do_not_lie_on_each_other() -> None:
    board = json.loads((K8S / "monitoring" / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


# ------------------------------------------------------------------------------------------------------------------ images


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile, continued lines joined, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines.splitlines() if line.strip()]


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile, by some of hadolint's rules and our own."""
    steps = instructions(text)
    found = []
    for word, rest in steps:
        if word == "FROM" and not re.fullmatch(
            r"[\w./-]+(:(?!latest)[\w.-]*\d+\.\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})", rest.split()[0]
        ):
            found.append(f"DL3006: base not pinned: {rest}")
        if word == "ADD":
            found.append("DL3020: ADD in place of COPY")
        if word in ("ENV", "ARG") and SECRET.search(rest):
            found.append(f"a secret in {word}")
        if word == "RUN" and "apt-get install" in rest:
            if "--no-install-recommends" not in rest:
                found.append("DL3015: recommended packages")
            if "rm -rf /var/lib/apt/lists" not in rest:
                found.append("DL3009: lists of packages stay")
        if word == "RUN" and re.search(r"\bsudo\b", rest):
            found.append("DL3004: sudo")
        if word == "COPY" and rest.split()[0] == ".":
            found.append("everything is copied")
    users = [rest for word, rest in steps if word == "USER"]
    if not users or users[-1].partition(":")[0] in ("root", "0"):
        found.append("DL3002: runs as root")
    installed = next((n for n, (word, rest) in enumerate(steps) if word == "RUN" and "install.sh" in rest), None)
    copied = [
        n for n, (word, rest) in enumerate(steps) if word == "COPY" and rest.split()[0] in ("actors", "orchestrator")
    ]
    if installed is None or any(n < installed for n in copied):
        found.append("the locks are not installed before the sources are copied")
    return found


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_built_as_images_should_be(name: str) -> None:
    text = (K8S / name).read_text()
    assert faults(text) == []
    steps = instructions(text)
    assert ("WORKDIR", WORK_DIR) in steps
    assert ("USER", f"{USER_ID}:{USER_ID}") in steps
    assert f"--uid {USER_ID}" in text
    assert HOME == "/home/preceptor", "useradd --create-home makes it"
    flavour = name.removeprefix("Dockerfile.")
    assert f"locks/install.sh {flavour}" in text
    for word, rest in steps:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest


def test_both_images_come_from_the_same_steps() -> None:
    """Their difference is the flavour, and what a GPU needs in the environment."""
    cpu, gpu = (instructions((K8S / name).read_text()) for name in DOCKERFILES)
    (links,) = (step for step in gpu if "CUDA_HOME/lib64" in step[1])
    assert re.findall(r"ln -sfn? (\S+)", links[1]) == ["lib", "libcudart.so.13", "libnvrtc.so.13"]
    gpu.remove(links)
    differing = [(a, b) for a, b in zip(cpu, gpu, strict=True) if a != b]
    assert [a[0] for a, _ in differing] == ["ENV", "RUN"]
    assert differing[1][0][1].replace(" cpu", " gpu") == differing[1][1][1]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("python:3.12.12-slim-bookworm", "python:latest"), "DL3006"),
        (("python:3.12.12-slim-bookworm", "python"), "DL3006"),
        (("USER 1000:1000", "USER root"), "DL3002"),
        (("--no-install-recommends ", ""), "DL3015"),
        (("rm -rf /var/lib/apt/lists/*", "true"), "DL3009"),
        (("PYTHONUNBUFFERED=1", "HF_TOKEN=hf_1"), "a secret"),
        (("COPY locks locks", "COPY actors actors"), "the locks"),
        (("COPY examples examples", "COPY . ."), "everything"),
    ],
)
def test_a_fault_of_an_image_is_found(change: tuple[str, str], found: str) -> None:
    text = (K8S / "Dockerfile.cpu").read_text()
    assert change[0] in text
    assert any(found in fault for fault in faults(text.replace(*change)))


def test_the_images_context_holds_what_they_copy_and_nothing_private() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name in DOCKERFILES
        for word, rest in instructions((K8S / name).read_text())
        if word == "COPY"
        for source in rest.split()[:-1]
    }
    assert kept == copied
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_lock_for_gpus_has_one_version_of_cudas_compiler_and_headers() -> None:
    lock = (ROOT / "locks" / "gpu.txt").read_text("utf-8")
    parts = ("cuda-nvcc", "cuda-crt", "cuda-cccl", "nvvm", "cuda-runtime")
    versions = {
        part: found.group(1) for part in parts if (found := re.search(rf"^nvidia-{part}==(\d+\.\d+)", lock, re.M))
    }
    assert versions == dict.fromkeys(parts, versions["cuda-runtime"])
