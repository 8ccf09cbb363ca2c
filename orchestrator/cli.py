"""The command line: `preceptor run`, `plan`, `resume`, `export`, `report`, `chat`, `compare`, `data inspect`, `lineage`, `schema`.

Every error is one message on stderr. Exit codes: 0 fine, 1 the run failed, 2 bad input, 130 Ctrl-C. What a command needs is imported
within it, so that help and bad input answer at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import compare_command

if TYPE_CHECKING:
    from rich.console import Console

    from configs.schema import Stage

FINE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
PACKAGES = ("configs", "actors", "orchestrator")
STAGES = ("pretrain", "sft", "rank", "reward", "dpo", "ppo", "pipeline")
"""Every `stage` of the schema, in the order of a model's development."""

EXAMPLES = """examples:
  preceptor plan recipe.yaml                               what would run where; nothing is started
  preceptor run recipe.yaml                                train
  preceptor run recipe.yaml rollout.temperature=0.7        with a key changed
  preceptor run recipe.yaml --dry-run                      check all that files can tell; start nothing
  preceptor resume runs/my-run                             continue after a stop or a crash
  preceptor export runs/my-run out/policy --step 40        a checkpoint as a Hugging Face model
  preceptor chat runs/my-run                               talk with what it trained
  preceptor compare A B --prompts p.jsonl                  two models' answers side by side; with a judge, who wins
  preceptor report runs/my-run                             one screen of summary, and report.html to look at
  preceptor data inspect recipe.yaml --rows 3              rows as the model will see them
  preceptor lineage runs/my-run/export                     what it was made from, back to the data
  preceptor schema ppo                                     every key of a stage, its default and what it means

exit codes: 0 fine, 1 the run failed, 2 bad input, 130 interrupted"""


class BadInput(Exception):
    """What the command line itself refuses, in one message."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parse(sys.argv[1:] if argv is None else list(argv))
    try:
        check_packages()
        arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader (`| head`) has gone: nobody is left to tell, and Python's last flush must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost place: every error becomes a message and a code
        return _tell(error, arguments)
    return FINE


def check_packages() -> None:
    """Refuses packages that do not come from one root: a folder `configs/` of the user's own would be loaded in place of ours.

    Raises:
        BadInput: with both paths.
    """
    root = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        found = [Path(place).resolve() for place in places if place]
        if not any(place.is_relative_to(root / name) for place in found):
            where = found[0] if found else "nowhere"
            raise BadInput(
                f"package {name!r} must come from {root / name}, got {where}: a folder of that name shadows ours; rename it, "
                "or start elsewhere"
            )


# ----------------------------------------------------------------------------------------------------------------- commands


def _run(arguments: argparse.Namespace) -> None:
    from configs.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    arguments.run_dir = config.run.dir
    from orchestrator import jobs

    if arguments.dry_run:
        from orchestrator.plan import describe_plan

        console = _console()
        found = jobs.dry_run(config)
        for plan in found.plans:
            console.print(describe_plan(plan), "")
        for text in found.unchecked:
            console.print(f"not checked: {text}", soft_wrap=True, markup=False)
        console.print("dry run: everything that can be checked before the start is right")
        return
    from orchestrator.progress import Progress

    with Progress() as progress:
        jobs.run(config, overrides_text=arguments.overrides, progress=progress)


def _resume(arguments: argparse.Namespace) -> None:
    _check_run_dir(arguments.run_dir)
    from orchestrator import jobs
    from orchestrator.progress import Progress

    with Progress() as progress:
        jobs.resume(arguments.run_dir, progress=progress)


def _export(arguments: argparse.Namespace) -> None:
    _check_run_dir(arguments.run_dir)
    from orchestrator import jobs
    from orchestrator.progress import Progress

    with Progress() as progress:
        jobs.export(arguments.run_dir, arguments.out, role=arguments.role, step=arguments.step, progress=progress)


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
    compare_command.run(arguments, _console())


def _report(arguments: argparse.Namespace) -> None:
    _check_run_dir(arguments.run_dir)
    from orchestrator.report.page import page
    from orchestrator.report.run import read_run
    from orchestrator.report.summary import print_summary
    from orchestrator.targets import write_target

    out = Path(arguments.out or Path(arguments.run_dir) / "report.html").absolute()
    found = read_run(arguments.run_dir)
    write_target(out, page(found), "--out")
    print_summary(found, out, _console())


def _inspect(arguments: argparse.Namespace) -> None:
    from configs.load import load_config
    from orchestrator.inspect_data import inspect

    config = load_config(arguments.config, arguments.overrides)
    inspect(config, arguments.stage, arguments.rows, _console())


def _lineage(arguments: argparse.Namespace) -> None:
    import json

    from orchestrator.lineage import read_lineage, tree_of

    found = read_lineage(arguments.artefact)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        _console().print(tree_of(found))


def _check_run_dir(run_dir: str) -> None:
    if "://" not in run_dir and not Path(run_dir).is_dir():
        raise BadInput(f"RUN_DIR: got {run_dir!r}, which is no folder; allowed: the run.dir of a run that was started")


def _plan(arguments: argparse.Namespace) -> None:
    from configs.load import load_config
    from configs.schema import Pipeline
    from orchestrator.machine import local_machine
    from orchestrator.plan import describe_plan, make_plan, plan_json

    config = load_config(arguments.config, arguments.overrides)
    stages: dict[str, Stage] = config.stages if isinstance(config, Pipeline) else {str(config.stage): config}
    # what a cluster has is known when it is joined
    machines = {name: local_machine() if stage.cluster.address is None else None for name, stage in stages.items()}
    plans = {name: make_plan(stage, machines[name]) for name, stage in stages.items()}
    if arguments.json:
        joined = ",\n".join(f'"{name}": {plan_json(plan)}' for name, plan in plans.items())
        print(f"{{\n{joined}\n}}" if isinstance(config, Pipeline) else plan_json(plans[str(config.stage)]))
        return
    console = _console()
    for name, plan in plans.items():
        machine = machines[name]
        where = f"{machine.num_cpus} cores, {machine.num_gpus} GPUs" if machine else stages[name].cluster.address
        console.print(f"stage {name} on {machine.where if machine else 'the Ray cluster at'} ({where})")
        console.print(describe_plan(plan), "")


def _schema(arguments: argparse.Namespace) -> None:
    from configs.load import describe, schema_json

    if arguments.json:
        print(schema_json())
        return
    from rich.table import Table

    console = _console()
    for stage in [arguments.stage] if arguments.stage else STAGES:
        table = Table("key", "type", "default", "description", box=None, pad_edge=False)
        for row in describe(stage):
            table.add_row(row.key, row.type, row.default, row.description)
        console.print(f"stage: {stage}\n")
        console.print(table, "")


def _console() -> Console:
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    # rich takes 80 columns where there is no terminal, which breaks tables that a file or a pager could hold whole
    return Output(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, emoji=False)


# ---------------------------------------------------------------------------------------------------------------- arguments


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes overrides in one piece only; `run c.yaml a=1 --dry-run b=2` is meant too
    stray = [text for text in rest if text.startswith("-") or "=" not in text or "overrides" not in arguments]
    if stray:
        parser.error(f"not understood: {' '.join(stray)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show stack traces")
    parser = argparse.ArgumentParser(
        prog="preceptor",
        description="Trains language models from human feedback.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        child = commands.add_parser(
            name, parents=[common], help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        child.set_defaults(command=command, run_dir=None)
        return child

    run = add("run", _run, "train what a config asks for, in a new run directory")
    run.add_argument(
        "--dry-run", action="store_true", help="check config, plan, data, models and run directory; start nothing"
    )
    plan = add("plan", _plan, "show what would run where, without starting anything")
    plan.add_argument("--json", action="store_true", help="as JSON")
    talk = add("chat", _chat, "talk with a model in the terminal")
    talk.add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face folder or hub name, or a finished run")
    talk.add_argument("--temperature", type=float, default=0.7, help="default: 0.7")
    talk.add_argument("--max-tokens", type=int, help="longest answer; default: 256, or half of the window")
    talk.add_argument("--window", type=int, default=2048, help="longest conversation in tokens; default: 2048")
    talk.add_argument("--system", metavar="TEXT", help="what the system says first")
    talk.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    talk.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="default: bf16")
    talk.add_argument("--seed", type=int, default=0, help="default: 0")
    compare = add("compare", _compare, "show two models' answers to the same prompts side by side, and who wins")
    compare_command.add_arguments(compare)
    data = commands.add_parser("data", help="look at data", description="Look at data.", allow_abbrev=False)
    inspect = data.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "inspect",
        parents=[common],
        help="show rows as the model will see them: tokens, which of them are learned, what was cut",
        description="Show rows as the model will see them: tokens, which of them are learned, what was cut.",
        allow_abbrev=False,
    )
    inspect.set_defaults(command=_inspect, run_dir=None)
    inspect.add_argument("--stage", metavar="NAME", help="of a pipeline")
    inspect.add_argument("--rows", type=int, default=5, help="how many rows; default: 5")
    for with_config in (run, plan, inspect):
        with_config.add_argument("config", metavar="CONFIG", help="YAML file")
        with_config.add_argument("overrides", metavar="key=value", nargs="*", help="keys changed: ppo.steps=10")
    resume = add("resume", _resume, "continue a run from its run directory")
    export = add("export", _export, "write a checkpoint as a Hugging Face model")
    for with_run_dir in (resume, export):
        with_run_dir.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of the run")
    export.add_argument("out", metavar="OUT", help="folder to write, new or empty")
    export.add_argument("--role", choices=("policy", "critic"), help="of a PPO run; default: policy")
    export.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    report = add("report", _report, "sum up a run, finished or not, on the terminal and in an HTML file")
    report.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of a run, or one stage's folder in it")
    report.add_argument("--out", metavar="FILE", help="HTML file to write; default: report.html in RUN_DIR")
    lineage = add("lineage", _lineage, "show what an artefact was made from, back to the data")
    lineage.add_argument(
        "artefact", metavar="ARTEFACT", help="an export's folder, a run directory, or a checkpoint's folder in one"
    )
    lineage.add_argument("--json", action="store_true", help="as JSON")
    schema = add("schema", _schema, "show every key, its type, default and meaning")
    schema.add_argument("stage", nargs="?", choices=STAGES, help="one stage; default: all")
    schema.add_argument("--json", action="store_true", help="JSON schema of all stages")
    return parser


# ------------------------------------------------------------------------------------------------------------------- errors


def _tell(error: BaseException, arguments: argparse.Namespace) -> int:
    """Prints an error's one message and returns its exit code."""
    code, text = _message(error, arguments)
    if arguments.debug:
        traceback.print_exception(error)
    print(f"preceptor: {text}", file=sys.stderr)
    return code


def _message(error: BaseException, arguments: argparse.Namespace) -> tuple[int, str]:
    run_dir: str | None = arguments.run_dir
    if isinstance(error, BadInput):
        return BAD_INPUT, str(error)
    if isinstance(error, KeyboardInterrupt):
        resumable = (
            arguments.command in (_run, _resume) and run_dir is not None and (Path(run_dir) / "config.yaml").exists()
        )
        return INTERRUPTED, "interrupted" + (f"; `preceptor resume {run_dir}` continues" if resumable else "")
    # bad input must not need these to be told of: they may be what a foreign folder shadows
    from actors.errors import PreceptorError, UserError
    from configs.errors import ConfigError

    if isinstance(error, ConfigError | UserError):
        return BAD_INPUT, str(error)
    if isinstance(error, PreceptorError):
        from orchestrator.jobs import Stopped

        if isinstance(error, Stopped):
            return INTERRUPTED, str(error)
    log = _log_traceback(error, run_dir)
    see = f"; more in {log}" if log else ""
    if isinstance(error, PreceptorError):
        return FAILED, f"{error}{see}"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return FAILED, f"unexpected error: {what}{see}; --debug shows the stack trace"


def _log_traceback(error: BaseException, run_dir: str | None) -> Path | None:
    """Adds the stack trace to the driver's log. Where the run has none (yet), none is made: a run directory must be empty at the start."""
    from orchestrator.progress import DRIVER_LOG

    log = Path(run_dir or "") / DRIVER_LOG
    if run_dir is None or not log.is_file():
        return None
    with log.open("a", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return log
