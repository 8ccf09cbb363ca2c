"""`preceptor run`, `resume`, `plan`, `export`, `schema`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.commands.base import Commands, add_config, add_registry, check_run_dir, console

if TYPE_CHECKING:
    from configs.schema import Stage

STAGES = ("pretrain", "sft", "rank", "reward", "dpo", "ppo", "pipeline")
"""Every `stage` of the schema, in the order of a model's development."""


def register(commands: Commands) -> None:
    """Adds them."""
    run = commands.add("run", _run, "train what a config asks for, in a new run directory")
    run.add_argument(
        "--dry-run", action="store_true", help="check config, plan, data, models and run directory; start nothing"
    )
    run.add_argument(
        "--resume-if-begun",
        action="store_true",
        help="go on where run.dir holds the run of this very config: for schedulers that try again",
    )
    add_registry(run)
    add_config(run)
    run.set_defaults(resumable=True)
    resume = commands.add("resume", _resume, "continue a run from its run directory")
    resume.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of the run")
    add_registry(resume)
    resume.set_defaults(resumable=True)
    plan = commands.add("plan", _plan, "show what would run where, without starting anything")
    plan.add_argument("--json", action="store_true", help="as JSON")
    add_config(plan)
    export = commands.add("export", _export, "write a checkpoint as a Hugging Face model")
    export.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of the run")
    export.add_argument("out", metavar="OUT", help="folder to write, new or empty")
    export.add_argument("--role", choices=("policy", "critic"), help="of a PPO run; default: policy")
    export.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    schema = commands.add("schema", _schema, "show every key, its type, default and meaning")
    schema.add_argument("stage", nargs="?", choices=STAGES, help="one stage; default: all")
    schema.add_argument("--json", action="store_true", help="JSON schema of all stages")


def _run(arguments: argparse.Namespace) -> None:
    from configs.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    from orchestrator import jobs
    from orchestrator.surroundings import place_of_run

    arguments.run_dir = place_of_run(config.run.dir)

    if arguments.dry_run:
        from orchestrator.plan import describe_plan

        out = console()
        found = jobs.dry_run(config)
        for plan in found.plans:
            out.print(describe_plan(plan), "")
        for text in found.unchecked:
            out.print(f"not checked: {text}", soft_wrap=True, markup=False)
        out.print("dry run: everything that can be checked before the start is right")
        return
    from orchestrator.progress import Progress

    start = jobs.run_or_resume if arguments.resume_if_begun else jobs.run
    with Progress() as progress:
        start(config, overrides_text=arguments.overrides, progress=progress, registry=arguments.registry)


def _resume(arguments: argparse.Namespace) -> None:
    from orchestrator.surroundings import place_of_run

    arguments.run_dir = place_of_run(arguments.run_dir)
    check_run_dir(arguments.run_dir)
    from orchestrator import jobs
    from orchestrator.progress import Progress

    with Progress() as progress:
        jobs.resume(arguments.run_dir, progress=progress, registry=arguments.registry)


def _plan(arguments: argparse.Namespace) -> None:
    from configs.load import load_config
    from configs.schema import Pipeline
    from orchestrator.machine import local_machine
    from orchestrator.plan import check_groups, describe_plan, make_plan, plan_json
    from orchestrator.surroundings import cluster_address

    config = load_config(arguments.config, arguments.overrides)
    check_groups(config)
    stages: dict[str, Stage] = config.stages if isinstance(config, Pipeline) else {str(config.stage): config}
    # what a cluster has is known when it is joined
    addresses = {name: cluster_address(stage.cluster) for name, stage in stages.items()}
    machines = {name: local_machine() if address is None else None for name, address in addresses.items()}
    plans = {name: make_plan(stage, machines[name]) for name, stage in stages.items()}
    if arguments.json:
        joined = ",\n".join(f'"{name}": {plan_json(plan)}' for name, plan in plans.items())
        print(f"{{\n{joined}\n}}" if isinstance(config, Pipeline) else plan_json(plans[str(config.stage)]))
        return
    out = console()
    for name, plan in plans.items():
        machine = machines[name]
        where = f"{machine.num_cpus} cores, {machine.num_gpus} GPUs" if machine else addresses[name]
        out.print(f"stage {name} on {machine.where if machine else 'the Ray cluster at'} ({where})")
        out.print(describe_plan(plan), "")


def _export(arguments: argparse.Namespace) -> None:
    check_run_dir(arguments.run_dir)
    from orchestrator import jobs
    from orchestrator.progress import Progress

    with Progress() as progress:
        jobs.export(arguments.run_dir, arguments.out, role=arguments.role, step=arguments.step, progress=progress)


def _schema(arguments: argparse.Namespace) -> None:
    from configs.load import describe, schema_json

    if arguments.json:
        print(schema_json())
        return
    from rich.table import Table

    out = console()
    for stage in [arguments.stage] if arguments.stage else STAGES:
        table = Table("key", "type", "default", "description", box=None, pad_edge=False)
        for row in describe(stage):
            table.add_row(row.key, row.type, row.default, row.description)
        out.print(f"stage: {stage}\n")
        out.print(table, "")
