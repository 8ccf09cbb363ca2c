"""`preceptor k8s render`."""

from __future__ import annotations

import argparse

from orchestrator.commands.base import Commands, add_config, add_skip_memory_check, console


def register(commands: Commands) -> None:
    """Adds it."""
    render = commands.family("k8s", "run on Kubernetes").add(
        "render", _render, "write Kubernetes manifests for KubeRay: a RayJob that runs a config, and all that it needs"
    )
    render.add_argument(
        "-o", "--out", metavar="DIR", required=True, help="folder to write: new, empty, or one made so before"
    )
    render.add_argument("--cluster", action="store_true", help="a RayCluster to work on, in place of a RayJob")
    add_skip_memory_check(render)
    add_config(render)


def _render(arguments: argparse.Namespace) -> None:
    from configs.load import load_config
    from orchestrator.kubernetes.describe import describe
    from orchestrator.kubernetes.folder import check_folder, write_folder
    from orchestrator.kubernetes.render import render

    config = load_config(arguments.config, arguments.overrides)
    folder = check_folder(arguments.out)
    if not arguments.skip_memory_check:
        from orchestrator.estimate.preflight import check_memory

        check_memory(config, here=False)
    rendered = render(config, as_job=not arguments.cluster, skip_memory_check=arguments.skip_memory_check)
    write_folder(folder, rendered.files)
    console().print(describe(rendered, arguments.out), soft_wrap=True)
