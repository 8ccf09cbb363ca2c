"""What a driver tells its registry, and what a run directory tells one afterwards."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from actors.errors import PreceptorError, UserError
from configs.load import parse_config
from configs.schema import Pipeline
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.registry import recorder as recorder_module
from orchestrator.registry.address import Address, address_of
from orchestrator.registry.from_dir import read_runs
from orchestrator.registry.recorder import recording
from orchestrator.registry.records import StepRecord
from orchestrator.registry.store import Registry
from orchestrator.registry.sync import sync
from orchestrator.run_dir import DONE_FILE, locked
from orchestrator.sessions import EndState, begin_session, end_session, installed_packages, lock_digest, read_sessions
from orchestrator.signals import Stopped
from tests.orchestrator.registry.small_runs import begin, commit, make_run, values, write_config


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that may begin."""
    run_dir = tmp_path / "run"
    config = parse_config(values(run_dir))
    assert not isinstance(config, Pipeline)
    write_config(run_dir, config)
    begin(run_dir, config)
    return run_dir


def step(run_dir: Path, number: int) -> tuple[int, dict[str, float], str]:
    """Commits a step; what the loop then tells."""
    commit(run_dir, number, 1.0 / number)
    return number, {"loss": 1.0 / number, "grad_norm": float("nan")}, f"{number}/{1.0 / number}"


def test_a_run_is_recorded_from_its_begin_to_its_end(address: Address, begun: Path) -> None:
    notes: list[str] = []
    with locked(begun), recording(address, notes.append) as recorder:
        recorder.begin(begun, num_gpus=0)
        for number in (1, 2, 3):
            recorder.step(*step(begun, number))
        recorder.track(3, {"held_out/loss": 0.25})
        (begun / DONE_FILE).write_text("{}")
        recorder.end(begun, "finished")
    assert notes == []
    (session,) = read_sessions(begun)
    with Registry(address) as registry:
        found = registry.find(session.run_id)
    assert (found.run.state, found.run.num_steps, found.run.stage) == ("finished", 3, "sft")
    assert [one.metrics for one in found.steps if one.kind == "step"] == [
        {"loss": 1.0},
        {"loss": 0.5},
        {"loss": 1.0 / 3},
    ]
    assert found.run.lock_sha256 == lock_digest(found.packages) != ""
    assert found.packages["sqlalchemy"]
    assert found.run.data == {"data.path": "f" * 64}


def drive(address: Address, run_dir: Path, number: int, error: PreceptorError) -> None:
    """A driver that commits one step and then ends so."""
    with suppress(type(error)), recording(address, print) as recorder:
        recorder.begin(run_dir, num_gpus=0)
        recorder.step(*step(run_dir, number))
        raise error


def test_a_resume_adds_what_the_registry_missed(address: Address, begun: Path) -> None:
    """The first driver had no registry; the second has one, and a stop is no failure."""
    with recording(None, print) as recorder:
        recorder.begin(begun, num_gpus=0)
        recorder.step(*step(begun, 1))
        recorder.step(*step(begun, 2))
    drive(address, begun, 3, Stopped("stopped"))
    first, second = read_sessions(begun)
    assert (first.run_id, second.number, second.state) == (second.run_id, 2, "stopped")
    with Registry(address) as registry:
        found = registry.find(first.run_id)
    assert (found.run.state, len(found.run.sessions)) == ("stopped", 2)
    assert [one.step for one in found.steps] == [1, 2, 3]


def test_a_failure_is_recorded_with_its_reason(address: Address, begun: Path) -> None:
    drive(address, begun, 1, PreceptorError("the reward cannot be had"))
    with Registry(address) as registry:
        (run,) = registry.runs(stages=False)
    assert (run.state, run.error) == ("failed", "the reward cannot be had")


def test_a_registry_that_is_gone_is_told_of_once_and_the_run_goes_on(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(recorder_module, "BATCH_S", 0.0)
    address = address_of("postgresql://u@127.0.0.1:1/d")
    told = threading.Event()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        told.set()

    with recording(address, note) as recorder:
        recorder.begin(begun, num_gpus=0)
        assert told.wait(30)
        for number in (1, 2, 3):
            recorder.step(*step(begun, number))
    (said,) = notes
    assert said.startswith("registry postgresql://u@127.0.0.1:1/d")
    assert said.endswith(f"The run goes on; `preceptor runs --sync {begun}` adds what is missing")


def test_a_registry_that_comes_back_gets_everything(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "HEARTBEAT_S", 0.01)
    (tmp_path / "place").write_text("in the way")
    address = address_of(f"sqlite:///{tmp_path}/place/r.db")
    assert address is not None
    told = threading.Event()
    with recording(address, lambda _: told.set()) as recorder:
        recorder.begin(begun, num_gpus=0)
        recorder.step(*step(begun, 1))
        assert told.wait(30)
        (tmp_path / "place").unlink()
        recorder.step(*step(begun, 2))
    with Registry(address, create=False) as registry:
        (run,) = registry.runs(stages=False)
        assert [one.step for one in registry.find(run.id).steps] == [1, 2]


def test_a_registry_that_hangs_holds_nothing_up(begun: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recorder_module, "CLOSE_S", 0.2)
    hanging = threading.Event()
    monkeypatch.setattr(recorder_module.Recorder, "_write", lambda *_: hanging.wait(60))
    notes: list[str] = []
    started = time.monotonic()
    with recording(address_of(f"sqlite:///{tmp_path}/r.db"), notes.append) as recorder:
        recorder.begin(begun, num_gpus=0)
        recorder.step(*step(begun, 1))
    hanging.set()
    assert time.monotonic() - started < 20
    assert notes[0].startswith("the registry has not answered for 0.2 s")


def count_reads(monkeypatch: pytest.MonkeyPatch, hanging: threading.Event | None = None) -> list[int]:
    """The ledger entries that are read from now on. With `hanging` each takes until the event."""
    reads: list[int] = []
    real = Ledger.read

    def read(self: Ledger[SupervisedEntry], number: int) -> SupervisedEntry:
        reads.append(number)
        if hanging is not None:
            hanging.wait(60)
        return real(self, number)

    monkeypatch.setattr(Ledger, "read", read)
    return reads


def test_what_a_driver_told_is_not_read_again_at_its_end(
    address: Address, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    first = threading.Event()
    real = Registry.put_steps

    def put_steps(self: Registry, run_id: str, steps: list[StepRecord]) -> None:
        real(self, run_id, steps)
        first.set()

    monkeypatch.setattr(Registry, "put_steps", put_steps)
    with recording(address, pytest.fail) as recorder:
        recorder.begin(begun, num_gpus=0)
        assert first.wait(30)
        for number in (1, 2, 3):
            recorder.step(*step(begun, number))
        (begun / DONE_FILE).write_text("{}")
    assert reads == []
    with Registry(address) as registry:
        (run,) = registry.runs(stages=False)
        assert (run.state, run.num_steps, run.metrics) == ("finished", 3, {"loss": 1.0 / 3})
        assert [one.step for one in registry.find(run.id).steps] == [1, 2, 3]


def test_how_a_run_ended_does_not_wait_for_the_steps_of_earlier_drivers(
    address: Address, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is a request where the folder is a store's: a thousand may take longer than a driver waits at its end."""
    drive(address, begun, 1, Stopped("stopped"))
    with recording(None, print) as recorder:  # these the registry misses
        recorder.begin(begun, num_gpus=0)
        recorder.step(*step(begun, 2))
    monkeypatch.setattr(recorder_module, "CLOSE_S", 3.0)
    monkeypatch.setattr(recorder_module, "BATCH_S", 60.0)  # one write, at the end
    hanging = threading.Event()
    reads = count_reads(monkeypatch, hanging)
    notes: list[str] = []
    with recording(address, notes.append) as recorder:
        recorder.begin(begun, num_gpus=0)
        recorder.step(*step(begun, 3))
        (begun / DONE_FILE).write_text("{}")
    try:
        with Registry(address) as registry:
            (run,) = registry.runs(stages=False)
            assert (run.state, run.num_steps) == ("finished", 3)
            assert [one.step for one in registry.find(run.id).steps] == [1, 3]
        assert reads == [1]
        (note,) = notes
        assert note.startswith("the registry has not answered for 3 s")
    finally:
        hanging.set()


# ------------------------------------------------------------------------------------------------------------- from directories


def test_directories_are_read_into_a_registry_again_and_again(address: Address, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a")
    make_run(tmp_path / "runs/deep/b", losses=(5.0,), end="failed", num_gpus=4)
    with Registry(address) as registry:
        for _ in range(2):
            assert sync(registry, tmp_path / "runs", pytest.fail) == 2
        found = {run.name: run for run in registry.runs(stages=False)}
        assert (found["a"].state, found["a"].metrics, found["a"].num_steps) == ("finished", {"loss": 1.0}, 3)
        assert (found["b"].state, found["b"].error) == ("failed", "the disk is full")
        assert found["b"].gpu_s == pytest.approx(4 * found["b"].active_s)
        assert found["a"].overrides == ["model.optimizer.lr=1e-3"]
        with pytest.raises(UserError, match=r"--sync: .* holds no run directory"):
            sync(registry, tmp_path / "runs" / "a" / "ledger", pytest.fail)


def test_the_folder_tells_the_state(tmp_path: Path) -> None:
    def state(name: str) -> str:
        return read_runs(tmp_path / name)[0].run.state

    ends: tuple[EndState, ...] = ("finished", "stopped", "failed")
    for end in ends:
        make_run(tmp_path / end, end=end)
        assert state(end) == end
    make_run(tmp_path / "killed", end=None)
    assert state("killed") == "lost"
    with locked(tmp_path / "killed"):
        assert state("killed") == "running"
    # a driver that goes on is at work, whatever the one before it came to
    make_run(tmp_path / "again", end="failed")
    second = begin_session(tmp_path / "again", num_gpus=0)
    with locked(tmp_path / "again"):
        assert state("again") == "running"
        end_session(tmp_path / "again", second, "stopped")
        assert state("again") == "stopped"


def test_what_a_killed_driver_worked_is_counted_to_its_last_step(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a", end=None, num_gpus=2)
    (session,) = read_sessions(run_dir)
    for path in (run_dir / "ledger").iterdir():
        os.utime(path, (session.started + 100, session.started + 100))
    run = read_runs(run_dir)[0].run
    assert run.active_s == pytest.approx(100, abs=0.01)
    assert run.gpu_hours == pytest.approx(200 / 3600, abs=1e-4)


def test_a_pipeline_is_a_run_with_its_stages(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    stages = {name: values(folder / name) for name in ("sft", "later")}
    pipeline = parse_config({"stage": "pipeline", "run": {"dir": str(folder)}, "stages": stages})
    write_config(folder, pipeline)
    make_run(folder / "sft", num_gpus=2)
    session = begin_session(folder, num_gpus=0)
    root, one = read_runs(folder)
    assert (root.run.id, root.run.stage, root.run.num_steps) == (session.run_id, "pipeline", 3)
    assert (one.run.part_of, one.run.name) == (root.run.id, "sft")
    assert root.run.gpu_s == one.run.gpu_s > 0
    (alone,) = read_runs(folder / "sft")
    assert alone.run.part_of == root.run.id


def test_parents_are_found_by_the_lineage_of_what_a_run_reads(tmp_path: Path) -> None:
    parent = make_run(tmp_path / "parent")
    (parent / "export").mkdir()
    lineage = {"format": 1, "run_dir": str(parent), "step": 3}
    (parent / "export/lineage.json").write_text(json.dumps(lineage))
    child = make_run(tmp_path / "child", model={"model": str(parent / "export")})
    (run,) = (one.run for one in read_runs(child))
    assert run.parents == [
        {
            "key": "model.model",
            "path": str(parent / "export"),
            "run_dir": str(parent),
            "run_id": read_sessions(parent)[0].run_id,
            "step": 3,
        }
    ]


def test_what_a_library_adds_to_the_search_path_is_no_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = installed_packages()
    (tmp_path / "stray-1.0.dist-info").mkdir()
    (tmp_path / "stray-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stray\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_packages() == before
    assert lock_digest({"a": "1", "b": "2"}) == lock_digest({"b": "2", "a": "1"}) != lock_digest({"a": "1", "b": "3"})


def test_a_run_of_a_version_without_sessions_has_one_id(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "old", end=None)
    for path in (run_dir / "sessions").iterdir():
        path.unlink()
    ids = {read_runs(run_dir)[0].run.id for _ in range(2)}
    assert len(ids) == 1
    assert read_runs(run_dir)[0].run.state == "stopped"
