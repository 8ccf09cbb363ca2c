"""Checkpoints: whole once their manifest is there; an old one goes only after a newer one is whole; a damaged one is left out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import pytest

from actors.errors import PreceptorError
from actors.store import run_path, write_whole
from actors.tasks import WrittenFile
from orchestrator.checkpoints import Checkpoints
from orchestrator.ledger import Ledger, SupervisedEntry
from tests.object_store import bucket, forget_clients, s3_server


def write(checkpoints: Checkpoints, step: int, *, commit: bool = True) -> Path:
    folder = checkpoints.prepare(step)
    data = f"weights of {step}".encode()
    (folder / "policy").mkdir()
    (folder / "policy" / "state-0").write_bytes(data)
    file = WrittenFile(name="state-0", sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
    if commit:
        checkpoints.commit(step, {"policy": [file]}, {"step": step})
    return folder / "policy" / "state-0"


def whole(checkpoints: Checkpoints, last: int) -> tuple[int, list[str]]:
    notes: list[str] = []
    return checkpoints.newest(last, notes.append), notes


def test_without_a_manifest_it_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert whole(checkpoints, 0) == (0, [])
    file = write(checkpoints, 2, commit=False)
    assert checkpoints.steps() == []
    assert not checkpoints.has(2)
    write(checkpoints, 2)
    assert file.exists()
    assert checkpoints.state(2) == {"step": 2}


def test_what_an_interrupted_attempt_left_is_cleared(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (write(checkpoints, 2, commit=False).parent / "state-9").write_text("of more ranks")
    assert list(checkpoints.prepare(2).iterdir()) == []


def test_old_ones_go_only_after_a_newer_one_is_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        write(checkpoints, step)
    write(checkpoints, 3, commit=False)
    assert checkpoints.steps() == [1, 2], "3 is not whole yet"
    write(checkpoints, 3)
    assert checkpoints.steps() == [2, 3]
    assert not checkpoints.folder(1).exists()
    assert checkpoints.state(2) == {"step": 2}


def test_a_whole_one_is_never_overwritten(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    file = write(checkpoints, 1)
    with pytest.raises(PreceptorError, match="another driver"):
        checkpoints.prepare(1)
    with pytest.raises(PreceptorError, match="another driver"):
        checkpoints.commit(1, {}, {})
    assert file.exists()


@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "manifest"])
def test_a_damaged_one_is_left_out_by_name(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)
    file = write(checkpoints, 2)
    if damage == "flipped":
        file.write_bytes(file.read_bytes().replace(b"w", b"W"))
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        file = checkpoints.folder(2) / "manifest.json"
        file.write_text("{")
    with pytest.raises(PreceptorError, match=str(file)):
        checkpoints.state(2)
    step, notes = whole(checkpoints, 2)
    assert step == 1
    assert len(notes) == 1
    assert f"{file} is missing or damaged" in notes[0]
    # told once; and the step can have a checkpoint again
    assert whole(checkpoints, 2) == (1, [])
    write(checkpoints, 2)
    assert whole(checkpoints, 2) == (2, [])


def test_one_newer_than_the_ledger_means_that_entries_were_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 5)
    with pytest.raises(PreceptorError, match=r"later step than the ledger's last, 4"):
        checkpoints.newest(4, print)


def test_a_spared_one_outlives_newer_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3, 4):
        folder = checkpoints.prepare(step)
        (folder / "policy").mkdir()
        checkpoints.commit(step, {"policy": []}, {}, spare={2})
    assert checkpoints.steps() == [2, 4], "the best, and the newest"
    assert whole(checkpoints, 4) == (4, [])


def test_only_a_whole_one_can_be_exported_as_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    notes: list[str] = []
    write(checkpoints, 1)
    file = write(checkpoints, 2)
    file.write_bytes(b"other bytes")
    assert [checkpoints.can_be_best(step, notes.append) for step in (1, 2, 3)] == [True, False, False]
    (note,) = notes
    assert f"{file} is missing or damaged" in note
    assert "no longer counts for the best" in note


# ---------------------------------------------------------------------------------------------------------- stores that fail


def stored(run_dir: Path) -> Checkpoints:
    """With one whole checkpoint, of step 1."""
    checkpoints = Checkpoints(run_dir, keep=2)
    write_whole(checkpoints.folder(1) / "policy" / "state-0", b"weights")
    file = WrittenFile(name="state-0", sha256=hashlib.sha256(b"weights").hexdigest(), num_bytes=7)
    checkpoints.commit(1, {"policy": [file]}, {"step": 1})
    return checkpoints


@pytest.fixture
def memory() -> Path:
    fsspec.filesystem("memory").store.clear()
    return run_path("memory://run")


@pytest.mark.parametrize("error", [OSError("SlowDown"), TimeoutError("Read timeout"), RuntimeError("HTTPClientError")])
@pytest.mark.parametrize(
    ("asked", "file"),
    [
        ("ls", "checkpoints"),
        ("info", "checkpoints/00000001/manifest.json"),
        ("cat_file", "checkpoints/00000001/manifest.json"),
        ("info", "checkpoints/00000001/policy/state-0"),
        ("_open", "checkpoints/00000001/policy/state-0"),
    ],
)
def test_a_store_that_fails_costs_no_checkpoint(
    memory: Path, monkeypatch: pytest.MonkeyPatch, asked: str, file: str, error: Exception
) -> None:
    """Each request that a resume makes fails once."""
    checkpoints = stored(memory)
    store = fsspec.get_filesystem_class("memory")
    real = getattr(store, asked)

    def fail(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith(file):
            raise error
        return real(self, path, *args, **options)

    for ask in (lambda: checkpoints.newest(1, pytest.fail), lambda: checkpoints.can_be_best(1, pytest.fail)):
        if asked == "ls" and ask() is True:
            continue  # it lists nothing
        with monkeypatch.context() as patch:
            patch.setattr(store, asked, fail)
            with pytest.raises(PreceptorError, match=rf"^memory://run/{file} can't be (read|listed): .*{error}"):
                ask()
        assert whole(checkpoints, 1) == (1, [])


def test_a_store_that_fails_loses_nothing_to_the_next_attempt_at_a_step(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = stored(memory)

    def fail(*_: object, **__: object) -> None:
        raise TimeoutError("Read timeout")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec.get_filesystem_class("memory"), "info", fail)
        with pytest.raises(PreceptorError, match=r"manifest.json can't be read: Read timeout"):
            checkpoints.prepare(1)
        with pytest.raises(PreceptorError, match=r"manifest.json can't be read: Read timeout"):
            checkpoints.has(1)
    assert checkpoints.state(1) == {"step": 1}


def test_what_can_not_be_removed_or_listed_is_named(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = stored(memory)
    write_whole(checkpoints.folder(1) / "manifest.json", b"{")

    def fail(*_: object, **__: object) -> None:
        raise TimeoutError("Read timeout")

    store = fsspec.get_filesystem_class("memory")
    with monkeypatch.context() as patch:
        patch.setattr(store, "rm", fail)
        patch.setattr(store, "rm_file", fail)
        with pytest.raises(PreceptorError, match=r"^memory://run/.*/manifest.json can't be removed: Read timeout"):
            checkpoints.newest(1, pytest.fail)
    with monkeypatch.context() as patch:
        patch.setattr(store, "ls", fail)
        with pytest.raises(PreceptorError, match=r"^memory://run/ledger can't be listed: Read timeout"):
            Ledger(memory, SupervisedEntry).last_step()


def test_a_damaged_one_in_a_store_is_still_set_aside(memory: Path) -> None:
    for damage in (b"WEIGHTS", b"weight", b""):
        checkpoints = stored(memory)
        write_whole(checkpoints.folder(1) / "policy" / "state-0", damage)
        step, (note,) = whole(checkpoints, 1)
        assert step == 0
        assert "state-0 is missing or damaged" in note
    checkpoints = stored(memory)
    (checkpoints.folder(1) / "policy" / "state-0").unlink()
    assert whole(checkpoints, 1)[0] == 0


def test_an_outage_of_s3_during_a_resume_costs_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as s3:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        forget_clients()
        checkpoints = stored(bucket("outage"))
        steps = Checkpoints.steps

        def listed(self: Checkpoints) -> list[int]:
            found = steps(self)
            s3.fail(503, 1000)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "steps", listed)
            with pytest.raises(PreceptorError, match=r"^s3://.*/00000001/manifest.json can't be read: "):
                checkpoints.newest(1, pytest.fail)
        s3.fail(503, 0)
        assert whole(checkpoints, 1) == (1, [])
