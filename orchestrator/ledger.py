"""The ledger: one immutable file for each committed step. A step counts when its file exists.

`ledger/00000003.json` is created only if absent, which also fences out a second driver: whoever comes second finds the step taken and
stops. The digest covers token ids, rewards, advantages and updated parameters, bit for bit; times and metrics stand beside it, outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from actors.algorithms.moments import Moments
from actors.errors import PreceptorError, UserError
from actors.tasks import WaveSummary

FORMAT = 1


def create_only(path: Path, data: bytes) -> None:
    """Writes a whole file that must not exist yet; FileExistsError where it does. Nobody ever sees half of it.

    A hard link fails where the name is taken, which a rename would not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    finally:
        os.unlink(name)


def digest_of(parts: Sequence[str]) -> str:
    """sha256 over digests in the given order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDigests:
    """sha256 of what a step made."""

    tokens: str
    rewards: str
    advantages: str
    policy: str
    critic: str

    @property
    def step(self) -> str:
        """Of all five."""
        return digest_of([self.tokens, self.rewards, self.advantages, self.policy, self.critic])


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One committed step: enough to replay its updates from the stored trajectories."""

    step: int
    """From 1."""
    policy_version: int
    """After the step."""
    waves: tuple[WaveSummary, ...]
    advantage_moments: Moments | None
    kl_coef: float
    """Used in this step."""
    kl_controller: dict[str, float]
    """State after the step."""
    trajectory_files: tuple[tuple[str, ...], ...]
    """For each wave, paths under the run directory."""
    digests: StepDigests
    updates: dict[str, tuple[dict[str, float], ...]]
    """Of policy and critic, each minibatch's losses and metrics over all ranks, in order."""
    metrics: dict[str, float]
    seconds: dict[str, float]
    """By phase."""

    def to_json(self) -> bytes:
        return json.dumps(
            {"format": FORMAT, "digest": self.digests.step, **asdict(self)}, indent=1, sort_keys=True
        ).encode()

    @staticmethod
    def from_json(data: bytes) -> LedgerEntry:
        raw: dict[str, Any] = json.loads(data)
        assert raw.pop("format") == FORMAT
        digest = raw.pop("digest")
        moments = raw.pop("advantage_moments")
        entry = LedgerEntry(
            waves=tuple(
                WaveSummary(**{key: tuple(value) if isinstance(value, list) else value for key, value in wave.items()})
                for wave in raw.pop("waves")
            ),
            advantage_moments=None if moments is None else Moments(**moments),
            trajectory_files=tuple(tuple(files) for files in raw.pop("trajectory_files")),
            digests=StepDigests(**raw.pop("digests")),
            updates={role: tuple(minibatches) for role, minibatches in raw.pop("updates").items()},
            **raw,
        )
        if entry.digests.step != digest:
            raise PreceptorError(
                f"ledger entry of step {entry.step} is damaged: its digest is {digest}, its parts give {entry.digests.step}"
            )
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedEntry:
    """One committed optimizer step of a supervised stage. It depends on the data alone, so it can always be computed again."""

    step: int
    """From 1."""
    metrics: dict[str, float]

    def to_json(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()

    @staticmethod
    def from_json(data: bytes) -> SupervisedEntry:
        raw = json.loads(data)
        assert raw.pop("format") == FORMAT
        return SupervisedEntry(**raw)


Entry = TypeVar("Entry", LedgerEntry, SupervisedEntry)


class Ledger(Generic[Entry]):
    """The committed steps of one run."""

    def __init__(self, run_dir: Path, entry_type: type[Entry]) -> None:
        self._folder = run_dir / "ledger"
        self._entry_type = entry_type

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}.json"

    def commit(self, entry: Entry) -> None:
        """Makes the step count. Raises UserError where another driver has committed it."""
        try:
            create_only(self._path(entry.step), entry.to_json())
        except FileExistsError:
            raise UserError(
                f"step {entry.step} of {self._folder.parent} is committed already: another driver works on this run directory; this one stops"
            ) from None

    def read(self, step: int) -> Entry:
        return self._entry_type.from_json(self._path(step).read_bytes())

    def last_step(self) -> int:
        """Newest committed step, 0 where there is none. A gap is an error: something was deleted."""
        steps = sorted(int(path.stem) for path in self._folder.glob("[0-9]*.json"))
        if steps != list(range(1, len(steps) + 1)):
            missing = sorted(set(range(1, steps[-1] + 1)) - set(steps))
            raise UserError(f"{self._folder} lacks the steps {missing[:5]}; a run can't be resumed over a gap")
        return len(steps)
