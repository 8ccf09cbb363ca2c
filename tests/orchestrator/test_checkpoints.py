"""Checkpoints: whole once their manifest is there; an old one goes only after a newer one is whole; a damaged one is left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from actors.errors import PreceptorError
from actors.tasks import WrittenFile
from orchestrator.checkpoints import Checkpoints


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
