"""Where a command's file goes: what is refused before there is anything to write, and what was there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.errors import UserError
from orchestrator.targets import check_target, write_target


def test_missing_folders_are_made_only_when_there_is_something_to_write(tmp_path: Path) -> None:
    target = check_target(str(tmp_path / "a" / "b" / "x.html"), "--html")
    assert list(tmp_path.iterdir()) == []
    write_target(target, "one \ud800", "--html")
    assert target.read_text() == "one ?"
    write_target(check_target(str(target), "--html"), "two", "--html")
    assert [path.read_text() for path in target.parent.iterdir()] == ["two"]


def test_what_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"--html: {tmp_path} is a folder; allowed: a file in a folder that can be"):
        check_target(str(tmp_path), "--html")
    with pytest.raises(UserError, match=f"--json: .* can't be written: {tmp_path / 'file'} is no folder"):
        check_target(str(tmp_path / "file" / "x.json"), "--json")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer is given: root, who runs tests in containers, may write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match="is not writable"):
        check_target(str(tmp_path / "x.html"), "--html")


def test_a_folder_that_the_system_refuses_is_told_when_it_is_written() -> None:
    with pytest.raises(UserError, match=r"--html: /proc/none/x\.html can't be written"):
        write_target(Path("/proc/none/x.html"), "text", "--html")
