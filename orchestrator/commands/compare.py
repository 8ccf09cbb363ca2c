"""The command line of `preceptor compare`. Most options fill a key of the config, whose name they have as their destination."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    parser.add_argument("a", metavar="A", help=MODEL)
    parser.add_argument("b", metavar="B", help=MODEL)
    names: dict[str, str] = {}

    def option(name: str, key: str, **settings: Any) -> None:
        parser.add_argument(name, dest=key, **settings)
        names[key] = name

    option("--prompts", "data.path", metavar="FILE", required=True, help="JSONL, Parquet, or name of a hub dataset")
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
    option("--device", "cluster.device", choices=("cpu", "cuda"), default="cpu")
    option("--dtype", "rollout.dtype", choices=("fp32", "bf16"), default="bf16", help="default: bf16")
    option("--reward-model", "reward.model.model", metavar="MODEL", help=f"who judges: {MODEL}; with any tokenizer")
    option("--function", "annotator.function", metavar="MODULE:NAME", help="who judges: a function as in stage rank")
    parser.add_argument("--html", metavar="FILE", help="page to write, with all answers in full")
    parser.add_argument("--json", metavar="FILE", help="the same as JSON")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"further {FURTHER_KEYS}")
    parser.set_defaults(option_names=names)


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
        key = override.partition("=")[0]
        if key in OWN_KEYS:
            raise UserError(f"{key}: got {override!r}; allowed: {FURTHER_KEYS}, but not {', '.join(OWN_KEYS)}")
    if arguments.html is not None and arguments.html == arguments.json:
        raise UserError(f"--json: got {arguments.json!r}, where --html is written; allowed: another file")
    values, names = vars(arguments), arguments.option_names
    given = {key: values[key] for key in names if values[key] is not None}
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
