"""The command line. The commands are in `orchestrator.commands`.

Every error is one message on stderr. Exit codes: 0 fine, 1 the run failed, 2 bad input, 130 Ctrl-C. What a command needs is imported
within it, so that help and bad input answer at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from orchestrator.commands import experiments, gpus, jobs, kubernetes, looking, sweep, training
from orchestrator.commands.base import BAD_INPUT, FAILED, FINE, INTERRUPTED, BadInput, Commands

COMMANDS = (training, looking, experiments, sweep, jobs, kubernetes, gpus)
PACKAGES = ("configs", "actors", "orchestrator")

EXAMPLES = """examples:
  preceptor plan recipe.yaml                               what would run where; nothing is started
  preceptor run recipe.yaml                                train
  preceptor run recipe.yaml rollout.temperature=0.7        with a key changed
  preceptor run recipe.yaml --dry-run                      check all that files can tell; start nothing
  preceptor resume runs/my-run                             continue after a stop or a crash
  preceptor export runs/my-run out/policy --step 40        a checkpoint as a Hugging Face model
  preceptor chat runs/my-run                               talk with what it trained
  preceptor compare A B --prompts p.jsonl                  two models' answers side by side; with a judge, who wins
  preceptor compare runs/a runs/b --html compared.html     two or more runs: metrics, curves, what their configs differ in
  preceptor runs --where 'policy.optimizer.lr>1e-6'        the runs of the registry
  preceptor diff runs/a runs/b                             what is not the same: config, code, data, packages
  preceptor reproduce runs/my-run                          the same once more, or what is no longer the same
  preceptor report runs/my-run                             one screen of summary, and report.html to look at
  preceptor submit recipe.yaml --follow                    train as a job of a Ray cluster; then jobs, logs, stop
  preceptor sweep recipe.yaml 'ppo.gamma=[0.9,1.0]' --dir runs/gammas   one run for each value
  preceptor data inspect recipe.yaml --rows 3              rows as the model will see them
  preceptor lineage runs/my-run/export                     what it was made from, back to the data
  preceptor k8s render recipe.yaml -o manifests            Kubernetes manifests of a run, for KubeRay
  preceptor schema ppo                                     every key of a stage, its default and what it means

exit codes: 0 fine, 1 the run failed, 2 bad input, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parse(sys.argv[1:] if argv is None else list(argv))
    try:
        check_packages()
        code = arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader (`| head`) has gone: nobody is left to tell, and Python's last flush must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost place: every error becomes a message and a code
        return _tell(error, arguments)
    return FINE if code is None else int(code)


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
    parser.set_defaults(resumable=False)
    commands = Commands(parser, common)
    for module in COMMANDS:
        module.register(commands)
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
        resumable = arguments.resumable and run_dir is not None and _holds_run(run_dir)
        return INTERRUPTED, "interrupted" + (f"; `preceptor resume {run_dir}` continues" if resumable else "")
    # bad input must not need these to be told of: they may be what a foreign folder shadows
    from actors.errors import PreceptorError, UserError
    from configs.errors import ConfigError

    if isinstance(error, ConfigError | UserError):
        return BAD_INPUT, str(error)
    if isinstance(error, PreceptorError):
        from orchestrator.signals import Stopped

        if isinstance(error, Stopped):
            return INTERRUPTED, str(error)
    log = _log_traceback(error, run_dir)
    see = f"; more in {log}" if log else ""
    if isinstance(error, PreceptorError):
        return FAILED, f"{error}{see}"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return FAILED, f"unexpected error: {what}{see}; --debug shows the stack trace"


def _holds_run(run_dir: str) -> bool:
    # an interrupted user does not wait for a store's answer
    return "://" in run_dir or (Path(run_dir) / "config.yaml").exists()


def _log_traceback(error: BaseException, run_dir: str | None) -> Path | None:
    """Adds the stack trace to the driver's log. Where the run has none (yet), none is made: a run directory must be empty at the start."""
    from orchestrator.progress import DRIVER_LOG

    if run_dir is None:
        return None
    if "://" in run_dir:
        from orchestrator.mirrored import add_to_log

        return add_to_log(run_dir, "".join(traceback.format_exception(error)))
    log = Path(run_dir) / DRIVER_LOG
    if not log.is_file():
        return None
    with log.open("a", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return log
