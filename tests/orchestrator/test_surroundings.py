"""Which cluster a run joins, and where a job's run directory is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.errors import UserError
from configs.schema.run import ClusterConfig
from orchestrator import cli
from orchestrator.registry.address import address_for_run
from orchestrator.surroundings import RAY_JOB, cluster_address, place_of_run, ray_job
from tests.resilience.runs import reward_config

JOB = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1", "job_name": "x"}})


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RAY_JOB, "RAY_ADDRESS", "PRECEPTOR_RUNS", "PRECEPTOR_REGISTRY", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("configured", "environment", "joined"),
    [
        (None, None, None),
        (None, "", None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, "auto", "auto"),
        (None, "local", None),
        (None, "http://10.0.0.1:8265", None),  # the job server's
        (None, "https://ray.example", None),
        ("auto", None, "auto"),
        ("local", "10.0.0.1:6379", None),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
    ],
)
def test_the_config_comes_before_the_environment(
    configured: str | None, environment: str | None, joined: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert cluster_address(ClusterConfig(address=configured)) == joined


def test_outside_a_job_a_run_directory_is_as_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_RUNS", "/shared")
    assert ray_job() is None
    assert place_of_run("runs/demo") == "runs/demo"


def test_a_jobs_relative_run_directory_is_not_in_its_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY_JOB, JOB)
    assert ray_job() == "raysubmit_1"
    assert place_of_run("runs/demo") == str(Path.home() / "preceptor/runs/demo")
    monkeypatch.setenv("PRECEPTOR_RUNS", "/shared")
    assert place_of_run("runs/demo") == "/shared/runs/demo"
    monkeypatch.setenv("PRECEPTOR_RUNS", "s3://bucket/team")
    assert place_of_run("runs/demo") == "s3://bucket/team/runs/demo"
    monkeypatch.setenv("PRECEPTOR_RUNS", "~/runs/")
    assert place_of_run("demo") == str(Path.home() / "runs/demo")
    assert place_of_run(place_of_run("demo")) == str(Path.home() / "runs/demo")
    assert place_of_run("/elsewhere/demo") == "/elsewhere/demo"
    assert place_of_run("s3://other/demo") == "s3://other/demo"


@pytest.mark.parametrize("runs", ["rel/runs", "~nobody-of-this-name/runs"])
def test_a_folder_of_runs_within_the_job_is_refused(runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY_JOB, JOB)
    monkeypatch.setenv("PRECEPTOR_RUNS", runs)
    with pytest.raises(UserError) as refused:
        place_of_run("demo")
    assert str(refused.value) == (
        f"PRECEPTOR_RUNS: got {runs!r}; allowed: an absolute path or a URL, for a job's own folder is gone with it"
    )


def test_a_job_exports_a_run_from_where_runs_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(RAY_JOB, JOB)
    monkeypatch.setenv("PRECEPTOR_RUNS", str(tmp_path))
    (tmp_path / "runs/x").mkdir(parents=True)
    assert cli.main(["export", "runs/x", "out/p"]) == 2
    assert f"preceptor: {tmp_path}/runs/x holds no run" in capsys.readouterr().err


SENT = json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}, "metadata": {"job_submission_id": "raysubmit_1"}})


@pytest.mark.parametrize(
    ("environment", "lost"),
    [
        ({}, False),
        ({RAY_JOB: JOB, "RAY_ADDRESS": "10.0.0.1:6379"}, False),  # started on this machine, without a copy
        ({RAY_JOB: SENT}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "RAY_ADDRESS": "127.0.0.1:6379"}, True),
    ],
)
def test_no_registry_is_left_where_nobody_finds_it(
    environment: dict[str, str], lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notes: list[str] = []
    assert (address_for_run(None, notes.append) is None) == lost
    assert [note.startswith("registry: none, for PRECEPTOR_REGISTRY is not set on this node") for note in notes] == (
        [True] if lost else []
    )
    named = address_for_run("sqlite:////data/r.db", notes.append)
    monkeypatch.setenv("PRECEPTOR_REGISTRY", "sqlite:////data/r.db")
    assert address_for_run(None, notes.append) == named is not None
    assert len(notes) == lost


def test_a_runs_driver_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from configs.schema.reward import RewardStage
    from orchestrator import jobs
    from orchestrator.progress import Progress

    monkeypatch.setenv(RAY_JOB, SENT)
    recorded: list[object] = []

    class Enough(Exception):
        pass

    def stop_here(address: object, _: object) -> None:
        recorded.append(address)
        raise Enough

    monkeypatch.setattr(jobs, "recording", stop_here)
    config = RewardStage.model_validate(reward_config(run={"dir": str(tmp_path / "run")}))
    with Progress() as progress, pytest.raises(Enough):
        jobs.run(config, overrides_text=[], progress=progress)
    assert recorded == [None]
