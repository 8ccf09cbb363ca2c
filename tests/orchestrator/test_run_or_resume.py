"""`preceptor run --resume-if-begun`: begins, goes on with this very config's run, and refuses any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.errors import UserError
from configs.load import dump_config, load_config
from orchestrator import cli, jobs
from orchestrator.commands.base import BAD_INPUT, FINE
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.progress import Progress

CONFIG = "stage: sft\nrun: {dir: RUN}\ndata: {path: d.jsonl}\nmodel: {model: m}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.replace("RUN", str(tmp_path / "run")))
    return path


@pytest.fixture
def begun(tmp_path: Path, config: Path) -> Path:
    """A run of the config whose driver died after a step."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(dump_config(load_config(config)))
    (run_dir / "plan.json").write_text("{}")
    Ledger(run_dir, SupervisedEntry).commit(SupervisedEntry(step=1, digest="", metrics={}))
    return run_dir


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The run directories whose stages are run; nothing is started."""
    ran: list[Path] = []
    monkeypatch.setattr(jobs, "_run_stages", lambda config, run_dir, progress, recorder: ran.append(run_dir))
    return ran


def test_a_run_that_has_not_begun_begins(config: Path, tmp_path: Path, stages: list[Path]) -> None:
    (tmp_path / "run").mkdir()
    assert cli.main(["run", str(config), "--resume-if-begun", "run.seed=5"]) == FINE
    assert stages == [tmp_path / "run"]
    assert "seed: 5" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "overrides.json").read_text() == '["run.seed=5"]'


def test_a_run_that_has_begun_goes_on(
    config: Path, begun: Path, stages: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(config)]) == BAD_INPUT
    assert "is not empty" in capfd.readouterr().err
    assert stages == []
    assert cli.main(["run", str(config), "--resume-if-begun"]) == FINE
    assert stages == [begun]
    assert f"{begun} holds this run: it goes on" in capfd.readouterr().out


def test_a_run_that_is_finished_stays_so(config: Path, begun: Path, stages: list[Path]) -> None:
    (begun / "done.json").write_text("{}")
    assert cli.main(["run", str(config), "--resume-if-begun"]) == FINE
    assert stages == []


def test_another_configs_run_is_refused(
    config: Path, begun: Path, stages: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["run", str(config), "--resume-if-begun", "run.seed=5", "model.optimizer.lr=0.5"])
    assert (code, stages) == (BAD_INPUT, [])
    assert capsys.readouterr().err == (
        f"preceptor: run.dir: {begun} holds the run of another config, which differs in run.seed, model.optimizer.lr; allowed: a new or "
        "empty folder, or one that holds the run of this very config\n"
    )


def test_a_folder_of_something_else_is_refused_as_ever(config: Path, tmp_path: Path, stages: list[Path]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"), Progress() as progress:
        jobs.run_or_resume(load_config(config), overrides_text=(), progress=progress)
    assert stages == []
