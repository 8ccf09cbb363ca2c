"""`preceptor runs`, `show`, `diff`, `reproduce`. `compare` is in `orchestrator.commands.compare`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.base import (
    FAILED,
    FINE,
    BadInput,
    Commands,
    add_registry,
    add_skip_memory_check,
    console,
)

if TYPE_CHECKING:
    from orchestrator.sessions import State

RUN = "a run directory, or the beginning of a run's id"
STATES: tuple[State, ...] = ("running", "finished", "stopped", "failed", "lost")


def register(commands: Commands) -> None:
    """Adds them."""
    _register_runs(commands)
    show = commands.add("show", _show, "show all that is known of a run")
    show.add_argument("run", metavar="RUN", help=RUN)
    show.add_argument("--json", action="store_true", help="as JSON, with every step")
    add_registry(show)
    diff = commands.add(
        "diff", _diff, "show what differs between two runs or configs; exit code 0: nothing, 1: something, 2: trouble"
    )
    for side in ("A", "B"):
        diff.add_argument(side.lower(), metavar=side, help=f"{RUN}, or a config file")
    diff.add_argument("--json", action="store_true", help="as JSON")
    add_registry(diff)
    again = commands.add(
        "reproduce", _reproduce, "run a run again in a new directory, or say what is no longer the same as when it ran"
    )
    again.add_argument("run", metavar="RUN", help=RUN)
    again.add_argument("--dir", metavar="NEW", help="new run directory; default: the old one's name with -again")
    again.add_argument("--anyway", action="store_true", help="start although something is not the same")
    again.add_argument(
        "--check", action="store_true", help="only say what is not the same; exit code 0: nothing, 1: something"
    )
    add_skip_memory_check(again)
    again.set_defaults(resumable=True)
    add_registry(again)


def _register_runs(commands: Commands) -> None:
    runs = commands.add("runs", _runs, "list the runs of the registry, the newest first")
    runs.add_argument("--stage", metavar="STAGE", help="of this kind, also where it is part of a pipeline")
    runs.add_argument("--stages", action="store_true", help="also the stages of pipelines")
    runs.add_argument("--state", choices=STATES)
    runs.add_argument("--under", metavar="DIR", help="with a run directory in this folder")
    runs.add_argument(
        "--where", metavar="COND", action="append", default=[], help="on a key: 'ppo.kl.controller.coef>=0.01'"
    )
    runs.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        default=[],
        help="show its last value, or filter by it: 'score>0.5'",
    )
    runs.add_argument(
        "--sort", metavar="NAME", default="started", help="a metric, a key, started, steps, gpu_hours, hours or name"
    )
    runs.add_argument("--ascending", action="store_true", help="the smallest first")
    runs.add_argument("--limit", type=int, metavar="N", help="the first N")
    runs.add_argument("--json", action="store_true", help="as JSON")
    runs.add_argument("--sync", metavar="DIR", help="first add what the run directories in DIR tell")
    add_registry(runs)


def _runs(arguments: argparse.Namespace) -> int:
    if arguments.limit is not None and arguments.limit < 1:
        raise BadInput(f"--limit: got {arguments.limit}; allowed: a whole number of at least 1")
    if arguments.sync is not None and "://" not in arguments.sync and not Path(arguments.sync).is_dir():
        raise BadInput(
            f"--sync: got {arguments.sync!r}, which is no folder; allowed: a run directory, or a folder with some"
        )
    from actors.store import run_path
    from orchestrator.registry.listing import print_runs, runs_json
    from orchestrator.registry.lookup import needed
    from orchestrator.registry.select import Wanted, condition, select
    from orchestrator.registry.store import Registry
    from orchestrator.registry.sync import sync

    wanted = Wanted(
        state=arguments.state,
        where=tuple(condition(one, "--where", bare=False) for one in arguments.where),
        metrics=tuple(condition(one, "--metric", bare=True) for one in arguments.metric),
        sort=arguments.sort,
        ascending=arguments.ascending,
        limit=arguments.limit,
    )
    address = needed(arguments.registry, "there is nothing to list")
    out = console()
    unread: list[str] = []
    with Registry(address, create=arguments.sync is not None) as registry:
        if arguments.sync is not None:
            added = sync(registry, run_path(arguments.sync, "--sync").absolute(), unread.append)
            if not arguments.json:
                out.print(f"{added} run directories read into {address}", soft_wrap=True)
        under = str(run_path(arguments.under, "--under").absolute()) if arguments.under is not None else None
        stages = arguments.stages or arguments.stage is not None
        found = select(registry.runs(stages=stages, stage=arguments.stage, under=under), wanted)
    for one in unread:
        print(f"preceptor: {one}", file=sys.stderr)
    if arguments.json:
        print(runs_json(found))
    else:
        print_runs(found, wanted, str(address), out)
    return FAILED if unread else FINE


def _show(arguments: argparse.Namespace) -> None:
    from orchestrator.registry.listing import print_run, run_json
    from orchestrator.registry.lookup import look_up

    found = look_up(arguments.run, arguments.registry)
    if arguments.json:
        print(run_json(found))
    else:
        print_run(found, console())


def _diff(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from orchestrator.differences import differences, print_differences, subject

    a, b = (subject(text, arguments.registry) for text in (arguments.a, arguments.b))
    found = differences(a, b)
    if arguments.json:
        print(json.dumps({"a": a.name, "b": b.name, **asdict(found)}, indent=1))
    else:
        print_differences(found, a.name, b.name, console())
    return FAILED if found.found else FINE


def _reproduce(arguments: argparse.Namespace) -> int:
    from orchestrator.differences import print_differences
    from orchestrator.progress import Progress
    from orchestrator.registry.lookup import look_up
    from orchestrator.reproduce import config_for, not_the_same

    found = look_up(arguments.run, arguments.registry)
    config = config_for(found, arguments.dir)
    out = console()
    changed = not_the_same(found, config)
    print_differences(changed, "then", "now", out)
    if changed.found and not arguments.anyway:
        if not arguments.check:
            out.print("not started; --anyway starts it all the same", soft_wrap=True)
        return FAILED
    if arguments.check:
        return FINE
    if not arguments.skip_memory_check:
        from orchestrator.estimate.preflight import check_memory

        check_memory(config)
    from orchestrator import jobs

    arguments.run_dir = config.run.dir
    out.print(
        f"starting it in {config.run.dir}; afterwards: preceptor diff {arguments.run} {config.run.dir}", soft_wrap=True
    )
    with Progress() as progress:
        jobs.run(config, overrides_text=found[0].run.overrides, progress=progress, registry=arguments.registry)
    return FINE
