"""Places of runs: the same operations on a folder, in fsspec's memory and in an S3 bucket; what a store refuses; who wins a race."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from actors.errors import PreceptorError, UserError
from actors.store import (
    create_only,
    empty,
    entries,
    is_local,
    make_folder,
    reason,
    remove_tree,
    require_listed,
    require_store,
    run_path,
    write_whole,
)
from orchestrator.checkpoints import Checkpoints
from orchestrator.ledger import Ledger, SupervisedEntry, num_committed
from tests.object_store import BUCKET, Server, bucket, forget_clients, s3_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: Server) -> Path:
    """An empty place of each kind."""
    assert s3 is not None
    name = f"{request.node.name}-run".replace("[", "-").replace("]", "")
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
    return {"folder": tmp_path / "run", "memory": run_path(f"memory://{name}"), "s3": bucket(name)}[request.param]


def names(folder: Path) -> list[str]:
    return [path.name for path in entries(folder)]


def test_a_file_is_created_once_and_written_any_number_of_times(place: Path) -> None:
    assert entries(place) == []
    create_only(place / "ledger" / "1.json", b"first")
    with pytest.raises(FileExistsError):
        create_only(place / "ledger" / "1.json", b"second")
    assert (place / "ledger" / "1.json").read_bytes() == b"first"
    for text in (b"a", b"longer"):
        write_whole(place / "logs" / "driver.log", text)
        assert (place / "logs" / "driver.log").read_bytes() == text
    create_only(place / "empty", b"")
    assert (place / "empty").read_bytes() == b""
    assert names(place) == ["empty", "ledger", "logs"]


def test_what_is_listed_is_what_is_there(place: Path) -> None:
    make_folder(place / "checkpoints")
    write_whole(place / "a.txt", b"1")
    for step in (1, 2):
        write_whole(place / "checkpoints" / f"{step:08d}" / "manifest.json", b"{}")
    # another process writes: nothing may be remembered of a listing
    again = run_path(str(place))
    assert names(again / "checkpoints") == ["00000001", "00000002"]
    write_whole(place / "checkpoints" / "00000003" / "manifest.json", b"{}")
    assert names(again / "checkpoints") == ["00000001", "00000002", "00000003"]
    assert sorted(path.parent.name for path in again.glob("checkpoints/*/manifest.json"))[-1] == "00000003"
    remove_tree(place / "checkpoints" / "00000002")
    remove_tree(place / "checkpoints" / "never was")
    assert names(again / "checkpoints") == ["00000001", "00000003"]
    empty(place)
    assert names(place) == []


def test_a_ledger_and_its_checkpoints(place: Path) -> None:
    ledger = Ledger(place, SupervisedEntry)
    assert ledger.last_step() == 0
    for step in (1, 2, 3):
        ledger.commit(SupervisedEntry(step=step, digest=f"d{step}", metrics={}))
    with pytest.raises(PreceptorError, match=r"step 2 of .* is committed already: another driver works"):
        ledger.commit(SupervisedEntry(step=2, digest="other", metrics={}))
    assert [ledger.read(step).digest for step in (1, 2, 3)] == ["d1", "d2", "d3"]
    assert num_committed(place) == ledger.last_step() == 3
    checkpoints = Checkpoints(place, keep=1)
    for step in (1, 2):
        write_whole(checkpoints.prepare(step) / "policy" / "of an attempt that was broken off", b"x")
        assert entries(checkpoints.prepare(step)) == []
        checkpoints.commit(step, {}, {"step": step})
    assert checkpoints.steps() == [2]
    assert checkpoints.newest(3, pytest.fail) == 2
    write_whole(checkpoints.folder(2) / "manifest.json", b"{")
    notes: list[str] = []
    assert checkpoints.newest(3, notes.append) == 0
    assert "is missing or damaged" in notes[0]
    assert names(checkpoints.folder(2)) == ["manifest.damaged"]
    (place / "ledger" / "00000002.json").unlink()
    with pytest.raises(PreceptorError, match=r"lacks the steps \[2\]"):
        ledger.last_step()


def test_of_many_writers_exactly_one_creates_the_object(s3: Server) -> None:
    path, start, won = bucket("race/ledger/00000001.json"), threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait(timeout=30)
        try:
            create_only(path, str(number).encode())
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(won) == 1
    assert path.read_bytes() == str(won[0]).encode()
    assert sum(request == f"PUT /{BUCKET}/race/ledger/00000001.json" for request in s3.requests) == 8


def test_of_two_processes_exactly_one_commits_each_step(s3: Server) -> None:
    assert s3 is not None
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from actors.errors import PreceptorError
from actors.store import run_path
from orchestrator.ledger import Ledger, SupervisedEntry
ledger = Ledger(run_path("s3://{BUCKET}/processes"), SupervisedEntry)
print("ready", flush=True); sys.stdin.readline()
for step in range(1, 21):
    try:
        ledger.commit(SupervisedEntry(step=step, digest=sys.argv[1], metrics={{}}))
        print(step, flush=True)
    except PreceptorError:
        pass
"""
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for name in ("a", "b")
    ]
    for driver in drivers:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
    won = [[int(line) for line in driver.communicate(timeout=60)[0].split()] for driver in drivers]
    assert sorted(won[0] + won[1]) == list(range(1, 21))
    ledger = Ledger(bucket("processes"), SupervisedEntry)
    assert [step for step in range(1, 21) if ledger.read(step).digest == "a"] == won[0]


def test_a_lost_answer_is_no_other_driver(s3: Server) -> None:
    """The write happens, the answer is lost, the library asks again and finds the object there: its own."""
    s3.lose_answers = 1
    create_only(bucket("lost/1.json"), b"mine")
    assert s3.lose_answers == 0
    assert bucket("lost/1.json").read_bytes() == b"mine"
    s3.lose_answers = 1
    with pytest.raises(FileExistsError):
        create_only(bucket("lost/1.json"), b"other")
    s3.lose_answers = 0


def test_a_create_that_meets_another_is_asked_again(s3: Server) -> None:
    s3.fail(409, 2)
    create_only(bucket("conflict/1.json"), b"1")
    s3.fail(409, 1)
    with pytest.raises(FileExistsError):
        create_only(bucket("conflict/1.json"), b"2")
    assert bucket("conflict/1.json").read_bytes() == b"1"


def test_a_store_that_is_away_for_a_moment_is_asked_again(s3: Server) -> None:
    s3.fail(503, 2)
    write_whole(bucket("flaky/a.txt"), b"1")
    s3.fail(503, 2)
    assert bucket("flaky/a.txt").read_bytes() == b"1"


def test_a_store_that_stays_away_fails_the_step_by_the_objects_name(
    s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    forget_clients()
    path = bucket("away/ledger/00000001.json")
    s3.fail(500, 1000)
    with pytest.raises(PreceptorError, match=rf"^s3://{BUCKET}/away/ledger/00000001.json can't be written: "):
        create_only(path, b"1")
    s3.fail(500, 0)
    forget_clients()


# ---------------------------------------------------------------------------------------------------------- before the start


def test_a_good_place_is_left_as_it_was(s3: Server) -> None:
    write_whole(bucket("good/notes.txt"), b"mine")
    require_store(bucket("good"))
    assert names(bucket("good")) == ["notes.txt"]
    before = len(s3.requests)
    require_listed(bucket("good"))
    assert all(request.startswith("GET") for request in s3.requests[before:]), "a dry run writes nothing"


def test_a_bucket_that_does_not_exist_is_named(s3: Server) -> None:
    assert s3 is not None
    nowhere = run_path("s3://no-such-bucket/run")
    for check in (require_store, require_listed):
        with pytest.raises(
            UserError,
            match=r"^run\.dir: s3://no-such-bucket/run can't be used: The specified bucket does not exist; allowed: a",
        ):
            check(nowhere)


def test_a_bucket_without_rights_is_named(s3: Server) -> None:
    s3.fail(403, 1)
    with pytest.raises(
        UserError, match=rf"^run\.dir: s3://{BUCKET}/closed can't be used: Access Denied; allowed: .* the rights to"
    ):
        require_store(bucket("closed"))
    assert names(bucket("closed")) == []


def test_missing_credentials_are_named(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3 is not None
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    forget_clients()
    with pytest.raises(UserError, match=r"^run\.dir: .* Unable to locate credentials; allowed: .* credentials in the"):
        require_store(bucket("run"))
    monkeypatch.undo()
    forget_clients()


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, s3: Server) -> None:
    assert s3 is not None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_clients()
    with pytest.raises(UserError, match=r"^run\.dir: .* Could not connect to the endpoint URL: .*; allowed: a bucket"):
        require_store(bucket("run"))
    monkeypatch.undo()
    forget_clients()


def test_a_store_that_overwrites_what_it_should_create_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.get_filesystem_class("memory")
    real = memory.pipe_file
    monkeypatch.setattr(memory, "pipe_file", lambda self, path, value, **_: real(self, path, value))
    with pytest.raises(UserError, match=r"run\.dir: the store of memory://run overwrites where it is asked to create"):
        require_store(run_path("memory://run"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("floppy://a/run", "got 'floppy://a/run', whose scheme fsspec does not know"),
        ("abfs://container@account/run", "abfs:// needs a library that is not installed: "),
        ("s3://MYKEY:sec/ret@bucket/run", "got a URL that holds a password, key or signature"),
        ("https://host/run?X-Amz-Signature=qqq", "got a URL that holds a password, key or signature"),
    ],
)
def test_a_url_that_can_be_no_place_is_refused(url: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        run_path(url, "RUN_DIR")
    assert str(refused.value).startswith(f"RUN_DIR: {said}")
    assert not any(secret in str(refused.value) for secret in ("sec/ret", "MYKEY", "qqq"))


def test_what_is_local(tmp_path: Path) -> None:
    assert run_path(f"file://{tmp_path}/run") == tmp_path / "run"
    assert run_path("runs/one") == Path("runs/one")
    assert is_local(run_path("runs/one"))
    assert not is_local(run_path("memory://a"))
    assert str(run_path("memory://a/b/") / "c") == "memory://a/b/c"


def test_why_in_one_line() -> None:
    assert reason(FileNotFoundError(2, "No such file")) == "No such file"
    assert reason(PermissionError("Access Denied")) == "Access Denied"
    assert reason(RuntimeError("a\n b")) == "RuntimeError: a b"
    assert json.dumps(reason(OSError()))
