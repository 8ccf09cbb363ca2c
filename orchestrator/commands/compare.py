"""The command line of `preceptor compare`: of two models' answers with `--prompts`, of runs' metrics and configs without.

Most options of the first fill a key of the config, whose name they have as their destination.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.commands.base import BadInput, add_registry

if TYPE_CHECKING:
    from rich.console import Console

    from configs.schema.compare import CompareConfig

WAVE = 32
"""Prompts that an engine is given at a time."""
MODEL = "a Hugging Face folder or hub name, or a finished run"
OWN_KEYS = ("models", "run.dir", "data.held_out_rows")
"""What the command fills itself, or has no use for."""
FURTHER_KEYS = (
    "keys of data, rollout, cluster, run and annotator as in `preceptor schema rank`, reward.model as in `preceptor schema ppo`; "
    "such as data.prompt_column=question"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    for side in ("A", "B"):
        parser.add_argument(side.lower(), metavar=side, help=f"a run; with --prompts a model: {MODEL}")
    parser.add_argument(
        "overrides", metavar="MORE", nargs="*", help=f"further runs; with --prompts key=value: further {FURTHER_KEYS}"
    )
    runs = parser.add_argument_group("runs' metrics, curves and configs (without --prompts)")
    runs.add_argument(
        "--metric", metavar="NAME", action="append", default=[], help="metric to show, several times for more"
    )
    runs.add_argument("--png", metavar="FILE", help="curves over each other, as a picture")
    add_registry(runs)
    both = parser.add_argument_group("either way")
    both.add_argument("--html", metavar="FILE", help="page to write: curves and tables, or all answers in full")
    both.add_argument("--json", metavar="FILE", help="the same as JSON")
    answers = parser.add_argument_group("two models' answers to the same prompts (with --prompts)")
    names: dict[str, str] = {}
    defaults: dict[str, Any] = {}

    def option(name: str, key: str, default: Any = None, **settings: Any) -> None:
        # not argparse's default: without --prompts an option that was given is a mistake
        answers.add_argument(name, dest=key, **settings)
        names[key], defaults[key] = name, default

    option("--prompts", "data.path", metavar="FILE", help="JSONL, Parquet, or name of a hub dataset: compares answers")
    option("--num-prompts", "data.max_rows", type=int, default=16, metavar="N", help="the first N; default: 16")
    option(
        "--responses",
        "rollout.responses_per_prompt",
        type=int,
        default=1,
        metavar="N",
        help="answers of each; default: 1",
    )
    option("--temperature", "rollout.temperature", type=float, default=0.7, metavar="T", help="default: 0.7")
    option(
        "--max-tokens",
        "rollout.max_response_tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest answer; default: 256",
    )
    option("--seed", "run.seed", type=int, default=0, metavar="N", help="the same for both; default: 0")
    option("--device", "cluster.device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    option("--dtype", "rollout.dtype", choices=("fp32", "bf16"), default="bf16", help="default: bf16")
    option("--reward-model", "reward.model.model", metavar="MODEL", help=f"who judges: {MODEL}; with any tokenizer")
    option("--function", "annotator.function", metavar="MODULE:NAME", help="who judges: a function as in stage rank")
    parser.set_defaults(option_names=names, option_defaults=defaults)


def config_of(arguments: argparse.Namespace, folder: Path) -> CompareConfig:
    """What the command line asks for, with logs in `folder`.

    Raises:
        UserError, ConfigError: for anything that can be seen without reading models or prompts.
    """
    from actors.errors import UserError
    from configs.load import Option, load_options
    from configs.schema.compare import CompareConfig
    from orchestrator.chat import model_of

    for override in arguments.overrides:
        if "=" not in override:
            raise UserError(f"compare: got a third model, {override!r}; allowed: two with --prompts, more runs without")
        key = override.partition("=")[0]
        if key in OWN_KEYS:
            raise UserError(f"{key}: got {override!r}; allowed: {FURTHER_KEYS}, but not {', '.join(OWN_KEYS)}")
    if arguments.html is not None and arguments.html == arguments.json:
        raise UserError(f"--json: got {arguments.json!r}, where --html is written; allowed: another file")
    values, names = vars(arguments), arguments.option_names
    given = {key: default if values[key] is None else values[key] for key, default in arguments.option_defaults.items()}
    given = {key: value for key, value in given.items() if value is not None}
    if "reward.model.model" in given:
        given["reward.model.model"] = model_of(given["reward.model.model"], "--reward-model", kinds=("reward",))
    options = [
        Option(key="models", value=[model_of(arguments.a, "A"), model_of(arguments.b, "B")], name=""),
        Option(key="run.dir", value=str(folder), name=""),
        Option(key="rollout.prompts_per_wave", value=WAVE, name=""),
        *(Option(key=key, value=value, name=names[key]) for key, value in given.items()),
    ]
    return load_options(CompareConfig, options, arguments.overrides)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Compares, writes and shows."""
    values = vars(arguments)
    if values["data.path"] is None:
        _run_runs(arguments, console)
        return
    if arguments.metric or arguments.png is not None:
        raise BadInput(
            f"{'--metric' if arguments.metric else '--png'}: got it with --prompts; allowed: only where runs are compared"
        )
    _run_answers(arguments, console)


def _run_runs(arguments: argparse.Namespace, console: Console) -> None:
    values = vars(arguments)
    for key, name in arguments.option_names.items():
        if values[key] is not None:
            raise BadInput(
                f"{name}: got {values[key]!r} without --prompts; allowed: --prompts FILE, which compares two models' answers"
            )
    if settings := [word for word in arguments.overrides if "=" in word]:
        raise BadInput(f"compare: got {settings[0]!r}; allowed: runs, or --prompts FILE with key=value")
    from orchestrator.registry.lookup import look_up
    from orchestrator.report.runs_compared import (
        RunsCompared,
        compare_runs,
        print_runs_compared,
        runs_compared_json,
        runs_compared_page,
        runs_compared_png,
    )
    from orchestrator.targets import check_target, write_target

    writers: dict[str, Callable[[RunsCompared], str | bytes]] = {
        "--html": runs_compared_page,
        "--png": runs_compared_png,
        "--json": runs_compared_json,
    }
    paths = {"--html": arguments.html, "--png": arguments.png, "--json": arguments.json}
    targets = {option: check_target(path, option) for option, path in paths.items() if path is not None}
    if len(set(targets.values())) < len(targets):
        raise BadInput(f"{' and '.join(targets)}: got one file for two; allowed: a file each")
    names = (arguments.a, arguments.b, *arguments.overrides)
    found = compare_runs([look_up(name, arguments.registry) for name in names], arguments.metric)
    print_runs_compared(found, console)
    for option, target in targets.items():
        write_target(target, writers[option](found), option)
        console.print(f"written: {target}", soft_wrap=True)


def _run_answers(arguments: argparse.Namespace, console: Console) -> None:
    from orchestrator.compare import compare
    from orchestrator.progress import Progress
    from orchestrator.report.compared import compared_json, compared_page, print_compared
    from orchestrator.scratch import scratch
    from orchestrator.targets import check_target, write_target

    writers = {"--html": (arguments.html, compared_page), "--json": (arguments.json, compared_json)}
    targets = {option: check_target(path, option) for option, (path, _) in writers.items() if path is not None}
    with scratch("compare") as folder:
        arguments.run_dir = str(folder)
        config = config_of(arguments, folder)
        with Progress() as progress:
            found = compare(config, progress)
    print_compared(found, console)
    for option, target in targets.items():
        write_target(target, writers[option][1](found), option)
        console.print(f"written: {target}", soft_wrap=True)
