"""`preceptor report`, `chat`, `compare`, `data inspect`, `lineage`."""

from __future__ import annotations

import argparse

from orchestrator.commands import compare
from orchestrator.commands.base import BadInput, Commands, add_config, check_run_dir, console


def register(commands: Commands) -> None:
    """Adds them."""
    report = commands.add("report", _report, "sum up a run, finished or not, on the terminal and in an HTML file")
    report.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of a run, or one stage's folder in it")
    report.add_argument("--out", metavar="FILE", help="HTML file to write; default: report.html in RUN_DIR")
    talk = commands.add("chat", _chat, "talk with a model in the terminal")
    talk.add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face folder or hub name, or a finished run")
    talk.add_argument("--temperature", type=float, default=0.7, help="default: 0.7")
    talk.add_argument("--max-tokens", type=int, help="longest answer; default: 256, or half of the window")
    talk.add_argument("--window", type=int, default=2048, help="longest conversation in tokens; default: 2048")
    talk.add_argument("--system", metavar="TEXT", help="what the system says first")
    talk.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    talk.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="default: bf16")
    talk.add_argument("--seed", type=int, default=0, help="default: 0")
    compare.add_arguments(
        commands.add(
            "compare",
            _compare,
            "compare runs (metrics, curves, configs), or with --prompts two models' answers to the same prompts",
        )
    )
    inspect = commands.family("data", "look at data").add(
        "inspect", _inspect, "show rows as the model will see them: tokens, which of them are learned, what was cut"
    )
    inspect.add_argument("--stage", metavar="NAME", help="of a pipeline")
    inspect.add_argument("--rows", type=int, default=5, help="how many rows; default: 5")
    add_config(inspect)
    lineage = commands.add("lineage", _lineage, "show what an artefact was made from, back to the data")
    lineage.add_argument(
        "artefact", metavar="ARTEFACT", help="an export's folder, a run directory, or a checkpoint's folder in one"
    )
    lineage.add_argument("--json", action="store_true", help="as JSON")


def _report(arguments: argparse.Namespace) -> None:
    check_run_dir(arguments.run_dir)
    from actors.store import reading, run_path
    from orchestrator.report.page import page
    from orchestrator.report.run import read_run
    from orchestrator.report.summary import print_summary
    from orchestrator.targets import check_target, write_target

    with reading(run_path(arguments.run_dir, "RUN_DIR")):
        found = read_run(arguments.run_dir)
    out = check_target(arguments.out or f"{arguments.run_dir.rstrip('/')}/report.html", "--out")
    write_target(out, page(found), "--out")
    print_summary(found, out, console())


def _chat(arguments: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from configs.schema.rollout import RolloutConfig
    from orchestrator.chat import ChatOptions, chat
    from orchestrator.scratch import scratch

    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        raise BadInput(f"--max-tokens: got {arguments.max_tokens}; allowed: a whole number of at least 1")
    try:
        rollout = RolloutConfig(temperature=arguments.temperature, dtype=arguments.dtype, prompts_per_wave=1)
    except ValidationError as error:
        raise BadInput("; ".join(f"--{e['loc'][0]}: {e['msg']}, got {e['input']}" for e in error.errors())) from error
    with scratch("chat") as folder:
        arguments.run_dir = str(folder)
        options = ChatOptions(
            rollout=rollout,
            device=arguments.device,
            seed=arguments.seed,
            system=arguments.system,
            window=arguments.window,
            max_tokens=arguments.max_tokens,
        )
        chat(arguments.checkpoint, options, folder)


def _compare(arguments: argparse.Namespace) -> None:
    compare.run(arguments, console())


def _inspect(arguments: argparse.Namespace) -> None:
    from configs.load import load_config
    from orchestrator.inspect_data import inspect

    config = load_config(arguments.config, arguments.overrides)
    inspect(config, arguments.stage, arguments.rows, console())


def _lineage(arguments: argparse.Namespace) -> None:
    import json

    from actors.store import reading, run_path
    from orchestrator.lineage import read_lineage, tree_of

    with reading(run_path(arguments.artefact, "ARTEFACT")):
        found = read_lineage(arguments.artefact)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        console().print(tree_of(found))
