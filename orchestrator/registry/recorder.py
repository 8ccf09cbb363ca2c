"""The driver's side: what a run does goes to the registry, by a thread of its own.

A registry that is slow, full or gone never holds a run up and never ends it: it is told of once, the steps are kept, and tried again at the
next heartbeat. What it misses for good, `preceptor runs --sync RUN_DIR` adds from the run directory.

    driver: begin, step, track, end ─► what is new ─► thread: whole runs from their folders, steps in batches, a heartbeat
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from actors.errors import PreceptorError
from orchestrator.sessions import EndState, Session, begin_session, end_session
from orchestrator.signals import Stopped

if TYPE_CHECKING:
    from orchestrator.registry.address import Address
    from orchestrator.registry.records import RunRecord, StepRecord
    from orchestrator.registry.store import Registry

HEARTBEAT_S = 20.0
BATCH_S = 1.0
"""Steps that come within this time are written together."""
CLOSE_S = 20.0
"""Longest wait for the last write."""


@dataclass(slots=True, kw_only=True)
class _Open:
    """A run, or a stage of one, that this driver works on."""

    folder: Path
    session: Session
    whole: bool = True
    """Its folder has something to tell beyond steps: it began, or ended."""
    caught_up: bool = False
    """What earlier drivers committed has been looked at."""
    pending: list[StepRecord] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    num_steps: int = 0
    ended: bool = False


class Recorder:
    """Takes what a run tells. `begin`, `step`, `track` and `end` return at once."""

    def __init__(self, address: Address | None, note: Callable[[str], None]) -> None:
        self._address, self._note = address, note
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._open: dict[Path, _Open] = {}
        self._current: _Open | None = None
        self._told = False
        self._thread: threading.Thread | None = None

    def begin(self, folder: Path, *, num_gpus: int) -> None:
        """A run, or a stage of one, begins or goes on; steps that follow are its own."""
        opened = _Open(folder=folder, session=begin_session(folder, num_gpus=num_gpus))
        with self._lock:
            self._open[folder] = self._current = opened
        if self._address is not None and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="registry", daemon=True)
            self._thread.start()
        self._woken.set()

    def has(self, folder: Path) -> bool:
        """Whether it has begun."""
        return folder in self._open

    def step(self, step: int, metrics: Mapping[str, float], digest: str) -> None:
        """A committed step."""
        self._add(step, metrics, kind="step", digest=digest)

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation after a step."""
        self._add(step, metrics, kind="evaluation", digest="")

    def _add(self, step: int, metrics: Mapping[str, float], *, kind: str, digest: str) -> None:
        if self._address is None or self._current is None:
            return
        from orchestrator.registry.from_dir import step_record

        record = step_record(step, metrics, kind=kind, digest=digest)
        with self._lock:
            self._current.pending.append(record)
            self._current.metrics |= record.metrics
            self._current.num_steps = max(self._current.num_steps, step)
        self._woken.set()

    def end(self, folder: Path, state: EndState, error: str = "") -> None:
        """It came to its end, so or so."""
        opened = self._open.get(folder)
        if opened is None or opened.ended:
            return
        with suppress(OSError, PreceptorError):  # a full disk must not hide what ended the run
            end_session(folder, opened.session, state, error)
        with self._lock:
            opened.ended, opened.whole = True, True
        self._woken.set()

    def close(self, state: EndState, error: str = "") -> None:
        """Ends whatever has not ended, and waits for the registry, but not for ever."""
        for folder in list(self._open):
            self.end(folder, state, error)
        self._closing.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                self._tell(f"the registry has not answered for {CLOSE_S:g} s")

    # -- the thread

    def _work(self) -> None:
        registry: Registry | None = None
        while True:
            self._woken.wait(HEARTBEAT_S)
            self._closing.wait(BATCH_S)
            self._woken.clear()
            closing = self._closing.is_set()
            try:
                from orchestrator.registry.store import Registry

                assert self._address is not None
                registry = registry or Registry(self._address)
                for opened in list(self._open.values()):
                    self._write(registry, opened)
            except Exception as error:  # noqa: BLE001 - supervision: whatever a registry raises, the run goes on
                self._tell(f"{type(error).__name__}: {error}" if not isinstance(error, PreceptorError) else str(error))
                if not closing:
                    self._closing.wait(HEARTBEAT_S)
            if closing:
                break
        if registry is not None:
            registry.close()

    def _write(self, registry: Registry, opened: _Open) -> None:
        """What is new of one run. Where it fails everything is still there for the next time."""
        from orchestrator.registry.from_dir import read_runs

        with self._lock:
            whole, ended, pending = opened.whole, opened.ended, list(opened.pending)
            metrics, num_steps = dict(opened.metrics), opened.num_steps
        run_id = opened.session.run_id
        if whole:
            found = read_runs(opened.folder, steps=False)[0]
            num_steps = max(num_steps, found.run.num_steps)
            registry.put(replace(found.run, metrics=metrics), packages=found.packages, alive=not ended)
            registry.put_steps(run_id, pending)
            # last, as it may take long: whoever closes waits for how the run ended, and not for this
            metrics = self._catch_up(registry, opened, found.run) | metrics
        elif not ended:
            registry.put_steps(run_id, pending)
            registry.advance(run_id, metrics, num_steps)
        with self._lock:
            opened.pending = opened.pending[len(pending) :]
            opened.metrics, opened.num_steps = metrics | opened.metrics, max(opened.num_steps, num_steps)
            opened.whole = opened.ended != ended

    def _catch_up(self, registry: Registry, opened: _Open, run: RunRecord) -> dict[str, float]:
        """Adds the steps that the registry lacks, from the folder. Gives each metric's last value where it had to look."""
        from orchestrator.registry.from_dir import last_metrics, read_steps

        metrics: dict[str, float] = {}
        if run.num_steps and (not opened.caught_up or registry.num_steps(run.id) < run.num_steps):
            steps = read_steps(opened.folder)
            registry.put_steps(run.id, steps)
            metrics = last_metrics(steps)
            registry.advance(run.id, metrics | run.metrics, run.num_steps, state=run.state)
        opened.caught_up = True
        return metrics

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            folder = next(iter(self._open), "RUN_DIR")
            self._note(f"{what}. The run goes on; `preceptor runs --sync {folder}` adds what is missing")


@contextmanager
def recording(address: Address | None, note: Callable[[str], None]) -> Iterator[Recorder]:
    """A recorder for the block; how the block ends is how the run ended."""
    recorder = Recorder(address, note)
    try:
        yield recorder
    except (KeyboardInterrupt, Stopped):
        recorder.close("stopped")
        raise
    except BaseException as error:
        recorder.close(
            "failed", f"{error}" if isinstance(error, PreceptorError) else f"{type(error).__name__}: {error}"
        )
        raise
    recorder.close("finished")
