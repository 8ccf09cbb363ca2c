"""The ledger: one immutable file for each committed step. A step counts when its file exists.

`ledger/00000003.json` is created only if absent, which also fences out a second driver: whoever comes second finds the step taken and
stops. The digest covers token ids, rewards, advantages and updated parameters, bit for bit; times and metrics stand beside it, outside.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from actors.algorithms.moments import Moments
from actors.digests import digest_of
from actors.errors import PreceptorError
from actors.store import create_only, entries, read_bytes, reason
from actors.tasks import Busy, WaveSummary, WrittenFile

FORMAT = 2
ENTRY_NAME = re.compile(r"\d{8,}\.json")


def num_committed(folder: Path) -> int:
    """Committed steps of the run in `folder`, or of all stages of the pipeline there."""
    return sum(1 for _ in folder.glob("ledger/[0-9]*.json")) + sum(1 for _ in folder.glob("*/ledger/[0-9]*.json"))


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
    advantage_moments: Moments
    kl_coef: float
    """Used in this step."""
    kl_controller: dict[str, float]
    """State after the step."""
    trajectory_files: tuple[tuple[WrittenFile, ...], ...]
    """For each wave, of the ranks that had a part of it; names are paths under the run directory."""
    digests: StepDigests
    updates: dict[str, tuple[dict[str, float], ...]]
    """Of policy and critic, each minibatch's losses and metrics over all ranks, in order."""
    metrics: dict[str, float]
    seconds: dict[str, float]
    """By phase."""

    def to_json(self) -> bytes:
        return _sealed({"digest": self.digests.step, **asdict(self)})

    @staticmethod
    def from_json(data: bytes) -> LedgerEntry:
        """Raises ValueError, TypeError or KeyError for anything but what `to_json` wrote."""
        raw = _unsealed(data)
        digest = raw.pop("digest")
        waves = [{key: _tuples(value) for key, value in wave.items()} for wave in raw.pop("waves")]
        files = raw.pop("trajectory_files")
        entry = LedgerEntry(
            waves=tuple(WaveSummary(**{**wave, "busy": Busy(**wave["busy"])}) for wave in waves),
            advantage_moments=Moments(**raw.pop("advantage_moments")),
            trajectory_files=tuple(tuple(WrittenFile(**file) for file in of_wave) for of_wave in files),
            digests=StepDigests(**raw.pop("digests")),
            updates={role: tuple(minibatches) for role, minibatches in raw.pop("updates").items()},
            **raw,
        )
        if entry.digests.step != digest:
            raise ValueError(f"its digest is {digest}, its parts give {entry.digests.step}")
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedEntry:
    """One committed optimizer step of a supervised stage. It depends on the data alone, so it can always be computed again."""

    step: int
    """From 1."""
    digest: str
    """sha256 of the master weights after the step where the run is deterministic, empty elsewhere."""
    metrics: dict[str, float]

    def to_json(self) -> bytes:
        return _sealed(asdict(self))

    @staticmethod
    def from_json(data: bytes) -> SupervisedEntry:
        """Raises ValueError, TypeError or KeyError for anything but what `to_json` wrote."""
        return SupervisedEntry(**_unsealed(data))


Entry = TypeVar("Entry", LedgerEntry, SupervisedEntry)


class Ledger(Generic[Entry]):
    """The committed steps of one run."""

    def __init__(self, run_dir: Path, entry_type: type[Entry]) -> None:
        self._folder = run_dir / "ledger"
        self._entry_type: type[Entry] = entry_type

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}.json"

    def commit(self, entry: Entry) -> None:
        """Makes the step count. Raises PreceptorError where another driver has committed it."""
        try:
            create_only(self._path(entry.step), entry.to_json())
        except FileExistsError:
            raise PreceptorError(
                f"step {entry.step} of {self._folder.parent} is committed already: another driver works on this run directory; this one "
                "stops and changes nothing"
            ) from None

    def read(self, step: int) -> Entry:
        """Raises PreceptorError, naming the file, where it is missing or damaged."""
        path = self._path(step)
        try:
            entry = self._entry_type.from_json(read_bytes(path))
            if entry.step != step:
                raise ValueError(f"it speaks of step {entry.step}")
        except OSError as error:
            raise PreceptorError(f"ledger entry {path} can't be read: {reason(error)}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise PreceptorError(
                f"ledger entry {path} is damaged: {error}. Put it back from a copy of the run"
            ) from error
        return entry

    def last_step(self) -> int:
        """Newest committed step, 0 where there is none. A gap is an error: something was deleted."""
        names = [path.name for path in entries(self._folder)]
        steps = sorted(int(name.removesuffix(".json")) for name in names if ENTRY_NAME.fullmatch(name))
        if steps != list(range(1, len(steps) + 1)):
            missing = sorted(set(range(1, steps[-1] + 1)) - set(steps))
            raise PreceptorError(f"{self._folder} lacks the steps {missing[:5]}; a run can't be resumed over a gap")
        return len(steps)


def _sealed(fields: dict[str, Any]) -> bytes:
    """JSON with a checksum of itself, so that damage shows."""
    fields = {"format": FORMAT, **fields}
    return json.dumps({**fields, "checksum": _checksum(fields)}, indent=1, sort_keys=True).encode()


def _unsealed(data: bytes) -> dict[str, Any]:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise TypeError("it is no JSON object")
    if fields.get("format") != FORMAT:
        raise ValueError(f"it has format {fields.get('format')!r}, this version reads {FORMAT}")
    if fields.pop("checksum", None) != _checksum(fields):
        raise ValueError("its checksum is not that of its content")
    del fields["format"]
    return fields


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
