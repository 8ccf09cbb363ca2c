"""A pipeline through the command line into a registry: stages that only commit, in place of Ray's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.schema import SupervisedStage
from orchestrator import cli, stages
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.plan import Plan, make_plan
from orchestrator.progress import Progress
from orchestrator.registry.address import Address
from orchestrator.registry.store import Registry
from orchestrator.run_dir import DATA_FILE
from orchestrator.sessions import begin_session
from orchestrator.trackers import MAKERS, TensorBoard, Tracked, Tracker
from tests.orchestrator.registry.small_runs import commit, values
from tests.orchestrator.small_stages import LAPTOP

STEPS = 3


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Stage to the step after which it is asked to stop; stages need nothing but their config."""
    asked: dict[str, int] = {}

    def commits(
        config: SupervisedStage, run_dir: Path, progress: Progress, on_ready: Callable[[Plan], None]
    ) -> int | None:
        (run_dir / DATA_FILE).write_text(json.dumps({"fingerprint": "f"}))
        on_ready(make_plan(config, LAPTOP))
        ledger = Ledger(run_dir, SupervisedEntry)
        for step in range(ledger.last_step() + 1, STEPS + 1):
            commit(run_dir, step, 1.0 / step)
            entry = ledger.read(step)
            progress.step(step, entry.metrics, entry.digest)
            if asked.get(run_dir.name) == step:
                asked.clear()
                return None
        return STEPS

    monkeypatch.setattr(stages, "run_supervised", commits)
    return asked


def write_pipeline(folder: Path) -> Path:
    inner: dict[str, Any] = values(folder, run={})
    del inner["run"]
    config = {"stage": "pipeline", "run": {"dir": str(folder / "run")}, "stages": {"one": inner, "two": inner}}
    (folder / "c.yaml").write_text(json.dumps(config))
    return folder / "c.yaml"


def test_a_pipeline_that_stops_and_goes_on_is_one_run(address: Address, stops: dict[str, int], tmp_path: Path) -> None:
    stops["two"] = 2
    assert cli.main(["run", str(write_pipeline(tmp_path)), "run.seed=5"]) == 130
    with Registry(address) as registry:
        before = {run.name: run for run in registry.runs(stages=True)}
    assert {name: (run.state, run.num_steps) for name, run in before.items()} == {
        "run": ("stopped", 5),
        "one": ("finished", 3),
        "two": ("stopped", 2),
    }
    assert before["run"].overrides == ["run.seed=5"]
    assert cli.main(["resume", str(tmp_path / "run")]) == 0
    with Registry(address) as registry:
        after = {run.name: run for run in registry.runs(stages=True)}
        two = registry.find(after["two"].id)
    assert {name: (run.state, run.num_steps, len(run.sessions)) for name, run in after.items()} == {
        "run": ("finished", 6, 2),
        "one": ("finished", 3, 1),
        "two": ("finished", 3, 2),
    }
    assert {name: run.id for name, run in after.items()} == {name: run.id for name, run in before.items()}
    assert {after[name].part_of for name in ("one", "two")} == {after["run"].id}
    assert [(one.step, one.digest) for one in two.steps] == [(step, f"{step}/{1.0 / step}") for step in (1, 2, 3)]


def test_a_run_that_fails_says_why(
    address: Address, stops: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "step", lambda *_: 1 / 0)
    assert cli.main(["run", str(write_pipeline(tmp_path))]) == 1
    with Registry(address) as registry:
        runs = {run.name: (run.state, run.error) for run in registry.runs(stages=True)}
    failed = ("failed", "ZeroDivisionError: division by zero")
    assert runs == {"run": failed, "one": failed}


@pytest.mark.parametrize("failing", ["one", "two"])
def test_a_tracker_that_cannot_begin_refuses_only_a_run_that_has_not_begun(
    failing: str,
    stops: dict[str, int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(tracked: Tracked) -> Tracker:
        if tracked.run_dir == tmp_path / "run" / failing:
            raise OSError("no route to host")
        return TensorBoard(tracked)

    monkeypatch.setitem(MAKERS, "tensorboard", make)
    code = cli.main(["run", str(write_pipeline(tmp_path)), "run.trackers=[tensorboard]", "--registry", "off"])
    told = "run.trackers: tensorboard can't begin: OSError: no route to host; allowed: a run directory in which"
    out = capfd.readouterr()
    if failing == "one":
        assert code == 2
        assert told in out.err
    else:
        assert code == 0
        assert told in out.out
        assert ", or run.trackers without it. The run goes on; the ledger has everything\n" in out.out


def test_without_a_registry_everything_runs_as_well(
    stops: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(write_pipeline(tmp_path)), "--registry", "off"]) == 0
    capsys.readouterr()
    assert cli.main(["show", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [stage["state"] for stage in told["stages"]] == ["finished", "finished"]


def test_a_driver_whose_folder_is_gone_notes_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, run_dir = tmp_path / "copy", tmp_path / "run"
    gone.mkdir()
    run_dir.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert begin_session(run_dir, num_gpus=0).cwd == ""
