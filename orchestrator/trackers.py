"""Metrics to where people watch them. The ledger has them all in any case; a tracker that fails or hangs must not end or delay a run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from actors.errors import PreceptorError, UserError
from actors.local_files import scratch_of
from actors.store import create_only
from configs.schema.run import RunConfig, TrackerName
from configs.secrets import without_secrets
from orchestrator.flat import flat

TENSORBOARD_FOLDER = "tensorboard"
MLFLOW_FILE = "mlflow.db"
TRACKERS_FILE = "trackers.json"
"""Under which id services know the run: a resumed run goes on there, a new one in the same folder does not."""
MLFLOW_URI = "MLFLOW_TRACKING_URI"
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
RUN_TAG = "preceptor.id"
MLFLOW_BATCH, MLFLOW_VALUE_CHARS = 100, 6000
"""What it takes at a time, and of a value."""
FINISH_S = 15.0
"""Longest wait of wandb for its server when a stage ends."""
LIBRARIES: dict[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "prometheus": ("opentelemetry.exporter.prometheus", "'ray[default]'"),
}
"""Of each tracker: the module that it needs, and what pip installs it by."""

ALLOWED: dict[TrackerName, str] = {
    "tensorboard": "a run directory in which tensorboardX can write",
    "wandb": "WANDB_API_KEY in the environment, or WANDB_MODE=offline",
    "mlflow": "MLFLOW_TRACKING_URI in the environment, of a server that answers or a database such as sqlite:////path/mlflow.db",
    "prometheus": "a running Ray",
}
"""What each needs to begin."""


class Tracker(Protocol):
    """Takes a stage's metrics, step by step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Of a step that is committed; a step comes once, also where a run is resumed."""

    def close(self, *, failed: bool) -> None:
        """Nothing follows. `failed`: an error or an interrupt ended the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """The stage whose metrics are tracked."""

    run: RunConfig
    run_dir: Path
    config: Mapping[str, Any]
    """The whole stage's, with secrets in none of its keys."""
    last_step: int
    """Committed before this driver began."""
    note: Callable[[str], None]

    @property
    def name(self) -> str:
        """For people: the run directory's last two parts."""
        return "/".join(self.run_dir.parts[-2:])

    def identity(self) -> str:
        """The same for every driver of this run directory, and no other's: kept in it."""
        path = self.run_dir / TRACKERS_FILE
        with suppress(FileExistsError):
            create_only(path, json.dumps({"id": uuid.uuid4().hex[:16]}).encode())
        try:
            return str(json.loads(path.read_bytes())["id"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged: {error}; allowed: to put it back, or to delete it") from error


class TensorBoard:
    """Event files in the run directory, by tensorboardX."""

    def __init__(self, tracked: Tracked) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        # what a killed driver wrote of steps that were never committed is hidden
        folder = str(scratch_of(tracked.run_dir) / TENSORBOARD_FOLDER)
        suffix = f".{tracked.last_step}"  # two files of one second would have one name
        self._writer = SummaryWriter(folder, purge_step=tracked.last_step + 1, filename_suffix=suffix)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - event files know no end
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb's; the same one when the run is resumed. Keys and modes are wandb's own (`WANDB_API_KEY`, `WANDB_MODE`)."""

    def __init__(self, tracked: Tracked) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        self._run = wandb.init(
            project=tracked.run.wandb_project,
            name=tracked.name,
            id=tracked.identity(),
            resume="allow",
            dir=str(scratch_of(tracked.run_dir)),
            config=dict(tracked.config),
            # wandb sends in the background, and would wait at the end for as long as it takes
            settings=wandb.Settings(finish_timeout=FINISH_S, finish_timeout_raises=True),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError as error:
            where = f"wandb/{Path(self._run.dir).parent.name} of the run directory"
            raise PreceptorError(f"what it has not taken is in {where}, for `wandb sync`") from error


class MLflow:
    """A run at MLflow, the same one when the run is resumed; found by a tag. Where is MLflow's own to say (`MLFLOW_TRACKING_URI`,
    `MLFLOW_TRACKING_TOKEN`); without that, an SQLite file in the run directory."""

    def __init__(self, tracked: Tracked) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get(MLFLOW_URI)
        if not uri and "://" in str(tracked.run_dir):
            raise UserError(
                f"run.trackers: mlflow keeps no database at {tracked.run_dir}; allowed: {ALLOWED['mlflow']}, or a local run.dir"
            )
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{tracked.run_dir.absolute()}/{MLFLOW_FILE}")
        experiment = self._experiment(tracked.run.mlflow_experiment)
        identity = tracked.identity()
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {RUN_TAG: identity, "preceptor.run_dir": str(tracked.run_dir)}
        self._run = self._client.create_run(experiment, tags=tags, run_name=tracked.name).info.run_id
        self._log_config(tracked.config)

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, str(value)[:MLFLOW_VALUE_CHARS]) for key, value in flat(dict(config)).items()]
        for start in range(0, len(parameters), MLFLOW_BATCH):
            self._client.log_batch(self._run, params=parameters[start : start + MLFLOW_BATCH])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        # of two runs that start at once, one comes second
        with suppress(MlflowException):
            return str(self._client.create_experiment(name))
        found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise PreceptorError(f"the experiment {name!r} can be neither made nor found there")
        return str(found.experiment_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now_ms, step) for name, value in metrics.items()])

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class Prometheus:
    """A gauge for each metric, through Ray's metrics: `ray_preceptor_<metric>` at the metrics port of the driver's node, with the tags run
    (the run directory) and stage. Ray hands on what was set about every ten seconds, and forgets it when the driver ends."""

    def __init__(self, tracked: Tracked) -> None:
        self._tags = {"run": str(tracked.run_dir), "stage": str(tracked.config["stage"])}
        self._note = tracked.note
        self._gauges: dict[str, Any] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        import ray

        if not ray.is_initialized():
            return  # the stage is over: asking Ray for anything would start another one
        if not self._gauges:
            self._note(f"prometheus: {metrics_url()} has this run's metrics")
        for name, value in {"step": float(step), **metrics}.items():
            self._gauge(name).set(value, tags=self._tags)

    def _gauge(self, name: str) -> Any:
        """Made when it is first set: Ray is started after the trackers, and metrics come and go with the steps."""
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(
                gauge_name(name), description=f"{name} of the newest step", tag_keys=tuple(self._tags)
            )
        return self._gauges[name]

    def close(self, *, failed: bool) -> None:
        """Ray's end is theirs."""


MAKERS: dict[TrackerName, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "prometheus": Prometheus,
}


def gauge_name(metric: str) -> str:
    """`held_out/win_rate` is `preceptor_held_out_win_rate`; Ray puts `ray_` before it."""
    return "preceptor_" + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


def metrics_url() -> str:
    """Where Prometheus finds what the processes of this node report to Ray, which must run."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def check_trackers(names: Sequence[TrackerName]) -> None:
    """UserError where a tracker's library is not installed."""
    for name in names:
        module, package = LIBRARIES[name]
        if not _installed(module):
            raise UserError(f"run.trackers: {name} needs the library {package}: pip install {package}")


def _installed(module: str) -> bool:
    # of a module in a package that is absent, `find_spec` raises
    with suppress(ModuleNotFoundError):
        return importlib.util.find_spec(module) is not None
    return False


def told(error: BaseException) -> str:
    """A library's error in one line, without what the environment gave it in confidence."""
    text = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))
    secrets = {name: os.environ.get(name) for name in SECRETS}
    secrets[f"password in {MLFLOW_URI}"] = urlsplit(os.environ.get(MLFLOW_URI, "")).password
    for name, value in secrets.items():
        if value:
            text = text.replace(value, f"[{name}]")
    return text
