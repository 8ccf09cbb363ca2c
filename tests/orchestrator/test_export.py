"""An exported folder is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.errors import PreceptorError, UserError
from orchestrator import jobs
from orchestrator.export import whole_folder
from orchestrator.progress import Progress
from orchestrator.run_dir import locked
from tests.orchestrator.test_run_dir import tree


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "deep" / "out"
    if exists:
        target.mkdir(parents=True)
    with whole_folder(target) as new:
        (new / "model").write_text("weights")
        assert new.parent == target.parent, "a rename must not cross file systems"
        assert not target.exists() or os.listdir(target) == []
    assert tree(tmp_path) == ["deep", "deep/out", "deep/out/model"]
    assert (target / "model").read_text() == "weights"


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [PreceptorError("a role failed"), KeyboardInterrupt()])
def test_nothing_is_left_where_the_export_fails(tmp_path: Path, exists: bool, error: BaseException) -> None:
    target = tmp_path / "deep" / "out"
    if exists:
        target.mkdir(parents=True)
    before = tree(tmp_path)

    def fail() -> None:
        with whole_folder(target) as new:
            (new / "model").write_text("half of the wei")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert tree(tmp_path) == before


def test_what_was_written_elsewhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(PreceptorError, match="all nodes of the cluster share"), whole_folder(tmp_path / "out"):
        pass
    assert tree(tmp_path) == []


@pytest.mark.parametrize("occupied", ["file", "full"])
def test_an_occupied_target_is_refused_and_left_alone(tmp_path: Path, occupied: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = tree(tmp_path)
    with pytest.raises(UserError, match="not an empty folder"), whole_folder(tmp_path / occupied):
        pass
    assert tree(tmp_path) == before


@pytest.mark.parametrize("path", ["/proc/preceptor/out", "/dev/null/out"])
def test_what_can_not_be_written_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="can't be written"), whole_folder(Path(path)):
        pass


def test_a_run_that_another_driver_works_on_is_not_exported(tmp_path: Path) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    manifest = run_dir / "checkpoints" / "00000002" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    (run_dir / "config.yaml").write_text(
        "stage: reward\nrun: {dir: run}\ndata: {path: pairs.jsonl}\nmodel: {model: model}\n"
    )
    with Progress() as progress, locked(run_dir), pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
        jobs.export(str(run_dir), str(out), role=None, step=None, progress=progress)
    with Progress() as progress, pytest.raises(UserError, match=r"checkpoints of the steps \[2\], got 3"):
        jobs.export(str(run_dir), str(out), role=None, step=3, progress=progress)
    assert not out.exists()
