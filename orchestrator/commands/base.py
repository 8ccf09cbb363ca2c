"""What the modules of commands share: exit codes, the command line's own refusal, how a command is added, where it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

FINE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

Command = Callable[[argparse.Namespace], int | None]
"""What it returns is the exit code; None is fine."""


class BadInput(Exception):
    """What the command line itself refuses, in one message."""


class Commands:
    """The commands of a parser; a module of commands has a function `register` that adds its own."""

    def __init__(self, parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
        """`common` holds the options that every command has."""
        self._children = parser.add_subparsers(metavar="COMMAND", required=True)
        self._common = common

    def add(self, name: str, command: Command, text: str) -> argparse.ArgumentParser:
        """A command and what it does, in words that begin with a verb. Its arguments are the caller's to add."""
        child = self._parser(name, text, parents=[self._common])
        child.set_defaults(command=command, run_dir=None)
        return child

    def family(self, name: str, text: str) -> Commands:
        """Commands of two words: `data inspect`."""
        return Commands(self._parser(name, text), self._common)

    def _parser(self, name: str, text: str, **settings: Any) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        return self._children.add_parser(name, help=text, description=description, allow_abbrev=False, **settings)


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config file and the keys changed in it."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys changed: ppo.steps=10")


def add_registry(parser: argparse._ActionsContainer) -> None:
    """Where runs are noted."""
    parser.add_argument(
        "--registry",
        metavar="URL",
        help="sqlite:////file.db, postgresql://user@host/database, or off; default: PRECEPTOR_REGISTRY, else a file of yours",
    )


def add_skip_memory_check(parser: argparse._ActionsContainer) -> None:
    """For commands that start a run."""
    parser.add_argument(
        "--skip-memory-check", action="store_true", help="start even where the estimate says that memory will not do"
    )


def add_resume_if_begun(parser: argparse._ActionsContainer) -> None:
    """For commands that a machine may try again."""
    parser.add_argument(
        "--resume-if-begun",
        action="store_true",
        help="go on where run.dir holds the run of this very config: for schedulers that try again",
    )


def check_run_dir(run_dir: str) -> None:
    """BadInput where a run directory on this machine is none."""
    if "://" not in run_dir and not Path(run_dir).is_dir():
        raise BadInput(f"RUN_DIR: got {run_dir!r}, which is no folder; allowed: the run.dir of a run that was started")


def console() -> Console:
    """For tables and texts that a command prints."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    # rich takes 80 columns where there is no terminal, which breaks tables that a file or a pager could hold whole
    return Output(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, emoji=False)
