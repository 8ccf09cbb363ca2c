"""Metrics to TensorBoard's files; a tracker that fails ends only itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

from actors.errors import UserError
from configs.schema.run import RunConfig
from orchestrator.progress import Progress
from orchestrator.trackers import Guarded, check_trackers, trackers


def events(folder: Path) -> Iterator[Event]:
    """Records of all event files: length, its checksum, the message, its checksum."""
    for path in sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            yield event
            at += 16 + length


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return [(v.tag, event.step, v.simple_value) for event in events(folder) for v in event.summary.value]


def run(folder: Path, *names: str) -> RunConfig:
    return RunConfig.model_validate({"dir": str(folder), "trackers": names})


def test_steps_are_in_the_event_files_once(tmp_path: Path) -> None:
    notes: list[str] = []
    for last_step, steps in ((0, (1, 2)), (2, (2, 3))):
        with (
            Progress() as progress,
            trackers(run(tmp_path, "tensorboard"), tmp_path, {}, last_step=last_step, note=notes.append) as made,
            progress.tracking(made),
        ):
            progress.begin(3, done=last_step)
            for step in steps:
                progress.step(step, {"score": step / 2, "sync/bytes": 8.0})
    assert scalars(tmp_path) == [
        (name, step, value) for step in (1, 2, 3) for name, value in (("score", step / 2), ("sync/bytes", 8.0))
    ]
    assert notes == []


def test_without_trackers_nothing_is_made(tmp_path: Path) -> None:
    with trackers(run(tmp_path), tmp_path, {}, last_step=0, note=print) as made:
        assert made == []
    assert not list(tmp_path.iterdir())


class Broken:
    asked = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.asked += 1
        raise OSError("no space left on device")

    def close(self) -> None:
        self.asked += 1


def test_a_tracker_that_fails_is_told_once_and_left_alone() -> None:
    notes: list[str] = []
    broken = Broken()
    guarded = Guarded("tensorboard", broken, 0, notes.append)
    guarded.log(1, {})
    guarded.log(2, {})
    guarded.close()
    assert broken.asked == 1
    assert notes == [
        "tensorboard: OSError: no space left on device. It gets no more of this run; the ledger has everything"
    ]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(("tensorboard",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run\.trackers: wandb needs the library wandb: pip install wandb"):
        check_trackers(("wandb",))
