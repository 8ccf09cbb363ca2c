"""`preceptor sweep`: one config with other values, many times."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.base import BadInput, Commands, add_registry, add_skip_memory_check, console

if TYPE_CHECKING:
    from configs.schema import Config
    from orchestrator.sweep.records import Halving, Search, SweepSpec

REDUCTION = 3
OF_DRAWS = ("seed",)
OF_SEARCH = ("samples", "max_steps", "grace_steps", "reduction")
OF_CLUSTER = ("working_dir", "env")
ANEW = ("--parallel", "--gpus", "--retries", "--metric", "--mode", "--registry", "--skip-memory-check", "--address")
"""What may be given to a sweep that goes on."""


def register(commands: Commands) -> None:
    """Adds it."""
    sweep = commands.add("sweep", _sweep, "train what a config asks for with each of several values")
    sweep.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file")
    sweep.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="a list is an axis: 'policy.optimizer.lr=[1e-6,3e-6]'; anything else holds for all trials. With --random or --search also "
        "log(a,b), uniform(a,b), int(a,b), choice(a,b,...)",
    )
    place = sweep.add_mutually_exclusive_group()
    place.add_argument(
        "--dir",
        metavar="DIR",
        help="new folder for everything that the sweep makes; default: runs/sweep-CONFIG-TIME; with --address none",
    )
    place.add_argument("--resume", metavar="DIR", help="go on with the sweep in this folder")
    _add_values(sweep)
    sweep.add_argument("--parallel", type=int, metavar="N", help="trials that run at once; default: 1")
    sweep.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs that running trials may hold together; default: no limit"
    )
    sweep.add_argument("--retries", type=int, metavar="N", help="further attempts of a trial that failed; default: 0")
    sweep.add_argument("--metric", metavar="NAME", help="what trials are ranked by: score, held_out/win_rate, ...")
    sweep.add_argument("--mode", choices=("max", "min"), help="whether more or less of it is better; default: max")
    sweep.add_argument("--dry-run", action="store_true", help="check and list all trials; start nothing")
    add_skip_memory_check(sweep)
    add_registry(sweep)
    sweep.add_argument(
        "--address",
        metavar="URL",
        help="the dashboard's of a Ray cluster, which shares DIR; default: a Ray that the sweep starts here",
    )
    sweep.add_argument(
        "--working-dir",
        metavar="DIR",
        help="with --address: folder that is copied to the cluster; default: this one",
    )
    sweep.add_argument(
        "--env",
        metavar="NAME",
        action="append",
        default=[],
        help="with --address: environment variable to hand to the trials; may be repeated",
    )


def _add_values(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument("--random", type=int, metavar="N", help="draw N trials instead of taking every combination")
    sweep.add_argument("--seed", type=int, metavar="N", help="of what is drawn; default: 0")
    sweep.add_argument(
        "--search", choices=("asha",), help="draw trials and end the worse ones early, through Ray Tune; needs --metric"
    )
    sweep.add_argument("--samples", type=int, metavar="N", help="with --search: trials to draw")
    sweep.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="with --search: steps after which a trial is ended; default: ppo.steps",
    )
    sweep.add_argument(
        "--grace-steps",
        type=int,
        metavar="N",
        help="with --search: steps that every trial gets; default: a part of --max-steps",
    )
    sweep.add_argument(
        "--reduction",
        type=int,
        metavar="N",
        help=f"with --search: one of so many goes on at each rung; default: {REDUCTION}",
    )


def _sweep(arguments: argparse.Namespace) -> None:
    _check(arguments)
    if arguments.resume is not None:
        _resume(arguments)
        return
    from orchestrator.sweep.prepare import check_budget, check_memories, prepare
    from orchestrator.sweep.records import new_folder
    from orchestrator.sweep.space import read_space

    folder_path = Path(arguments.dir or _default_dir(arguments.config)).absolute()
    space = read_space(arguments.overrides, distributions=arguments.random is not None or arguments.search is not None)
    num_drawn = arguments.samples if arguments.search else arguments.random
    drawn = space.grid() if num_drawn is None else space.random(num_drawn, arguments.seed or 0)
    parallel = 1 if arguments.parallel is None else arguments.parallel
    share = None if arguments.address is not None else min(parallel, len(drawn))
    prepared = prepare(arguments.config, space, drawn, folder_path, share=share)
    spec = _spec(arguments, prepared.configs[0])
    check_budget(prepared.trials, spec.gpus)
    if not spec.skip_memory_check:
        check_memories(prepared, here=spec.address is None)
    _check_registry(spec)
    if arguments.dry_run:
        from orchestrator.sweep.results import Result, table

        out = console()
        out.print(table(spec, [Result(trial=trial, step=0, point=None) for trial in prepared.trials]))
        gpus = sorted({trial.gpus for trial in prepared.trials})
        out.print(
            f"dry run: {len(prepared.trials)} trials of {' or '.join(map(str, gpus))} GPUs, all of whose configs are right"
        )
        return
    import logging
    import shlex

    from orchestrator.sweep.direct import check_place, direct

    # Ray's client tells of every file with patterns that it reads, and of every upload
    logging.disable(logging.INFO)
    if spec.address is not None:
        from orchestrator.uploaded import require_uploaded

        # the configs themselves are in the sweep's folder, which the nodes share
        for config in prepared.configs:
            require_uploaded(config, None, Path(spec.working_dir))
    check_place(spec, folder_path)
    with new_folder(folder_path) as folder:
        folder.write(spec, prepared.trials, prepared.configs)
        print(
            f"folder: {folder_path}\ngo on with it: preceptor sweep --resume {shlex.quote(str(folder_path))}",
            flush=True,
        )
        direct(folder, spec)


def _resume(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from orchestrator.sweep.direct import direct
    from orchestrator.sweep.prepare import check_budget
    from orchestrator.sweep.records import existing_folder

    with existing_folder(Path(arguments.resume).absolute()) as folder:
        spec = folder.spec()
        given = {
            name: value
            for name in ("parallel", "gpus", "retries", "metric", "mode", "registry", "skip_memory_check")
            if (value := vars(arguments)[name]) is not None and value is not False
        }
        if arguments.address is not None:
            if spec.address is None:
                raise BadInput(
                    f"--address: got {arguments.address!r}, but this sweep's trials run on this machine; allowed: --resume DIR without it"
                )
            given["address"] = arguments.address
        spec = replace(spec, **given)
        check_budget(folder.trials(), spec.gpus)
        _check_registry(spec)
        direct(folder, spec)


def _check_registry(spec: SweepSpec) -> None:
    """UserError where trials would refuse the registry that they are to use. The environment of a cluster's nodes is not known."""
    from orchestrator.registry.address import address_of

    if spec.registry is not None or spec.address is None:
        address_of(spec.registry)


def _spec(arguments: argparse.Namespace, config: Config) -> SweepSpec:
    import uuid

    from orchestrator.sweep.records import SweepSpec

    return SweepSpec(
        id=uuid.uuid4().hex[:8],
        config=arguments.config,
        arguments=tuple(arguments.overrides),
        search=_search(arguments),
        seed=arguments.seed or 0,
        metric=arguments.metric,
        mode=arguments.mode or "max",
        parallel=1 if arguments.parallel is None else arguments.parallel,
        gpus=arguments.gpus,
        retries=arguments.retries or 0,
        address=arguments.address,
        working_dir=str(Path(arguments.working_dir or ".").absolute()),
        env=tuple(arguments.env),
        halving=_halving(arguments, config),
        registry=arguments.registry,
        skip_memory_check=arguments.skip_memory_check,
    )


def _search(arguments: argparse.Namespace) -> Search:
    if arguments.search is not None:
        return "asha"
    return "grid" if arguments.random is None else "random"


def _halving(arguments: argparse.Namespace, config: Config) -> Halving | None:
    from orchestrator.sweep.prepare import halving

    if arguments.search is None:
        return None
    return halving(
        config,
        max_steps=arguments.max_steps,
        grace_steps=arguments.grace_steps,
        reduction=REDUCTION if arguments.reduction is None else arguments.reduction,
    )


def _check(arguments: argparse.Namespace) -> None:
    """What options say together."""
    for name in ("random", "samples", "parallel", "max_steps", "grace_steps"):
        _at_least(arguments, name, 1)
    for name in ("gpus", "retries"):
        _at_least(arguments, name, 0)
    option = "--dir" if arguments.resume is None else "--resume"
    if "://" in (folder := arguments.dir or arguments.resume or ""):
        raise BadInput(
            f"{option}: got {folder!r}; allowed: a folder; on a cluster, one that all nodes share at the same path"
        )
    if arguments.resume is None:
        _check_new(arguments)
        return
    if arguments.config is not None:
        raise BadInput(
            f"--resume: got CONFIG {arguments.config!r} too; allowed: --resume DIR alone: the folder holds every trial's config"
        )
    # what a sweep was begun with stays
    given = ("random", "search", *OF_DRAWS, *OF_SEARCH, *OF_CLUSTER, "dry_run")
    _refuse(arguments, given, "it with --resume", ", ".join(ANEW))


def _check_new(arguments: argparse.Namespace) -> None:
    if arguments.config is None:
        raise BadInput("CONFIG: missing; allowed: preceptor sweep CONFIG 'key=[value,value]'")
    if arguments.address is None:
        _refuse(arguments, OF_CLUSTER, "it without --address", "with --address URL")
    elif arguments.dir is None:
        raise BadInput(
            "--dir: missing; allowed: with --address a folder that this machine and the cluster's nodes share"
        )
    if arguments.search is None:
        _refuse(arguments, OF_SEARCH, "it without --search", "with --search alone")
        if arguments.random is None:
            _refuse(arguments, OF_DRAWS, "it where nothing is drawn", "with --random or --search")
        return
    for name in ("metric", "samples"):
        if vars(arguments)[name] is None:
            raise BadInput(f"--{name}: missing; allowed: --search {arguments.search} --metric NAME --samples N")
    if arguments.random is not None:
        raise BadInput(f"--random: got {arguments.random} with --search; allowed: one of the two")


def _refuse(arguments: argparse.Namespace, names: Sequence[str], got: str, allowed: str) -> None:
    """Options that would do nothing."""
    for name in names:
        if vars(arguments)[name] not in (None, False, []):
            raise BadInput(f"--{name.replace('_', '-')}: got {got}; allowed: {allowed}")


def _default_dir(config: str) -> str:
    """A folder that says which sweep it is of."""
    import time

    return f"runs/sweep-{Path(config).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _at_least(arguments: argparse.Namespace, name: str, least: int) -> None:
    value = vars(arguments)[name]
    if value is not None and value < least:
        raise BadInput(f"--{name.replace('_', '-')}: got {value}; allowed: a whole number of at least {least}")
