"""Ctrl-C and SIGTERM: what they mean before the first step, between steps, and while everything is being ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

from actors.errors import PreceptorError

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(PreceptorError):
    """The user asked a run to stop before its end."""


class Loop(Protocol):
    """What a signal needs to know and to tell."""

    stepping: bool
    """Steps are being made: there is something to end politely."""
    stop_requested: bool
    """To be read between steps."""


class Teller(Protocol):
    """Who prints a line."""

    def note(self, text: str) -> None: ...


class _Interrupt:
    """Ends whatever is being done, at once and through every `finally`."""

    def __init__(self) -> None:
        self._raised = False

    def __call__(self) -> None:
        self._raised = True
        raise KeyboardInterrupt

    @contextmanager
    def kept(self) -> Iterator[None]:
        """An interrupt stays one. Where it comes while C code words an error of its own (of a `from x import y` that a library only tries),
        another error comes out of there instead."""
        try:
            yield
        except Exception as error:
            if self._raised:
                raise KeyboardInterrupt from error
            raise


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does."""
    interrupt = _Interrupt()
    with _handlers(dict.fromkeys(STOPPING, lambda _number, _frame: interrupt())), interrupt.kept():
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Neither signal does anything: the block ends processes, and half of it would leave some behind."""
    with _handlers(dict.fromkeys(STOPPING, signal.SIG_IGN)):
        yield


@contextmanager
def stop_between_steps(loop: Loop, progress: Teller) -> Iterator[None]:
    """The first signal ends the run after this step, with a checkpoint; the second, or one before the first step, at once."""
    interrupt = _Interrupt()

    def handle(number: int, _frame: FrameType | None) -> None:
        if loop.stop_requested or not loop.stepping:
            interrupt()
        loop.stop_requested = True
        # the signal may have come in the middle of a print, which can't be entered twice
        with suppress(RuntimeError):
            name = signal.Signals(number).name
            progress.note(f"{name}: stopping after this step with a checkpoint; once more stops at once")

    with _handlers(dict.fromkeys(STOPPING, handle)), interrupt.kept():
        yield


@contextmanager
def _handlers(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, previous in before.items():
            # None: a handler that was not set from Python
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
