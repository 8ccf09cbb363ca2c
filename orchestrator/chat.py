"""`preceptor chat`: talk with a model in the terminal. One engine in this process, no Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from actors.context import RankContext
from actors.errors import UserError
from actors.store import run_path
from configs.schema import LANGUAGE_MODELS, Pipeline
from configs.schema.rollout import RolloutConfig
from orchestrator.machine import local_cores
from orchestrator.plan_records import Device
from orchestrator.progress import DRIVER_LOG, quiet_process
from orchestrator.run_dir import CONFIG_FILE, EXPORT_FOLDER, stored_config

if TYPE_CHECKING:
    from actors.chat import Conversation

HELP = "/reset forgets the conversation, /quit or Ctrl-D ends; Ctrl-C breaks an answer off"


def model_of(checkpoint: str, key: str = "CHECKPOINT", *, kinds: Sequence[str] = LANGUAGE_MODELS) -> str:
    """The model that `checkpoint` names: a Hugging Face folder or hub name, or a run directory with an export.

    Args:
        key: What it is called, for errors.
        kinds: Stages that export what is wanted, for whom the run is a pipeline's.

    Raises:
        UserError: for a run directory without one.
    """
    folder = run_path(checkpoint, key)
    if (folder / "config.json").exists() or not (folder / CONFIG_FILE).exists():
        return checkpoint
    if (folder / EXPORT_FOLDER / "config.json").exists():
        return str(folder / EXPORT_FOLDER)
    config = stored_config(folder)
    if isinstance(config, Pipeline):
        fitting = [folder / name for name, stage in config.stages.items() if stage.stage in kinds]
        there = [repr(str(stage)) for stage in fitting if (stage / EXPORT_FOLDER / "config.json").exists()]
        raise UserError(
            f"{key}: {checkpoint!r} is a pipeline's run directory; allowed: the folder of one of its stages with such a model's export: "
            + (", ".join(there) or f"none has one yet (stages that export one: {', '.join(kinds)})")
        )
    raise UserError(
        f"{key}: {checkpoint!r} is a run directory without an exported model; allowed: a finished run, an export's folder, or "
        "a Hugging Face model. `preceptor export` writes one from a checkpoint"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How to talk."""

    rollout: RolloutConfig
    device: Device
    seed: int
    system: str | None
    """What the system says first."""
    window: int
    """Tokens that conversation and answer may have together."""
    max_tokens: int | None
    """Longest answer; where it is not given, what fits."""


def chat(checkpoint: str, options: ChatOptions, folder: Path) -> None:
    """Talks until the input ends. Answers stream to stdout; what libraries say goes to a log in `folder`."""
    from actors.rollout import engine_environment

    model = model_of(checkpoint)
    os.environ.update(engine_environment(options.rollout, local_cores(), options.device))
    with os.fdopen(os.dup(1), "w") as out:
        out.write(f"loading {model} ...\n")
        out.flush()
        with quiet_process(folder / DRIVER_LOG):
            from actors.chat import Conversation

            context = RankContext(
                role="rollout",
                rank=0,
                world_size=1,
                device=options.device,
                threads=local_cores(),
                seed=options.seed,
                deterministic=False,
                collective_timeout_s=60.0,
                run_dir=str(folder),
            )
            conversation = Conversation(
                model, options.rollout, context, max_model_len=options.window, max_tokens=options.max_tokens
            )
            talk(conversation, sys.stdin, out, system=options.system)


def talk(conversation: Conversation, lines: IO[str], out: IO[str], *, system: str | None) -> None:
    """The conversation itself, line by line."""

    def begin() -> None:
        conversation.messages[:] = [{"role": "system", "content": system}] if system else []

    def show(text: str) -> None:
        out.write(text)
        out.flush()

    begin()
    show(f"{HELP}\n")
    while (line := _line(lines, show)) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            begin()
            show("forgotten\n")
        elif line:
            _answer(conversation, line, show)
    show("\n")


def _line(lines: IO[str], show: Callable[[str], None]) -> str | None:
    """The next line; None at the end of the input, or for Ctrl-C."""
    show("you: ")
    try:
        line = lines.readline()
    except KeyboardInterrupt:
        return None
    return line.strip() if line else None


def _answer(conversation: Conversation, line: str, show: Callable[[str], None]) -> None:
    pieces: Generator[str, None, None] = conversation.answer(line)
    show("model: ")
    try:
        with closing(pieces):
            for piece in pieces:
                show(piece)
    except KeyboardInterrupt:
        show(" (broken off)")
    except UserError as error:
        show(f"({error})")
    show("\n")
    if conversation.forgotten:
        show(f"(the window is full: the oldest {conversation.forgotten} messages are forgotten)\n")
