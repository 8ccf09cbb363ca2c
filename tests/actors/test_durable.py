"""What is written is on disk before it has its name, and its name before anything speaks of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from actors.algorithms.records import Experience, Trajectories
from actors.data.stored import check_files, write_experience
from actors.durable import create_only, make_folder, sync_tree, write_whole
from actors.engine.export import FolderWriter

Syncs = list[tuple[int, frozenset[str]]]


@pytest.fixture
def syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Syncs:
    """Of each fsync, in order: the inode, and the files and folders that there were by then."""
    done: Syncs = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        done.append((os.fstat(handle).st_ino, frozenset(str(path) for path in tmp_path.rglob("*"))))

    monkeypatch.setattr(os, "fsync", fsync)
    return done


def synced_before_named(path: Path, syncs: Syncs) -> bool:
    """Its content went to disk when it had another name, and its folder's names afterwards."""
    names = [at for at, (inode, there) in enumerate(syncs) if inode == path.parent.stat().st_ino and str(path) in there]
    content = [at for at, (inode, there) in enumerate(syncs) if inode == path.stat().st_ino and str(path) not in there]
    return bool(content and names) and content[0] < names[-1]


def experience() -> Experience:
    cu_lengths = torch.tensor([0, 2])
    column = torch.tensor([0.5, -1.0])
    trajectories = Trajectories(
        ids=("a",),
        prompt_ids=("p",),
        tokens=torch.tensor([3, 4]),
        cu_lengths=cu_lengths,
        loss_mask=torch.tensor([False, True]),
        rollout_logprobs=column,
        truncated=torch.tensor([False]),
        version_spans=((),),
        turn_offsets=((),),
    )
    names = ("rewards", "old_logprobs", "reference_logprobs", "values", "advantages", "returns")
    return Experience(trajectories=trajectories, scores=torch.tensor([1.0]), **dict.fromkeys(names, column))


def test_trajectories(tmp_path: Path, syncs: Syncs) -> None:
    folder = tmp_path / "trajectories" / "00000001"
    file = write_experience(folder / "wave-0.parquet", [0], experience(), [("what ?", "this")])
    check_files(folder, [file])
    assert synced_before_named(folder / file.name, syncs)
    assert tmp_path.stat().st_ino in {inode for inode, _ in syncs}, "the new folders' names too"
    assert folder.parent.stat().st_ino in {inode for inode, _ in syncs}


def test_the_weights_of_an_export(tmp_path: Path, syncs: Syncs) -> None:
    writer = FolderWriter(tmp_path, file_bytes=16)
    for name in ("a", "b"):
        writer.add(name, torch.ones(4))
    writer.close()
    (tmp_path / "config.json").write_text("{}")
    sync_tree(tmp_path)
    weights = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(weights) == 2
    assert all(synced_before_named(path, syncs) for path in weights)
    assert {path.stat().st_ino for path in tmp_path.iterdir()} <= {inode for inode, _ in syncs}


@pytest.mark.parametrize("write", [create_only, write_whole])
def test_the_orchestrators_files(tmp_path: Path, syncs: Syncs, write: object) -> None:
    assert callable(write)
    write(tmp_path / "ledger" / "00000001.json", b"{}")
    assert synced_before_named(tmp_path / "ledger" / "00000001.json", syncs)


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One writes while the other has its bytes on disk and no name yet."""
    path, real = tmp_path / "done.json", os.replace

    def replace(new: str, target: Path) -> None:
        monkeypatch.setattr(os, "replace", real)
        write_whole(path, b"of the other")
        real(new, target)

    monkeypatch.setattr(os, "replace", replace)
    write_whole(path, b"of the first")
    assert path.read_bytes() == b"of the first"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["done.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "done.json"
    write_whole(path, b"before")
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="No space"):
                write_whole(path, b"after")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"done.json": b"before"}


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path, syncs: Syncs) -> None:
    make_folder(tmp_path)
    assert syncs == []
    make_folder(tmp_path / "a" / "b")
    assert {inode for inode, _ in syncs} == {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino}
