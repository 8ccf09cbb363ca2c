"""What the terminal shows of a run, and where everything else goes.

Ray, DeepSpeed, vLLM and their libraries write to stdout and stderr of the driver too. `quiet_process` sends that to a file of the run
directory; `Progress` keeps the real stdout for itself: it must be entered first.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from orchestrator.registry.recorder import Recorder
    from orchestrator.tracking import Guarded

DRIVER_LOG = "logs/driver.log"
"""In the run directory: what the driver's libraries write."""

SHOWN = {
    "loss": ("loss", "{:.4f}"),
    "pair_accuracy": ("accuracy", "{:.3f}"),
    "score": ("reward", "{:.3f}"),
    "kl": ("KL", "{:.3f}"),
    "response_tokens": ("tokens/answer", "{:.0f}"),
    "tokens_per_s": ("tokens/s", "{:.0f}"),
}
"""Metric -> its name and format in a step's line and in the live line. The others are in the ledger."""


class _Console(Console):
    """Goes silent when its reader has left (`| head`, a lost terminal): a run does not end for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """The run's own lines.

    On a terminal: a live line with step, phase, time left and the last step's metrics, and each step's line above it. Elsewhere: plain
    lines, one for each step and one for each phase before the first step and after the last. All methods may be called from any thread.

    Nothing is printed while the lock is held: printing takes the live line's own lock, whose refreshing thread comes here for the line.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._phases: list[tuple[str, float]] = []
        self._step = self._total = 0
        self._shown = ""
        self._step_ended = time.monotonic()
        self._mean_s: float | None = None
        self._live: Live | None = None
        self._trackers: Sequence[Guarded] = ()
        self._recorder: Recorder | None = None

    def __enter__(self) -> Self:
        sys.stdout.flush()
        # the real stdout, whatever fd 1 becomes
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        self._console = _Console(file=self._stream, highlight=False, soft_wrap=not self._stream.isatty())
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._live_line,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        # what could not be shown to a reader that has left is still in the buffer
        with suppress(OSError):
            self._stream.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is being done, within the `with` block. Phases nest; the innermost is shown."""
        with self._lock:
            self._phases.append((name, time.monotonic()))
            told = self._live is None and not self._stepping
        if told:
            self._print(f"{name} ...")
        try:
            yield
        finally:
            with self._lock:
                self._phases.pop()

    def begin(self, total: int, *, done: int = 0) -> None:
        """Steps begin, of which `done` of the stage's `total` lie behind; nothing is kept of an earlier stage's."""
        with self._lock:
            self._step, self._total = done, total
            self._shown, self._mean_s = "", None
            self._step_ended = time.monotonic()

    def step(self, step: int, metrics: Mapping[str, float], digest: str = "") -> None:
        """A step is done: its number (from 1), its metrics (see `SHOWN`) and its digest in the ledger."""
        with self._lock:
            now = time.monotonic()
            seconds, self._step_ended = now - self._step_ended, now
            self._step = step
            # half the weight is on about the last 7 steps
            self._mean_s = seconds if self._mean_s is None else 0.9 * self._mean_s + 0.1 * seconds
            self._shown = _shown(metrics)
            line = _joined(f"step {step}/{self._total}", self._shown, self._time_left())
        self._print(line)
        for tracker in self._trackers:
            tracker.log(step, metrics)
        if self._recorder is not None:
            self._recorder.step(step, metrics, digest)

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """Further metrics of a step (0: before the first), for trackers and registry alone."""
        for tracker in self._trackers:
            tracker.add(step, metrics)
        if self._recorder is not None:
            self._recorder.track(step, metrics)

    @contextmanager
    def tracking(self, trackers: Sequence[Guarded], recorder: Recorder | None = None) -> Iterator[None]:
        """Within the block every step's metrics go to these too."""
        self._trackers, self._recorder = trackers, recorder
        try:
            yield
        finally:
            self._trackers, self._recorder = (), None

    def note(self, text: str) -> None:
        """One line of text."""
        self._print(text)

    @contextmanager
    def log_to(self, log_file: Path) -> Iterator[None]:
        """`quiet_process` for the block: only these lines still reach the terminal."""
        with quiet_process(log_file):
            yield

    def _print(self, text: str) -> None:
        try:
            self._console.print(Text(text))
        except OSError:
            self._console.quiet = True

    @property
    def _stepping(self) -> bool:
        return self._step < self._total

    def _time_left(self) -> str:
        if not self._stepping or self._mean_s is None:
            return ""
        return f"{duration(self._mean_s * (self._total - self._step))} left"

    def _live_line(self) -> Text:
        with self._lock:
            where = f"step {self._step + 1}/{self._total}" if self._stepping else ""
            name, since = self._phases[-1] if self._phases else ("working", self._step_ended)
            phase = f"{name} ({duration(time.monotonic() - since)})"
            last = f"last step: {self._shown}" if self._stepping and self._shown else ""
            # the metrics are last: a narrow terminal cuts them off first
            line = _joined(where, phase, self._time_left(), last)
            return Text(line, no_wrap=True, overflow="ellipsis", style="cyan")


def _shown(metrics: Mapping[str, float]) -> str:
    return _joined(
        *(f"{label} {form.format(metrics[name])}" for name, (label, form) in SHOWN.items() if name in metrics)
    )


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `2 h 05 min`."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes = math.ceil(round(seconds) / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def quiet_process(log_file: Path) -> Iterator[None]:
    """Everything that this process writes to stdout and stderr, from Python or C, goes to the end of `log_file` within the block.

    The file's folder is made. Only a `Progress` entered before still reaches the terminal.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    saved = {fd: os.dup(fd) for fd in (1, 2)}
    try:
        for fd in saved:
            _flush()
            os.dup2(target, fd)
        yield
    finally:
        _flush()
        for fd, copy in saved.items():
            os.dup2(copy, fd)
            os.close(copy)
        os.close(target)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
