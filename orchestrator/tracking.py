"""Trackers at work: each in a thread of its own, so that one that fails or hangs neither ends nor delays a run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from actors.errors import UserError
from configs.schema.run import RunConfig, TrackerName
from orchestrator.trackers import ALLOWED, MAKERS, Tracked, Tracker, told

BEGIN_S, CLOSE_S = 60.0, 20.0
"""Longest wait for a tracker at the start and at the end; between them no step waits for one."""
LATE_S, MOST_WAITING = 30.0, 1000
"""How far behind one is told of, and how many steps are kept for it."""


@contextmanager
def trackers(
    run: RunConfig,
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    last_step: int,
    note: Callable[[str], None],
    begun: bool = False,
) -> Iterator[list[Guarded]]:
    """The trackers that the config names, each held so that its failure is told and ends only itself.

    Raises:
        UserError: where one can't even begin: no key, no server. A run that would be watched by nobody is refused before it costs anything;
            where that has `begun`, it is told and the run goes on.
    """
    tracked = Tracked(run=run, run_dir=run_dir, config=config, last_step=last_step, note=note)
    made: list[Guarded] = []
    failed = True
    try:
        for name in run.trackers:
            one = Guarded(name, partial(MAKERS[name], tracked), last_step, note)
            try:
                one.begin(begun=begun)
            except UserError as error:
                if not begun:
                    raise
                note(f"{error}. The run goes on; the ledger has everything")
            else:
                made.append(one)
        yield made
        failed = False
    finally:
        for tracker in made:
            tracker.end(failed=failed)
        for tracker in made:
            tracker.wait()


class Guarded:
    """A tracker in a thread of its own, left alone after its first failure: a lost network or a full disk neither delays nor ends a run.
    Steps that were committed before, and are computed again after a resume, it had already."""

    def __init__(
        self, name: TrackerName, make: Callable[[], Tracker], last_step: int, note: Callable[[str], None]
    ) -> None:
        self._name, self._make, self._last_step, self._note = name, make, last_step, note
        self._begun: Future[None] = Future()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, int, dict[str, float]]] = deque()
        """Since when, step, metrics; the first is on its way."""
        self._failed: bool | None = None
        """None until the stage ends."""
        self._left = self._late = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)

    def begin(self, *, begun: bool = False) -> None:
        """Waits until it is ready, `BEGIN_S` at most. One that is slow where the run has `begun` gets the steps when it is ready.

        Raises:
            UserError: it can't begin.
        """
        self._thread.start()
        try:
            error = self._begun.exception(BEGIN_S)
        except TimeoutError:
            error = self._not_begun(begun=begun)
        if isinstance(error, UserError):
            raise error
        if error is not None:
            raise UserError(
                f"run.trackers: {self._name} can't begin: {told(error)}; allowed: {ALLOWED[self._name]}, or run.trackers without it"
            ) from error

    def _not_begun(self, *, begun: bool) -> BaseException | None:
        """After the wait: leaves it alone, or has it go on by itself where the run has `begun`."""
        late = f"no answer within {BEGIN_S:g} s"
        with self._changed:
            if self._begun.done():
                return self._begun.exception()
            self._late, self._left = begun, not begun
        if begun:
            self._note(f"{self._name}: {late}; the run goes on, and what waits is sent when it answers")
            return None
        self.end(failed=True)
        return TimeoutError(late)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A committed step's; returns at once."""
        if step > self._last_step:
            self.add(step, metrics)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Further metrics of a step, or of what was before the first (0), that it cannot have had; returns at once."""
        now = time.monotonic()
        with self._changed:
            if self._left:
                return
            self._waiting.append((now, step, dict(metrics)))
            behind_s, num_waiting = now - self._waiting[0][0], len(self._waiting)
            noted, self._late = self._late, self._late or behind_s > LATE_S
            self._changed.notify()
        if num_waiting > MOST_WAITING:
            self._leave(f"is {behind_s:.0f} s behind")
        elif self._late and not noted:
            self._note(
                f"{self._name}: is {behind_s:.0f} s behind; the run goes on, and what waits is sent when it answers"
            )

    def end(self, *, failed: bool) -> None:
        """Nothing follows; returns at once."""
        with self._changed:
            self._failed = failed
            self._changed.notify()

    def wait(self) -> None:
        """Until it has taken everything, `CLOSE_S` at most."""
        if not self._left:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                self._leave(f"did not take everything within {CLOSE_S:g} s of the end")

    # -- the thread

    def _work(self) -> None:
        try:
            tracker = self._make()
        except Exception as error:  # noqa: BLE001 - supervision: `begin` raises it, or has gone on without
            with self._changed:
                self._begun.set_exception(error)
                late = self._late
            return self._leave(told(error)) if late else None
        self._begun.set_result(None)
        try:
            while (waiting := self._next()) is not None:
                tracker.log(*waiting)
                with self._changed:
                    self._waiting.popleft()
            tracker.close(failed=bool(self._failed))
        except Exception as error:  # noqa: BLE001 - supervision: whatever a tracker raises, the run goes on
            self._leave(told(error))

    def _next(self) -> tuple[int, dict[str, float]] | None:
        """The oldest that waits; None where nothing will follow. Whoever made this thread ends it, however the stage ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._left or self._failed is not None)
            return None if self._left or not self._waiting else self._waiting[0][1:]

    def _leave(self, why: str) -> None:
        with self._changed:
            if self._left:
                return
            self._left = True
            lacks = f"lacks the steps from {self._waiting[0][1]} on" if self._waiting else "may lack the end of the run"
            self._changed.notify()
        self._note(f"{self._name}: {why}. It {lacks}; the ledger has everything")
