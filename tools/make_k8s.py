"""Writes k8s/overlays from recipes, and the Grafana dashboard. A test compares what is there with what this makes.

usage: python -m tools.make_k8s
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from configs.load import load_config
from orchestrator.kubernetes.folder import text_of
from orchestrator.kubernetes.render import render
from tools.grafana import dashboard

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"
BASE = "../../base"
IMAGE = "registry.example.com/preceptor:0.1.0"
"""Where nobody's registry is: `kustomize edit set image` or a rendering of one's own names the real one."""
SHARED = ("run.trackers=[prometheus]", "cluster.kubernetes.runs_claim=runs", "cluster.kubernetes.egress=[0.0.0.0/0]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A recipe with what its place adds."""

    recipe: str
    overrides: tuple[str, ...]
    flavour: str
    """Of the image."""


HUB = ("cluster.kubernetes.env={HF_HOME: /opt/preceptor/runs/hub}",)
"""Models are fetched once, into the volume that all pods share."""

OVERLAYS = {
    "cpu-demo": Overlay(
        recipe="demo",
        flavour="cpu",
        overrides=("cluster.kubernetes.prepare=[python, -m, tools.make_demo, runs/demo-inputs]",),
    ),
    "one-node": Overlay(recipe="ppo-8b-8gpu", flavour="gpu", overrides=HUB),
    # the licence of these models asks for a token
    "several-groups": Overlay(
        recipe="ppo-70b-64gpu", flavour="gpu", overrides=(*HUB, "cluster.kubernetes.secrets=[hub]")
    ),
}


def files() -> dict[str, str]:
    """Everything that is made, by path under k8s/."""
    made = {"monitoring/dashboard.json": f"{json.dumps(dashboard(), indent=2)}\n"}
    for name, overlay in OVERLAYS.items():
        image = f"cluster.kubernetes.image={IMAGE}-{overlay.flavour}"
        config = load_config(
            ROOT / "configs" / "recipes" / f"{overlay.recipe}.yaml", (image, *SHARED, *overlay.overrides)
        )
        rendered = render(config, as_job=True)
        (kustomization,) = rendered.files["kustomization.yaml"]
        rendered.files["kustomization.yaml"] = [{**kustomization, "resources": [BASE, *kustomization["resources"]]}]
        made |= {f"overlays/{name}/{file}": text_of(objects) for file, objects in rendered.files.items()}
    return made


def main() -> None:
    shutil.rmtree(K8S / "overlays", ignore_errors=True)
    for name, text in files().items():
        path = K8S / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
