"""Metrics to TensorBoard's files, wandb's, MLflow's database, Ray's port; a tracker that fails ends only itself."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

from actors.errors import UserError
from configs.schema.run import RunConfig, TrackerName
from orchestrator.progress import Progress
from orchestrator.trackers import TRACKERS_FILE, Tracked, check_trackers, told
from orchestrator.tracking import Guarded, trackers

ROOT = Path(__file__).resolve().parent.parent.parent


def events(folder: Path) -> Iterator[Event]:
    """Records of all event files: length, its checksum, the message, its checksum."""
    for path in sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            yield event
            at += 16 + length


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return [(v.tag, event.step, v.simple_value) for event in events(folder) for v in event.summary.value]


def run(folder: Path, *names: str) -> RunConfig:
    return RunConfig.model_validate({"dir": str(folder), "trackers": names})


def test_steps_are_in_the_event_files_once(tmp_path: Path) -> None:
    notes: list[str] = []
    for last_step, steps in ((0, (1, 2)), (2, (2, 3))):
        with (
            Progress() as progress,
            trackers(run(tmp_path, "tensorboard"), tmp_path, {}, last_step=last_step, note=notes.append) as made,
            progress.tracking(made),
        ):
            progress.begin(3, done=last_step)
            for step in steps:
                progress.step(step, {"score": step / 2, "sync/bytes": 8.0})
    assert scalars(tmp_path) == [
        (name, step, value) for step in (1, 2, 3) for name, value in (("score", step / 2), ("sync/bytes", 8.0))
    ]
    assert notes == []


def test_without_trackers_nothing_is_made(tmp_path: Path) -> None:
    with trackers(run(tmp_path), tmp_path, {}, last_step=0, note=print) as made:
        assert made == []
    assert not list(tmp_path.iterdir())


class Broken:
    asked = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.asked += 1
        raise OSError("no space left on device")

    def close(self, *, failed: bool) -> None:
        self.asked += 1


def test_a_tracker_that_fails_is_told_once_and_left_alone() -> None:
    notes: list[str] = []
    broken = Broken()
    guarded = Guarded("tensorboard", lambda: broken, 0, notes.append)
    guarded.begin()
    guarded.log(1, {})
    guarded.log(2, {})
    guarded.end(failed=False)
    guarded.wait()
    assert broken.asked == 1
    assert notes == [
        "tensorboard: OSError: no space left on device. It lacks the steps from 1 on; the ledger has everything"
    ]


class Slow:
    """Takes nothing until it is let go."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, float]] = []
        self.ended: bool | None = None
        self.asked, self.free = threading.Event(), threading.Event()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.asked.set()
        assert self.free.wait(timeout=60)
        self.taken += [(step, value) for value in metrics.values()]

    def close(self, *, failed: bool) -> None:
        self.ended = failed


def test_no_step_waits_for_a_slow_tracker_and_it_gets_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.LATE_S", 0.0)
    notes: list[str] = []
    slow = Slow()
    guarded = Guarded("tensorboard", lambda: slow, 2, notes.append)
    guarded.begin()
    metrics = {"score": 0.5}
    for step in (2, 3, 4):
        guarded.log(step, metrics)
    metrics["score"] = 9.0
    assert slow.asked.wait(timeout=60)
    assert slow.taken == []
    slow.free.set()
    guarded.end(failed=True)
    guarded.wait()
    assert slow.taken == [(3, 0.5), (4, 0.5)]
    assert slow.ended is True
    [note] = notes
    assert re.fullmatch(r"tensorboard: is \d+ s behind; the run goes on, and what waits is sent when it answers", note)


def test_a_tracker_that_is_slow_to_begin_gets_the_steps_of_a_run_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.BEGIN_S", 0.1)
    notes: list[str] = []
    slow, may_begin = Slow(), threading.Event()
    slow.free.set()

    def make() -> Slow:
        assert may_begin.wait(timeout=60)
        return slow

    guarded = Guarded("tensorboard", make, 0, notes.append)
    guarded.begin(begun=True)
    guarded.log(1, {"score": 0.5})
    may_begin.set()
    guarded.end(failed=False)
    guarded.wait()
    assert (slow.taken, slow.ended) == ([(1, 0.5)], False)
    assert notes == ["tensorboard: no answer within 0.1 s; the run goes on, and what waits is sent when it answers"]


def test_a_tracker_that_fails_after_the_wait_for_its_begin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.BEGIN_S", 0.1)
    notes: list[str] = []
    may_fail = threading.Event()

    def make() -> Slow:
        assert may_fail.wait(timeout=60)
        raise OSError("no such server")

    guarded = Guarded("tensorboard", make, 0, notes.append)
    guarded.begin(begun=True)
    guarded.log(4, {"score": 0.5})
    may_fail.set()
    guarded.end(failed=False)
    guarded.wait()
    assert notes[1:] == [
        "tensorboard: OSError: no such server. It lacks the steps from 4 on; the ledger has everything"
    ]


def test_what_waits_for_a_tracker_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.MOST_WAITING", 2)
    notes: list[str] = []
    slow = Slow()
    guarded = Guarded("tensorboard", lambda: slow, 0, notes.append)
    guarded.begin()
    for step in (1, 2, 3, 4):
        guarded.log(step, {"score": 0.5})
    guarded.end(failed=False)
    guarded.wait()
    slow.free.set()
    [note] = notes
    assert re.fullmatch(r"tensorboard: is \d+ s behind. It lacks the steps from 1 on; the ledger has everything", note)


class HangingMLflow(BaseHTTPRequestHandler):
    """Answers as MLflow's server does until a run has metrics to log, then no more."""

    answers: ClassVar = {
        "experiments/create": {"experiment_id": "1"},
        "runs/search": {},
        "runs/create": {"run": {"info": {"run_id": "r", "experiment_id": "1", "status": "RUNNING"}, "data": {}}},
        "runs/log-batch": {},
    }
    deaf = False
    free: ClassVar = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.deaf or b'"metrics"' in body:
            self.free.wait(timeout=60)
            self.close_connection = True
            return
        answer = json.dumps(self.answers[self.path.partition("/mlflow/")[2]]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HangingMLflow]]:
    """A server that accepts every connection, and at some point never answers."""
    import mlflow  # noqa: F401 - its import takes longer than what these tests wait for the server

    free = threading.Event()
    handler = type("Handler", (HangingMLflow,), {"free": free})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the abandoned thread ends with the test
        yield handler
        free.set()
        # an abandoned thread must end before the environment that it reads is another test's
        for abandoned in (one for one in threading.enumerate() if one.name.startswith("tracker-")):
            abandoned.join(60)
            assert not abandoned.is_alive()
        server.shutdown()


def test_an_mlflow_server_that_hangs_holds_no_step_up(
    tmp_path: Path, hanging: type[HangingMLflow], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hanging.deaf
    monkeypatch.setattr("orchestrator.tracking.CLOSE_S", 0.2)
    notes: list[str] = []
    with trackers(run(tmp_path, "mlflow"), tmp_path, {"stage": "sft"}, last_step=0, note=notes.append) as made:
        began = time.monotonic()
        for step in (1, 2):
            made[0].log(step, {"score": 0.5})
        assert time.monotonic() - began < 5
    assert time.monotonic() - began < 5
    assert notes == [
        "mlflow: did not take everything within 0.2 s of the end. It lacks the steps from 1 on; the ledger has everything"
    ]


def test_an_mlflow_server_that_never_answers_refuses_the_run(
    tmp_path: Path, hanging: type[HangingMLflow], monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging.deaf = True
    monkeypatch.setattr("orchestrator.tracking.BEGIN_S", 0.2)
    with (
        pytest.raises(
            UserError, match=r"^run\.trackers: mlflow can't begin: TimeoutError: no answer within 0\.2 s; allowed: "
        ),
        trackers(run(tmp_path, "mlflow"), tmp_path, {"stage": "sft"}, last_step=0, note=print),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "package"),
    [("wandb", "wandb"), ("mlflow", "mlflow-skinny"), ("prometheus", "'ray[default]'")],
)
def test_a_library_that_is_missing_is_named(name: TrackerName, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(("tensorboard", name))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        check_trackers((name,))
    assert str(caught.value) == f"run.trackers: {name} needs the library {package}: pip install {package}"


def tracked(tmp_path: Path, name: str, steps: tuple[int, ...], *, fail: bool = False) -> list[str]:
    """A stage whose driver makes these steps, the first of them the one after the last committed."""
    notes: list[str] = []
    config = {"stage": "sft", "model": {"optimizer": {"lr": 0.5}}}
    with (
        suppress(ZeroDivisionError),
        trackers(run(tmp_path, name), tmp_path, config, last_step=steps[0] - 1, note=notes.append) as made,
    ):
        for step in steps:
            made[0].log(step, {"score": step / 2, "held_out/win_rate": 0.5})
        assert not fail or 1 / 0
    return notes


def offline_records(run_dir: Path) -> list[list[Any]]:
    """What wandb would upload, of each driver in their order. Its files: 7 bytes, then blocks of 32 KiB as in LevelDB's log, whose records
    have a checksum, a length and whether they are whole (1), begin (2), go on (3) or end (4)."""
    from wandb.proto import wandb_internal_pb2 as records_of_wandb

    block, head = 32768, 7
    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        data, at, parts, records = path.read_bytes(), head, b"", []
        while at + head <= len(data):
            if block - at % block < head:
                at += block - at % block
            length, kind = struct.unpack_from("<HB", data, at + 4)
            parts += data[at + head : at + head + length]
            at += head + length
            if kind in (1, 4):
                record = records_of_wandb.Record()  # type: ignore[attr-defined, unused-ignore]
                record.ParseFromString(parts)
                records.append(record)
                parts = b""
        found.append(records)
    return found


def test_wandb_offline_holds_every_step_and_a_resumed_run_adds_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert tracked(tmp_path, "wandb", (1, 2), fail=True) == []
    assert tracked(tmp_path, "wandb", (3,)) == []
    drivers = offline_records(tmp_path)
    ids = [record.run.run_id for records in drivers for record in records if record.HasField("run")]
    assert len(drivers) == 2
    assert len(set(ids)) == 1
    rows = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for records in drivers
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["score"], row["held_out/win_rate"]) for row in rows] == [
        (1, 0.5, 0.5),
        (2, 1.0, 0.5),
        (3, 1.5, 0.5),
    ]
    ends = [record.exit.exit_code for records in drivers for record in records if record.HasField("exit")]
    assert ends == [1, 0]


@pytest.mark.parametrize("shared", [False, True])
def test_mlflow_holds_every_step_and_a_resumed_run_adds_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    from mlflow import MlflowClient

    run_dir = tmp_path / "run"
    uri = f"sqlite:///{tmp_path}/all.db" if shared else f"sqlite:///{run_dir}/mlflow.db"
    if shared:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_dir.mkdir()
    client = MlflowClient(tracking_uri=uri)
    for steps, fail, status in (((1, 2), True, "FAILED"), ((3,), False, "FINISHED")):
        assert tracked(run_dir, "mlflow", steps, fail=fail) == []
        experiment = client.get_experiment_by_name("preceptor")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        assert found.info.status == status
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "score")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
    ]
    assert found.data.params == {"stage": "sft", "model.optimizer.lr": "0.5"}
    assert found.info.run_name == f"{tmp_path.name}/run"


def test_another_run_in_the_same_folder_is_another_run_to_the_services(tmp_path: Path) -> None:
    def identity() -> str:
        return Tracked(run=run(tmp_path), run_dir=tmp_path, config={}, last_step=0, note=print).identity()

    first = identity()
    assert identity() == first
    (tmp_path / TRACKERS_FILE).unlink()
    assert identity() != first


def test_a_service_that_cannot_begin_is_a_readable_message_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://me:hunter2@host/db")
    with (
        pytest.raises(
            UserError, match=r"^run\.trackers: mlflow can't begin: .*; allowed: MLFLOW_TRACKING_URI in"
        ) as got,
        trackers(run(tmp_path, "mlflow"), tmp_path, {"stage": "sft"}, last_step=0, note=print),
    ):
        pass
    assert "hunter2" not in str(got.value)
    assert told(
        RuntimeError("no answer from nosuch://me:hunter2@host\n for hunter2, nor from s3://key:abc@bucket")
    ) == (
        "RuntimeError: no answer from nosuch://***@host for [password in MLFLOW_TRACKING_URI], nor from s3://***@bucket"
    )


@pytest.mark.slow
def test_prometheus_finds_every_metric_at_rays_port(tmp_path: Path) -> None:
    script = """
import sys, time, urllib.request
from pathlib import Path
import ray
from configs.schema.run import RunConfig, TrackerName
from orchestrator.trackers import metrics_url
from orchestrator.tracking import trackers
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         _system_config={"metrics_report_interval_ms": 500})
config = RunConfig(dir=sys.argv[1], trackers=("prometheus",))
with trackers(config, Path(sys.argv[1]), {"stage": "ppo"}, last_step=0, note=print) as made:
    made[0].log(1, {"score": 0.25})
    made[0].log(2, {"score": 0.75, "held_out/win_rate": 0.5})
    deadline = time.monotonic() + 60
    lines = []
    while time.monotonic() < deadline and len(lines) < 3:
        text = urllib.request.urlopen(metrics_url(), timeout=10).read().decode()
        lines = [line for line in text.splitlines() if line.startswith("ray_preceptor")]
        time.sleep(0.5)
print(*lines, sep="\\n")
ray.shutdown()
"""
    environment = {**os.environ, "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    note, *lines = done.stdout.splitlines()
    assert re.fullmatch(r"prometheus: http://[\d.]+:\d+/metrics has this run's metrics", note)
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert values == {
        "ray_preceptor_step": 2.0,
        "ray_preceptor_score": 0.75,
        "ray_preceptor_held_out_win_rate": 0.5,
    }
    assert all(f'run="{tmp_path}"' in line and 'stage="ppo"' in line for line in lines)
