"""What a sweep says while it runs: lines for a file or a pipe, a table on a terminal."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from actors.durable import write_whole
from orchestrator.sweep.records import SweepFolder
from orchestrator.sweep.view import View
from tests.orchestrator.sweep.cluster import SPEC, commit, small_sweep


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return small_sweep(tmp_path / "s", 2)


def test_each_change_is_told_once(folder: SweepFolder, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = folder.trials()
    begun, failed = replace(first, status="running", attempts=1), replace(second, status="failed", reason="it broke")
    commit(folder.run_dir(first), 2, score=0.25)
    with View(folder, SPEC) as view:
        for trials in ([first, second], [begun, second], [begun, failed], [replace(begun, status="finished"), failed]):
            view.compared(trials)
            view.compared(trials)
        write_whole(folder.log_file(failed), b"")
        view.changed(failed)
    log = folder.log_file(failed)
    assert capfd.readouterr().out.splitlines() == [
        "trial 0001 begins: run.seed=0",
        "trial 0002 failed: it broke",
        "trial 0001 finished after 0 s, step 2, score 0.25",
        f"trial 0002 failed: it broke; more in {log}",
    ]


@contextmanager
def terminal() -> Iterator[int]:
    """Stdout is one; what it shows is read from here. No fixture: pytest takes stdout back before the test."""
    shown, ours = os.openpty()
    saved = os.dup(1)
    os.dup2(ours, 1)
    try:
        yield shown
    finally:
        os.dup2(saved, 1)
        for fd in (saved, ours, shown):
            os.close(fd)


def read_until(terminal: int, *wanted: str) -> str:
    """What a terminal shows, which comes in pieces, until it has shown all that is wanted."""
    text = ""
    while not all(one in text for one in wanted):
        ready, _, _ = select.select([terminal], [], [], 30)
        assert ready, f"not all of {wanted} in {text!r}"
        text += os.read(terminal, 100_000).decode()
    return text


def test_a_terminal_shows_a_table_that_follows_the_ledgers(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("orchestrator.sweep.view.REFRESH_S", 0.0)
    counts = "1 running, 1 waiting"
    running, waiting = replace(folder.trials()[0], status="running"), folder.trials()[1]
    with terminal() as shown, View(folder, SPEC) as view:
        commit(folder.run_dir(running), 1, score=0.125)
        view.looked([running, waiting])
        before = read_until(shown, "0.125", counts)
        commit(folder.run_dir(running), 2, score=0.375)
        view.looked([running, waiting])
        after = read_until(shown, "0.375", counts)
    for text, step, value in ((before, "1", "0.125"), (after, "2", "0.375")):
        rows = [line.split() for line in text.splitlines() if "0001 " in line]
        assert rows[-1][1:4] == ["running", step, value]
