"""`preceptor run`, `resume`, `plan`, `export`, `schema`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.commands.base import (
    BadInput,
    Commands,
    add_config,
    add_registry,
    add_resume_if_begun,
    add_skip_memory_check,
    check_run_dir,
    console,
)

if TYPE_CHECKING:
    from orchestrator.estimate.preflight import PlannedStage
    from orchestrator.estimate.steps import Lengths

STAGES = ("pretrain", "sft", "rank", "reward", "dpo", "ppo", "pipeline")
"""Every `stage` of the schema, in the order of a model's development."""


def register(commands: Commands) -> None:
    """Adds them."""
    run = commands.add("run", _run, "train what a config asks for, in a new run directory")
    run.add_argument(
        "--dry-run", action="store_true", help="check config, plan, data, models and run directory; start nothing"
    )
    add_skip_memory_check(run)
    add_resume_if_begun(run)
    add_registry(run)
    add_config(run)
    run.set_defaults(resumable=True)
    resume = commands.add("resume", _resume, "continue a run from its run directory")
    resume.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of the run")
    add_registry(resume)
    resume.set_defaults(resumable=True)
    plan = commands.add("plan", _plan, "show what would run where, without starting anything")
    plan.add_argument("--json", action="store_true", help="as JSON")
    plan.add_argument("--picture", metavar="FILE", help="draw the GPUs of a step over its time: a .png or .svg file")
    for name, what in (("prompt", "prompt"), ("response", "answer")):
        text = f"mean tokens of a {what} where time is estimated; default: as long as the config allows"
        plan.add_argument(f"--{name}-tokens", type=float, metavar="N", help=text)
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
    from orchestrator.surroundings import place_of_run

    config = load_config(arguments.config, arguments.overrides)
    arguments.run_dir = place_of_run(config.run.dir)
    if not arguments.skip_memory_check:
        from orchestrator.estimate.preflight import check_memory

        check_memory(config)
    from orchestrator import jobs

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
    from orchestrator.estimate.fits import check_fits
    from orchestrator.estimate.picture import check_picture, write_pictures
    from orchestrator.estimate.preflight import plan_stages

    lengths = _lengths(arguments)
    picture = check_picture(arguments.picture) if arguments.picture is not None else None
    config = load_config(arguments.config, arguments.overrides)
    planned = plan_stages(config, lengths)
    if picture is not None:
        write_pictures(planned, arguments.config, picture)
    if arguments.json:
        import json

        from orchestrator.estimate.describe import planned_json

        print(json.dumps(planned_json(config, planned), indent=2))
    else:
        _show_plan(planned)
    for name, stage in planned.items():
        check_fits(stage.estimate, stage.plan, stage=name)


def _show_plan(planned: Mapping[str, PlannedStage]) -> None:
    from orchestrator.estimate.describe import describe_estimate
    from orchestrator.estimate.describe_time import describe_time, total_line
    from orchestrator.plan import describe_plan

    out = console()
    for name, stage in planned.items():
        out.print(f"stage {name} on {stage.where}")
        if stage.refusal is not None:
            out.print(stage.refusal, soft_wrap=True)
        out.print(describe_plan(stage.plan), "")
        out.print(describe_estimate(stage.estimate, stage.plan), "")
        out.print(describe_time(stage.estimate))
    if sum(stage.estimate.time is not None for stage in planned.values()) > 1:
        out.print(total_line(stage.estimate for stage in planned.values()))


def _lengths(arguments: argparse.Namespace) -> Lengths:
    from orchestrator.estimate.steps import Lengths

    for name, tokens in (("prompt", arguments.prompt_tokens), ("response", arguments.response_tokens)):
        if tokens is not None and not 1 <= tokens < math.inf:
            raise BadInput(f"--{name}-tokens: got {tokens:g}; allowed: a number of at least 1")
    return Lengths(prompt_tokens=arguments.prompt_tokens, response_tokens=arguments.response_tokens)


def _export(arguments: argparse.Namespace) -> None:
    from orchestrator.surroundings import place_of_run

    run_dir = place_of_run(arguments.run_dir)
    check_run_dir(run_dir)
    from orchestrator import jobs
    from orchestrator.progress import Progress

    with Progress() as progress:
        jobs.export(run_dir, arguments.out, role=arguments.role, step=arguments.step, progress=progress)


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
