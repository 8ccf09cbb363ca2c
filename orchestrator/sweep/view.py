"""What the terminal shows of a sweep: on a terminal a live table above which lines come by, elsewhere the lines alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.progress import duration
from orchestrator.sweep.records import SweepFolder, SweepSpec, Trial
from orchestrator.sweep.results import Results, table

REFRESH_S = 3.0
ORDER = ("running", "failed", "waiting", "stopped", "pruned", "finished")
"""Of the live table, where it is higher than the terminal."""


class View:
    """Keeps the real stdout for itself: Ray writes to it too."""

    def __init__(self, folder: SweepFolder, spec: SweepSpec) -> None:
        self._folder, self._spec = folder, spec
        self._results = Results(folder, spec)
        self._live: Live | None = None
        self._shown_at = float("-inf")
        self._statuses: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        sys.stdout.flush()
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        terminal = self._stream.isatty()
        self.console = Console(
            file=self._stream, highlight=False, markup=False, emoji=False, width=None if terminal else 200
        )
        if self.console.is_terminal:
            self._live = Live(
                console=self.console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_live()
        self._stream.close()

    def end_live(self) -> None:
        """Nothing moves any more."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """One line of text."""
        self.console.print(Text(text), soft_wrap=True)

    def changed(self, trial: Trial) -> None:
        """A trial begins or ends."""
        self.note(f"trial {trial.name} {self._what(trial)}")

    def _what(self, trial: Trial) -> str:
        values = " ".join(trial.overrides)
        if trial.status == "running":
            again = f" (attempt {trial.attempts})" if trial.attempts > 1 else ""
            return f"begins{again}: {values}"
        if trial.status == "failed":
            log = self._folder.log_file(trial)
            return f"failed: {trial.reason}{f'; more in {log}' if log.exists() else ''}"
        if trial.status == "waiting":
            return f"is tried again: {trial.reason}" if trial.reason else "was interrupted and goes on"
        (result,) = self._results.of([trial])
        value = f", {self._spec.metric} {result.point[1]:.4g}" if result.point else ""
        return f"{trial.status} after {duration(trial.seconds)}, step {result.step}{value}"

    def compared(self, trials: Sequence[Trial]) -> None:
        """As `looked`, by one who was not told of what changed between."""
        for trial in trials:
            now = (trial.status, trial.attempts)
            if self._statuses.get(trial.number, ("waiting", 0)) != now:
                self._statuses[trial.number] = now
                self.changed(trial)
        self.looked(trials)

    def looked(self, trials: Sequence[Trial]) -> None:
        """How it stands with all of them."""
        now = time.monotonic()
        if self._live is None or now - self._shown_at < REFRESH_S:
            return
        self._shown_at = now
        room = max(5, self.console.height - 4)
        chosen = sorted(trials, key=lambda trial: (ORDER.index(trial.status), trial.number))[:room]
        shown = self._results.of(chosen)
        counts = ", ".join(
            f"{number} {status}" for status in ORDER if (number := sum(trial.status == status for trial in trials))
        )
        self._live.update(Group(table(self._spec, shown), Text(counts, style="cyan")), refresh=True)
