"""What libraries of this machine read and write of a store: whole or not at all, once for each version, and gone when it is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from actors.errors import PreceptorError, UserError
from actors.local_files import local_copy, read_once, scratch_of, staged_file, staged_folder
from actors.mirror import Mirror, take_up
from actors.models.checks import name_for_libraries, read_model_config, resolve_folder
from actors.store import object_of, run_path, write_whole
from tests.object_store import BUCKET, Server, bucket, s3_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies and temporary files of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "cache" / "preceptor"


@pytest.fixture
def memory() -> Path:
    fsspec.filesystem("memory").store.clear()
    return run_path("memory://run")


def test_a_file_is_there_when_it_is_whole(memory: Path, tmp_path: Path) -> None:
    for target in (memory / "state.bin", tmp_path / "state.bin"):
        with staged_file(target) as here:
            assert here.name == "state.bin"
            here.write_bytes(b"x" * 1000)
        assert target.read_bytes() == b"x" * 1000

    def break_off() -> None:
        with staged_file(memory / "broken.bin") as here:
            here.write_bytes(b"half")
            raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        break_off()
    assert not (memory / "broken.bin").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.bin"], "nothing is left on this machine"


def test_a_folder_is_uploaded_with_what_is_below_it(memory: Path) -> None:
    with staged_folder(memory / "export") as here:
        (here / "below").mkdir()
        (here / "below" / "b.txt").write_text("b")
        (here / "a.txt").write_text("a")
    assert (memory / "export" / "a.txt").read_text() == "a"
    assert (memory / "export" / "below" / "b.txt").read_text() == "b"


def test_a_model_is_downloaded_once_for_each_version(s3: Server, cache: Path) -> None:
    model = bucket("models/one")
    for name, text in (("config.json", '{"a": 1}'), ("model.safetensors", "weights"), ("below/c.json", "{}")):
        write_whole(model / name, text.encode())
    url = str(model)
    assert read_model_config(url) == {"a": 1}
    light, whole = resolve_folder(url, weights=False), resolve_folder(url)
    assert sorted(path.name for path in light.iterdir()) == ["below", "config.json"]
    assert (whole / "model.safetensors").read_text() == "weights"
    assert name_for_libraries(url) == str(light)
    assert name_for_libraries("org/model") == "org/model"
    before = [request for request in s3.requests if "model.safetensors" in request]
    assert resolve_folder(url) == whole
    assert [request for request in s3.requests if "model.safetensors" in request] == before, "it is there already"
    write_whole(model / "model.safetensors", b"WEIGHTS")
    assert (resolve_folder(url) / "model.safetensors").read_text() == "WEIGHTS", "of the same length"
    assert {path.suffix for path in cache.iterdir()} == {"", ".lock"}, "nothing half"


def test_a_download_that_fails_leaves_no_copy(s3: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3 is not None
    for name in ("a.json", "b.json"):
        write_whole(bucket("models/two") / name, b"{}")
    store, _ = object_of(bucket("models/two"))
    real = store.get_file

    def get_file(name: str, target: str) -> None:
        if name.endswith("b.json"):
            raise PermissionError("Access Denied")
        real(name, target)

    monkeypatch.setattr(store, "get_file", get_file)
    with pytest.raises(PreceptorError, match=rf"^s3://{BUCKET}/models/two/b.json can't be read: Access Denied"):
        local_copy(bucket("models/two"))
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_two_processes_share_one_download(s3: Server, tmp_path: Path) -> None:
    write_whole(bucket("models/three/model.safetensors"), b"w" * 100_000)
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from actors.models.checks import resolve_folder
print(resolve_folder("s3://{BUCKET}/models/three"))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    readers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    found = {reader.communicate(timeout=60)[0] for reader in readers}
    assert len(found) == 1
    gets = [request for request in s3.requests if request == f"GET /{BUCKET}/models/three/model.safetensors"]
    assert len(gets) == 1


def test_what_is_read_once_goes_again(memory: Path, cache: Path, tmp_path: Path) -> None:
    write_whole(memory / "checkpoints/00000001/policy/state.safetensors", b"s")
    with read_once(memory / "checkpoints/00000001/policy") as here:
        assert (here / "state.safetensors").read_bytes() == b"s"
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    with read_once(tmp_path) as same:
        assert same == tmp_path
    assert tmp_path.is_dir()


def test_a_folder_that_is_not_there_is_named(memory: Path) -> None:
    with pytest.raises(UserError, match="memory://run/nothing does not exist, or has no file"):
        local_copy(memory / "nothing")


def test_a_log_goes_on_where_the_last_process_stopped(memory: Path) -> None:
    here = scratch_of(memory)
    log = here / "logs" / "policy-0.log"
    take_up(log, memory / "logs" / "policy-0.log")
    with log.open("ab") as file:
        file.write(b"first\n")
    mirror = Mirror(here, memory, wanted=lambda _: False)
    mirror.start()
    mirror.close()
    assert (memory / "logs" / "policy-0.log").read_bytes() == b"first\n", "whole at the end, wanted or not"
    log.unlink()
    take_up(log, memory / "logs" / "policy-0.log")
    assert log.read_bytes() == b"first\n"


def test_logs_are_uploaded_while_they_grow(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.mirror.EVERY_S", 0.01)
    here = scratch_of(memory)
    for name in ("mine.log", "others.log"):
        (here / name).write_text("1")
    mirror = Mirror(here, memory, wanted=lambda file: file.name == "mine.log")
    mirror.start()
    deadline = time.monotonic() + 30
    while not (memory / "mine.log").exists():
        assert time.monotonic() < deadline
    assert not (memory / "others.log").exists()
    mirror.close()
    assert (memory / "others.log").read_text() == "1"


def test_a_log_that_can_not_be_uploaded_is_told_once_and_ends_nothing(
    memory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", refuse)
    here = scratch_of(memory)
    (here / "driver.log").write_text("x")
    mirror = Mirror(here, memory)
    mirror._upload()
    mirror.start()
    mirror.close()
    assert capsys.readouterr().err == (
        "a log could not be uploaded: memory://run/driver.log can't be written: Access Denied\n"
    )


def test_the_scratch_folder_is_ones_own(memory: Path, tmp_path: Path) -> None:
    folder = scratch_of(memory)
    assert folder == scratch_of(run_path("memory://run/"))
    assert folder != scratch_of(memory / "sft")
    assert folder.stat().st_mode & 0o077 == 0
    assert scratch_of(tmp_path) == tmp_path
    folder.rmdir()
    folder.symlink_to("/usr")
    with pytest.raises(UserError, match="belongs to somebody else"):
        scratch_of(memory)
