"""Run directories in an S3 bucket: taken, refused, left as they were, locked; and what commands say of them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.errors import PreceptorError, UserError
from actors.local_files import scratch_of
from actors.store import create_only, entries, put_file, read_bytes, write_whole
from configs.load import load_config
from configs.schema import Pipeline
from orchestrator import store_lock
from orchestrator.chat import model_of
from orchestrator.cli import main
from orchestrator.jobs import resolve_references
from orchestrator.lineage import read_lineage, write_lineage
from orchestrator.mirrored import mirrored
from orchestrator.progress import DRIVER_LOG
from orchestrator.run_dir import existing_run, locked, new_run, same_data, same_plan
from tests.object_store import BUCKET, Server, bucket, s3_server
from tests.orchestrator.registry.small_runs import make_run


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Server) -> None:
    assert s3 is not None
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    return bucket(request.node.name.replace("[", "-").replace("]", ""))


def names(folder: Path) -> list[str]:
    return [path.name for path in entries(folder)]


def test_a_run_begins_and_goes_on(folder: Path) -> None:
    with new_run(str(folder), "stage: ppo\n") as run_dir:
        same_data(run_dir, "a" * 64, "data.path")
        same_plan(run_dir, '{"roles": 1}', deterministic=True, note=pytest.fail)
        assert "driver.lock" in names(folder)
    assert names(folder) == ["config.yaml", "data.json", "plan.json"]
    with existing_run(str(folder)) as again:
        assert again == run_dir
        same_data(again, "a" * 64, "data.path")
        with pytest.raises(UserError, match="is not the data"):
            same_data(again, "b" * 64, "data.path")
    with pytest.raises(UserError, match=r"is not empty.*`preceptor resume s3://"), new_run(str(folder), "x"):
        pass


def test_nothing_is_left_of_a_run_that_never_began(folder: Path, tmp_path: Path) -> None:
    def begin() -> None:
        with new_run(str(folder), "stage: ppo\n") as run_dir, mirrored(run_dir) as here:
            (here / DRIVER_LOG).write_text("noise")
            raise UserError("bad")

    with pytest.raises(UserError, match="bad"):
        begin()
    assert names(folder) == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_what_a_failed_run_wrote_to_its_log_is_in_the_store(folder: Path) -> None:
    def begin(text: str) -> None:
        with mirrored(folder) as here:
            with (here / DRIVER_LOG).open("a") as log:
                log.write(text)
            (here / "logs" / "policy-0.log").write_text("last words")
            raise PreceptorError("failed")

    for text in ("one\n", "two\n"):
        with pytest.raises(PreceptorError, match="failed"):
            begin(text)
    assert (folder / DRIVER_LOG).read_text() == "one\ntwo\n"
    assert (folder / "logs" / "policy-0.log").read_text() == "last words"


@pytest.mark.parametrize(("in_store", "then"), [("", "one two"), ("one ", "one two"), ("one and elsewhere", None)])
def test_what_a_killed_driver_could_not_upload_is_not_lost(folder: Path, in_store: str, then: str | None) -> None:
    """Unless the run has gone on elsewhere since."""
    log = folder / "logs" / "policy-0.log"
    if in_store:
        write_whole(log, in_store.encode())
    left = scratch_of(folder) / "logs" / "policy-0.log"
    left.parent.mkdir()
    left.write_text("one two")
    with mirrored(folder) as here:
        assert not (here / "logs" / "policy-0.log").exists()
    assert read_bytes(log).decode() == (then or in_store)


def test_a_second_driver_of_this_machine_is_told_at_once(folder: Path) -> None:
    with locked(folder), pytest.raises(UserError, match=r"is in use by process .*; allowed: one driver"):  # noqa: SIM117
        with locked(folder):
            pass
    with locked(folder):
        pass


def of_another_machine(beat: int) -> bytes:
    return json.dumps({"driver": "process 1 on afar", "host": "afar", "token": "t", "beat": beat}).encode()


def test_a_driver_of_another_machine_that_lives_is_not_disturbed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = folder / "driver.lock"
    write_whole(lock, of_another_machine(1))
    reads = iter([of_another_machine(1), of_another_machine(1), of_another_machine(2)])
    monkeypatch.setattr(store_lock, "_read", lambda _: json.loads(next(reads)))
    monkeypatch.setattr(store_lock, "BEAT_S", 0.01)
    notes: list[str] = []
    with pytest.raises(UserError, match="is in use by process 1 on afar; allowed: one"), locked(folder, notes.append):
        pass
    assert notes == [f"{lock} names process 1 on afar: waiting 20 s for a sign of life"]
    monkeypatch.undo()
    assert lock.read_bytes() == of_another_machine(1)


@pytest.mark.parametrize("left", ["dead", "ours", "damaged"])
def test_a_lock_that_nobody_holds_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    lock = folder / "driver.lock"
    ours = json.dumps({"driver": "process 1", "host": socket.gethostname(), "token": "t", "beat": 1}).encode()
    write_whole(lock, {"dead": of_another_machine(1), "ours": ours, "damaged": b"{"}[left])
    monkeypatch.setattr(store_lock, "WATCH_S", 0.2)
    monkeypatch.setattr(store_lock, "BEAT_S", 0.1)
    with locked(folder):
        assert json.loads(read_bytes(lock))["driver"] == store_lock.this_driver()
    assert names(folder) == []


def test_a_driver_gives_signs_of_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[int] = []
    second = threading.Event()

    def beat(lock: Path, token: str, number: int) -> None:
        assert lock == folder / "driver.lock"
        assert token
        beats.append(number)
        if number == 2:
            second.set()

    monkeypatch.setattr(store_lock, "BEAT_S", 0.01)
    monkeypatch.setattr(store_lock, "_beat", beat)
    with locked(folder):
        assert second.wait(timeout=30)
    assert beats[:3] == [0, 1, 2]


def test_the_lock_of_who_took_over_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = folder / "driver.lock"
    write_whole(lock, of_another_machine(7))
    monkeypatch.setattr(store_lock, "BEAT_S", 0.01)
    store_lock._beats(lock, "mine", threading.Event())
    store_lock._remove(lock, "mine")
    assert read_bytes(lock) == of_another_machine(7)
    assert capsys.readouterr().err == f"{lock} was taken over by process 1 on afar\n"


# ---------------------------------------------------------------------------------------------------------------- pipelines

PIPELINE = """
stage: pipeline
run: {{dir: {dir}}}
stages:
  sft:
    stage: sft
    data: {{path: a.jsonl, format: conversation, max_tokens: 8}}
    model: {{model: m}}
  judge:
    stage: rank
    data: {{path: p.jsonl, max_prompt_tokens: 8}}
    policy: {{model: "stage:sft"}}
    annotator: {{function: "a:b"}}
    rollout: {{responses_per_prompt: 2, max_response_tokens: 4, prompts_per_wave: 2}}
  reward:
    stage: reward
    data: {{path: "stage:judge", format: ranking, max_tokens: 8}}
    model: {{model: "stage:sft"}}
    training: {{groups_per_step: 1, epochs: 1}}
"""


def pipeline(tmp_path: Path, folder: Path) -> Pipeline:
    (tmp_path / "p.yaml").write_text(PIPELINE.format(dir=folder))
    config = load_config(tmp_path / "p.yaml")
    assert isinstance(config, Pipeline)
    return config


def test_stages_of_a_pipeline_find_each_others_exports(tmp_path: Path, folder: Path) -> None:
    config = pipeline(tmp_path, folder)
    assert config.stages["sft"].run.dir == f"{folder}/sft"
    reward = resolve_references(config.stages["reward"], folder)
    assert reward.model_dump()["model"]["model"] == f"{folder}/sft/export"
    assert reward.data.path == f"{folder}/judge/export/rankings.jsonl"


def test_chat_and_lineage_take_the_url_of_a_run(tmp_path: Path, folder: Path) -> None:
    pipeline(tmp_path, folder)
    create_only(folder / "config.yaml", (tmp_path / "p.yaml").read_bytes())
    with pytest.raises(UserError, match="none has one yet"):
        model_of(str(folder))
    write_whole(folder / "sft" / "export" / "config.json", b"{}")
    create_only(folder / "sft" / "config.yaml", b"")
    assert model_of(f"{folder}/sft") == f"{folder}/sft/export"
    with pytest.raises(UserError, match=rf"'s3://{BUCKET}/.*/sft'"):
        model_of(str(folder))
    made = {"format": 1, "stage": "sft"}
    write_lineage(folder / "sft" / "export", made)
    for artefact in ("sft/export", "sft/export/config.json"):
        assert read_lineage(f"{folder}/{artefact}") == made
    with pytest.raises(UserError, match="ARTEFACT: there is no 's3://"):
        read_lineage(f"{folder}/nothing")


# --------------------------------------------------------------------------------------------------------- the command line


def test_a_run_whose_objects_cannot_be_read_is_one_message(
    folder: Path, s3: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its bucket can be listed: so it is where rights are missing, or run out on the way."""
    here = make_run(tmp_path / "run")
    for file in (path for path in here.rglob("*") if path.is_file()):
        put_file(file, folder / file.relative_to(here).as_posix())
    monkeypatch.setenv("PRECEPTOR_REGISTRY", f"sqlite:///{tmp_path}/r.db")
    assert main(["show", str(folder)]) == 0
    capsys.readouterr()
    commands: list[list[str]] = [["show"], ["diff", str(here)], ["report"], ["runs", "--sync"]]
    for closed, more in (("config.yaml", [["lineage"]]), ("/ledger/", [])):
        monkeypatch.setattr(s3, "closed", closed)
        for command in [*commands, *more]:
            assert main([*command, str(folder)]) == 1
            error = capsys.readouterr().err
            assert error.count("\n") == 1, error
            assert "can't be read" in error
            assert str(folder) in error
            assert "unexpected" not in error


@pytest.mark.parametrize("option", ["--sync", "--dir"])
def test_an_option_that_names_a_bucket_that_is_not_there_is_one_message(
    option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["runs", "--registry", f"sqlite:///{tmp_path}/r.db"]
    if option == "--dir":
        command = ["reproduce", str(make_run(tmp_path / "run")), "--check"]
    assert main([*command, option, "s3://no-such-bucket/run"]) == 2
    assert capsys.readouterr().err.startswith(
        f"preceptor: {option}: s3://no-such-bucket/run can't be used: The specified bucket does not exist; allowed: "
    )


@pytest.mark.parametrize("command", ["resume", "report", "export"])
def test_a_url_without_a_run_is_one_message(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rest = [str(tmp_path / "out")] if command == "export" else []
    for url, said in (
        (f"s3://{BUCKET}/nothing", f"s3://{BUCKET}/nothing holds no run: config.yaml is missing; allowed: the run.dir"),
        ("s3://no-such-bucket/run", "RUN_DIR: s3://no-such-bucket/run can't be used: The specified bucket does not"),
        ("s3://MYKEY:sec/ret@b/run", "RUN_DIR: got a URL that holds a password, key or signature; allowed: a URL"),
    ):
        assert main([command, url, *rest]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"preceptor: {said}")
        assert error.count("\n") == 1
        assert "sec/ret" not in error


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"]])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://no-such-bucket/run", "run.dir: s3://no-such-bucket/run can't be used: The specified bucket does not"),
        ("floppy://a/run", "run.dir: got 'floppy://a/run', whose scheme fsspec does not know; allowed: a folder, or"),
        ("abfs://c@account/run", "run.dir: abfs:// needs a library that is not installed: "),
    ],
)
def test_a_store_that_can_hold_no_run_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], url: str, said: str
) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.format(dir=url))
    assert main([*command, str(tmp_path / "p.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"preceptor: {said}")
    assert error.count("\n") == 1


def test_a_config_with_a_secret_is_refused_without_saying_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.format(dir="s3://MYKEY:sec/ret@bucket/run"))
    overrides = ["stages.sft.model.model=s3://MYKEY:sec/ret@b/m", "stages.sft.data.path=https://h/a.jsonl?sig=sec/ret"]
    assert main(["run", str(tmp_path / "p.yaml"), *overrides]) == 2
    error = capsys.readouterr().err
    for key in ("run.dir", "stages.sft.model.model", "stages.sft.data.path"):
        assert f"{key}: got a URL that holds a password, key or signature; allowed: a URL without user" in error
    assert "sec/ret" not in error
    assert "MYKEY" not in error
