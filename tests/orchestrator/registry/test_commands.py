"""`preceptor runs`, `show`, `diff`, `compare` of runs, `reproduce`, on run directories and on a registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli
from orchestrator.sessions import read_sessions
from tests.orchestrator.registry.small_runs import make_run
from tests.tiny_models import make_tiny_causal_lm


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs, and beside it a registry that has them."""
    folder = tmp_path_factory.mktemp("made") / "runs"
    make_run(folder / "a")
    make_run(folder / "b", losses=(3.0, 2.5), end="failed", model={"optimizer": {"lr": 2e-3}}, run={"seed": 7})
    make_run(folder / "c", losses=(4.0,), end=None, model={"optimizer": {"lr": 5e-4}})
    assert cli.main(["runs", "--sync", str(folder), "--registry", f"sqlite:///{folder.parent}/r.db"]) == 0
    return folder


@pytest.fixture
def runs(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`made`, its registry being the one that the environment names. Only to be read."""
    monkeypatch.setenv("PRECEPTOR_REGISTRY", f"sqlite:///{made.parent}/r.db")
    return made


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """What a command prints: on stdout where it went well, its one message where not."""
    capsys.readouterr()
    assert cli.main([*argv]) == code
    out = capsys.readouterr()
    return out.err.strip() if code == 2 else out.out


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    return [run["name"] for run in json.loads(said(capsys, "runs", "--json", *argv))]


# ------------------------------------------------------------------------------------------------------------------------ runs


def test_runs_are_filtered_and_sorted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys) == ["c", "b", "a"]
    assert listed(capsys, "--state", "lost") == ["c"]
    assert listed(capsys, "--where", "model.optimizer.lr>=0.001") == ["b", "a"]
    assert listed(capsys, "--where", "model.optimizer.lr>=0.001", "--where", "run.seed!=7") == ["a"]
    assert listed(capsys, "--where", "data.path=rows.jsonl", "--limit", "2") == ["c", "b"]
    assert listed(capsys, "--metric", "loss<3") == ["b", "a"]
    assert listed(capsys, "--sort", "loss") == ["c", "b", "a"]
    assert listed(capsys, "--sort", "model.optimizer.lr", "--ascending") == ["c", "a", "b"]
    assert listed(capsys, "--under", str(runs / "b")) == ["b"]
    assert listed(capsys, "--stage", "ppo") == []


def test_the_list_shows_what_it_is_asked_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "runs", "--metric", "loss", "--where", "run.seed=7")
    head, row = out.splitlines()
    assert head.split() == [
        "id",
        "state",
        "stage",
        "started",
        "(UTC)",
        "time",
        "GPU-hours",
        "steps",
        "loss",
        "run.seed",
        "run_dir",
    ]
    run_id = read_sessions(runs / "b")[0].run_id
    assert row.split()[:3] == [run_id[:12], "failed", "sft"]
    assert row.split()[-4:] == ["2", "2.5", "7", str(runs / "b")]
    assert "no runs fit" in said(capsys, "runs", "--state", "running")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--limit", "0"], "--limit: got 0; allowed: a whole number of at least 1"),
        (
            ["--sync", "nowhere"],
            "--sync: got 'nowhere', which is no folder; allowed: a run directory, or a folder with some",
        ),
        (
            ["--where", "model.optimizer.l>=1"],
            "--where: got 'model.optimizer.l' (did you mean 'model.optimizer.lr'?); allowed: a key that one of the runs has",
        ),
        (
            ["--where", "lr"],
            "--where: got 'lr'; allowed: a name, one of >= <= > < != =, and a value, such as 'run.seed=3'",
        ),
        (
            ["--where", "run.seed>many"],
            "--where: got 'run.seed>many', and 'many' is no number; allowed: a number after >",
        ),
        (["--metric", "score"], "--metric: got 'score'; allowed: a metric that one of the runs has"),
        (
            ["--sort", "los"],
            "--sort: got 'los' (did you mean 'loss'?); allowed: a column, metric or key that one of the runs has",
        ),
        (
            ["--registry", "off"],
            "there is nothing to list, and the registry is off; allowed: --registry URL or PRECEPTOR_REGISTRY=URL",
        ),
    ],
)
def test_bad_filters_are_one_message(
    runs: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert said(capsys, "runs", *argv, code=2) == f"preceptor: {message}"


def test_a_directory_that_cannot_be_read_does_not_keep_the_others_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        make_run(tmp_path / "runs" / name)
    with (tmp_path / "runs" / "a" / "config.yaml").open("a") as config:
        config.write("of_a_later_version: 1\n")
    (tmp_path / "runs" / "b" / "sessions" / "00000001.begin.json").write_text("{")
    argv = ["runs", "--sync", str(tmp_path / "runs"), "--registry", f"sqlite:///{tmp_path}/r.db", "--json"]
    assert cli.main(argv) == 1
    out = capsys.readouterr()
    assert [run["name"] for run in json.loads(out.out)] == ["c"]
    assert f"preceptor: {tmp_path}/runs/a is left out: " in out.err
    assert "of_a_later_version" in out.err
    assert f"preceptor: {tmp_path}/runs/b is left out: {tmp_path}/runs/b/sessions/00000001.begin.json can't" in out.err


def test_a_folder_that_is_not_there_is_no_beginning_of_an_id(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["show"], ["reproduce"], ["compare", str(runs / "a")], ["diff", str(runs / "a")]):
        assert said(capsys, *command, f"{runs}/gone", code=2) == (
            f"preceptor: RUN: got '{runs}/gone', which is no folder; allowed: a run directory, or the beginning of a run's id (`preceptor "
            "runs --under DIR` lists those whose directory was in DIR)"
        )


def test_a_run_refuses_a_bad_registry_before_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(Path(__file__).resolve().parents[3] / "configs/recipes/bandit.yaml")
    run_dir = tmp_path / "run"
    message = said(capsys, "run", recipe, f"run.dir={run_dir}", "--registry", "postgresql://u:secret@h/d", code=2)
    assert message.startswith("preceptor: --registry: got an address with a password")
    assert not run_dir.exists()


# -------------------------------------------------------------------------------------------------------------- show, diff


def test_a_run_is_shown_by_folder_and_by_id(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = read_sessions(runs / "b")[0].run_id
    by_folder, by_id = (said(capsys, "show", name) for name in (str(runs / "b"), run_id[:10]))
    assert by_folder == by_id
    assert "the disk is full" in by_id
    assert "model.optimizer.lr=1e-3" in by_id
    whole = json.loads(said(capsys, "show", run_id, "--json"))
    assert [step["metrics"]["loss"] for step in whole["steps"]] == [3.0, 2.5]
    assert whole["packages"]["pydantic"]
    assert "got 'zz', and no run has it" in said(capsys, "show", "zz", code=2)


def test_a_difference_is_shown_with_both_values_and_gives_exit_code_1(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(said(capsys, "diff", str(runs / "a"), read_sessions(runs / "b")[0].run_id, "--json", code=1))
    differences = {
        (one["area"], one["key"]): (one["a"], one["b"], one["a_default"], one["b_default"]) for one in found["found"]
    }
    assert differences == {
        ("config", "run.seed"): (0, 7, True, False),
        ("config", "model.optimizer.lr"): (1e-3, 2e-3, False, False),
        ("steps", "2"): ("2/2.0", "2/2.5", False, False),
    }
    text = said(capsys, "diff", str(runs / "a"), str(runs / "b"), code=1)
    assert "0 (default)" in text
    assert "A has 3 steps, B has 2" in text


def test_the_same_gives_exit_code_0(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "elsewhere")
    out = said(capsys, "diff", str(runs / "a"), str(tmp_path / "elsewhere"))
    assert out == "the same\nthe digests of 3 common steps are the same\n"


def test_a_run_and_a_config_file_are_compared_by_config(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text((runs / "a/config.yaml").read_text())
    assert said(capsys, "diff", str(runs / "a"), str(tmp_path / "c.yaml")).startswith("the same\n")
    (tmp_path / "c.yaml").write_text((runs / "a/config.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert "run.seed  0 (default)" in said(capsys, "diff", str(runs / "a"), str(tmp_path / "c.yaml"), code=1)
    assert "does not exist" in said(capsys, "diff", "none.yaml", str(runs / "a"), code=2)


def test_other_data_packages_code_and_plan_are_differences(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path / "other")
    (other / "data.json").write_text(json.dumps({"fingerprint": "e" * 64}))
    session = other / "sessions/00000001.begin.json"
    told = json.loads(session.read_text())
    told["packages"]["torch"] = "1.0"
    told["code"]["sources_sha256"] = "0" * 64
    session.write_text(json.dumps(told))
    plan = json.loads((other / "plan.json").read_text())
    (role,) = plan["roles"]
    plan["roles"][role]["threads"] += 1
    (other / "plan.json").write_text(json.dumps(plan))
    found = json.loads(said(capsys, "diff", str(runs / "a"), str(other), "--json", code=1))["found"]
    assert [(one["area"], one["key"]) for one in found] == [
        ("code", "sources_sha256"),
        ("data", "data.path"),
        ("packages", "torch"),
        ("plan", f"roles.{role}.threads"),
    ]


# ------------------------------------------------------------------------------------------------------------------- compare


def test_runs_are_compared_as_table_page_picture_and_json(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("html", "png", "json")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    out = said(capsys, "compare", *(str(runs / name) for name in "abc"), *options)
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["loss"] == ["1", "2.5", "4"]
    assert rows["model.optimizer.lr"] == ["0.001", "0.002", "0.0005"]
    assert rows["run.seed"] == ["0", "7", "0"]
    assert "run.dir" not in rows
    assert "data.path" not in rows
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    page = files["html"].read_text()
    assert page.count("<polyline") == 2, "one step is no curve"
    assert "<script" not in page
    assert "http" not in page
    drawn = json.loads(files["json"].read_text())["runs"]
    assert drawn[0]["curves"]["loss"] == [[1, 3.0], [2, 2.0], [3, 1.0]]
    assert [run["differs"]["run.seed"] for run in drawn] == [0, 7, 0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--seed", "3"],
            "--seed: got 3 without --prompts; allowed: --prompts FILE, which compares two models' answers",
        ),
        (["data.max_rows=3"], "compare: got 'data.max_rows=3'; allowed: runs, or --prompts FILE with key=value"),
        (["--metric", "score"], "--metric: got 'score'; allowed: loss"),
        (["--png", "same", "--html", "same"], "--html and --png: got one file for two; allowed: a file each"),
    ],
)
def test_what_does_not_go_with_runs_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    told = said(capsys, "compare", str(runs / "a"), str(runs / "b"), *argv, code=2)
    assert told == f"preceptor: {message}"


def test_what_does_not_go_with_answers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "compare", "m", "n", "--prompts", "p.jsonl", "--png", "x.png", code=2)
    assert told == "preceptor: --png: got it with --prompts; allowed: only where runs are compared"
    told = said(capsys, "compare", "m", "n", "o", "--prompts", "p.jsonl", code=2)
    assert told == "preceptor: compare: got a third model, 'o'; allowed: two with --prompts, more runs without"


def test_a_picture_without_a_curve_is_refused(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = said(capsys, "compare", str(runs / "c"), str(runs / "c"), "--png", str(tmp_path / "x.png"), code=2)
    assert told == "preceptor: --png: no metric has two steps yet; allowed: runs with at least two committed steps"


# ------------------------------------------------------------------------------------------------------------------- reproduce


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A run whose data and model are there, as its driver would have noted them."""
    from actors.preflight import check_supervised
    from configs.load import load_config
    from configs.schema.supervised import SFTStage
    from orchestrator.machine import local_machine
    from orchestrator.plan import make_plan, plan_json

    make_tiny_causal_lm(tmp_path / "model", tied=True)
    row = {"messages": [{"role": "user", "content": "what is it ?"}, {"role": "assistant", "content": "good"}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 40)
    data = {"path": str(tmp_path / "rows.jsonl"), "max_tokens": 64, "held_out_rows": 4}
    run_dir = make_run(tmp_path / "run", data=data, model={"model": str(tmp_path / "model")})
    config = load_config(run_dir / "config.yaml")
    assert isinstance(config, SFTStage)
    facts = check_supervised(config)
    (run_dir / "data.json").write_text(json.dumps({"fingerprint": facts.fingerprint}))
    (run_dir / "models.json").write_text(json.dumps({key: dict(model) for key, model in facts.models.items()}))
    (run_dir / "plan.json").write_text(plan_json(make_plan(config, local_machine())))
    return run_dir


def test_reproduce_starts_the_same_config_where_everything_is_the_same(
    real: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import jobs

    assert said(capsys, "reproduce", str(real), "--check").startswith("the same\nthe run was deterministic")
    started: list[Any] = []
    monkeypatch.setattr(jobs, "run", lambda config, **more: started.append((config, more["overrides_text"])))
    out = said(capsys, "reproduce", str(real), "--dir", f"{real}-2")
    assert f"preceptor diff {real} {real}-2" in out
    ((config, overrides),) = started
    assert config.run.dir == f"{real}-2"
    assert (config.model.optimizer.lr, overrides) == (1e-3, ["model.optimizer.lr=1e-3"])


def test_reproduce_says_what_is_not_the_same_and_starts_only_if_told_to(
    real: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import jobs

    started: list[Any] = []
    monkeypatch.setattr(jobs, "run", lambda config, **_: started.append(config))
    rows = real.parent / "rows.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace("good", "bad", 1))
    out = said(capsys, "reproduce", str(real), code=1)
    assert [line.split()[:2] for line in out.splitlines()[1:2]] == [["data", "data.path"]]
    assert "not started; --anyway starts it all the same" in out
    rows.unlink()
    assert "rows.jsonl" in said(capsys, "reproduce", str(real), "--check", code=1)
    assert started == []
    rows.write_text(text.replace("good", "bad", 1))
    said(capsys, "reproduce", str(real), "--anyway")
    assert [config.run.dir for config in started] == [f"{real}-again"]


def test_reproduce_refuses_what_cannot_fit(
    real: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import jobs

    started: list[Any] = []
    monkeypatch.setattr(jobs, "run", lambda config, **_: started.append(config))
    monkeypatch.setattr("orchestrator.estimate.preflight.local_memory_bytes", lambda: 1.0)
    assert "does not fit" in said(capsys, "reproduce", str(real), code=2)
    assert started == []
    said(capsys, "reproduce", str(real), "--skip-memory-check")
    assert len(started) == 1


def test_a_run_whose_folder_is_gone_is_reproduced_from_the_registry(
    real: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_REGISTRY", f"sqlite:///{real.parent}/r.db")
    run_id = read_sessions(real)[0].run_id
    said(capsys, "runs", "--sync", str(real))
    shutil.rmtree(real)
    assert said(capsys, "reproduce", run_id[:8], "--check").startswith("the same\n")


def test_reproduce_needs_a_new_folder(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "reproduce", str(real), "--dir", str(real), code=2)
    assert told == f"preceptor: --dir: {real} is not empty; allowed: a new or empty folder, such as --dir {real}-2"
