"""What `submit`, `jobs`, `logs` and `stop` refuse, before or without a cluster. With one: tests/cluster."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from actors.errors import PreceptorError, UserError
from configs.load import load_config
from configs.schema import Pipeline
from orchestrator import cli
from orchestrator import ray_jobs as module
from orchestrator.ray_jobs import JobRequest, JobState, RayJobs, left_out
from tests.resilience.runs import reward_config

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(reward_config(run={"dir": "runs/reward"})))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    began = time.monotonic()
    code = cli.main(argv)
    assert time.monotonic() - began < 10
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["submit", "reward.yaml", "--metadata", "blue"],
            "preceptor: --metadata: got 'blue'; allowed: KEY=VALUE\n",
        ),
        (
            ["submit", "reward.yaml", "--env", "NOT_SET"],
            "preceptor: --env: got 'NOT_SET'; allowed: the name of a variable that is set here\n",
        ),
        (
            ["submit", "reward.yaml", "--env", "TOKEN=secret"],
            "preceptor: --env: got something that is no name; allowed: the name of a variable that is set here\n",
        ),
        (
            ["submit", "reward.yaml", "--working-dir", "nowhere"],
            "preceptor: --working-dir: got 'nowhere', which is no folder\n",
        ),
        (
            ["submit", "/etc/hosts"],
            "preceptor: CONFIG: got '/etc/hosts', which is outside HERE; allowed: a file in --working-dir, which the job sees\n",
        ),
        (
            ["submit", "reward.yaml", "cluster.groups.rewrad.resource=a100"],
            "preceptor: cluster.groups does not fit the roles:\n  cluster.groups.rewrad: got a group that no role is in; allowed: reward\n",
        ),
        (
            ["submit", "reward.yaml", "--address", "127.0.0.1:8265"],
            "preceptor: address: got '127.0.0.1:8265'; allowed: the Ray dashboard's, such as http://127.0.0.1:8265\n",
        ),
        *(
            (
                ["jobs", "--address", address],
                "preceptor: address: got one with a user, password, query or fragment; allowed: the Ray dashboard's, such as "
                "http://127.0.0.1:8265, and a token in RAY_AUTH_TOKEN\n",
            )
            for address in ("http://u:pw@127.0.0.1:1", "http://127.0.0.1:1?token=x", "u:pw@127.0.0.1:1")
        ),
        (
            ["submit", "reward.yaml", "--registry", "postgresql://u:pw@127.0.0.1:1/d", "--address", NOBODY],
            "preceptor: --registry: got an address with a password, which the shell's history and the process list would show; allowed: "
            "one without, and the password in PRECEPTOR_REGISTRY=postgresql://user:password@host/database, PGPASSWORD or ~/.pgpass\n",
        ),
        (["stop", "x", "--timeout-s", "0"], "preceptor: --timeout-s: got 0; allowed: more than 0\n"),
        *(
            (
                [*command, "--address", NOBODY],
                f"preceptor: address: no Ray job server answers at {NOBODY} (no connection); allowed: the dashboard's address of a "
                "running cluster, such as http://127.0.0.1:8265\n",
            )
            for command in (["submit", "reward.yaml"], ["jobs"], ["logs", "x"], ["stop", "x"])
        ),
    ],
)
def test_bad_input_is_one_message(
    argv: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, *argv) == (2, said.replace("HERE", str(project)))


def test_a_config_that_is_outside_by_its_dots_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "sub").mkdir()
    monkeypatch.chdir(project / "sub")
    code, said = told(capsys, "submit", "../reward.yaml", "--address", NOBODY)
    assert code == 2
    assert said.startswith(f"preceptor: CONFIG: got '../reward.yaml', which is outside {project}/sub; allowed:")


IGNORED = "which .gitignore or .rayignore names"
OUTSIDE = "which is outside --working-dir"
FILE = "a file in --working-dir that is not ignored"
INPUT = "what is in --working-dir and not ignored, an absolute path that the cluster's nodes have, or an address such as s3://..."
MODULE = "a module in --working-dir that is not ignored, or one that is installed on the nodes"


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_what_would_not_be_copied_is_refused_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    make_files(
        project, "p.jsonl", "model/config.json", "model/a.safetensors", "secret/pays.py", "kept.py", "sub/r.jsonl"
    )
    make_files(tmp_path, "rows.jsonl")
    make_files(project, "here/only-here.jsonl")
    (project / "out").mkdir()
    (project / "out" / "run.yaml").write_text("base: [near.yaml, ../../far.yaml]\n")
    (project / "out" / "near.yaml").write_text(PPO)
    (tmp_path / "far.yaml").write_text("run: {seed: 1}\n")
    (project / ".gitignore").write_text("/out/\n*.safetensors\n/secret/\n")
    (project / "sub" / ".rayignore").write_text("r.jsonl\n")
    monkeypatch.chdir(project / "here")
    mix = "[{path: ../rows.jsonl}, {path: sub/r.jsonl}, {path: only-here.jsonl}, {path: /all/nodes.jsonl}, {path: hub/name}]"
    functions = "[{function: 'secret.pays:f'}, {function: 'kept:f'}, {function: 'installed:f'}]"
    keys = [f"data.mix={mix}", f"reward.functions={functions}", "policy.model=model"]
    code, said = told(capsys, "submit", "../out/run.yaml", *keys, "--working-dir", "..", "--address", NOBODY)
    assert code == 2
    assert said.splitlines() == [
        "preceptor: the job would not find what is not copied to the cluster:",
        f"  CONFIG: got '../out/run.yaml', {IGNORED}; allowed: {FILE}",
        f"  base: got 'near.yaml', {IGNORED}; allowed: {FILE}",
        f"  base: got '../../far.yaml', {OUTSIDE}; allowed: {FILE}",
        f"  policy.model: got 'model/a.safetensors', {IGNORED}; allowed: {INPUT}",
        f"  data.mix.0.path: got '../rows.jsonl', {OUTSIDE}; allowed: {INPUT}",
        f"  data.mix.1.path: got 'sub/r.jsonl', {IGNORED}; allowed: {INPUT}",
        f"  data.mix.2.path: got 'only-here.jsonl', which is in this folder and not in --working-dir; allowed: {INPUT}",
        f"  reward.functions.0.function: got 'secret/pays.py', {IGNORED}; allowed: {MODULE}",
    ]


def test_a_stages_data_is_named_with_its_stage_and_nothing_else_is_said(project: Path) -> None:
    stage = {key: value for key, value in reward_config().items() if key != "run"}
    (project / "p.yaml").write_text(
        yaml.safe_dump({"stage": "pipeline", "run": {"dir": "runs/p"}, "stages": {"rm": stage}})
    )
    make_files(project, "rankings.jsonl")
    (project / ".gitignore").write_text("*.jsonl\n")
    # a process of its own: Ray's loggers are what it makes of them when it is imported
    ran = subprocess.run(
        [sys.executable, "-m", "orchestrator", "submit", "p.yaml", "--address", NOBODY],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "preceptor: the job would not find what is not copied to the cluster:\n"
        f"  stages.rm.data.path: got 'rankings.jsonl', {IGNORED}; allowed: {INPUT}\n"
    )


PPO = """\
stage: ppo
run: {dir: runs/x}
cluster: {device: cuda, gpu: l4}
data: {path: p.jsonl}
policy: {model: Qwen/Qwen2.5-1.5B-Instruct, engine: {dtype: bf16, zero_stage: 2}, placement: {group: all}}
critic: {init_from: policy, engine: {dtype: bf16, zero_stage: 2}, placement: {group: all}}
reference: {engine: {dtype: bf16}, placement: {group: all}}
reward: {functions: [{function: "examples.bandit:pays"}]}
rollout: {dtype: bf16, group: all, gpu_memory_frac: 0.4}
ppo: {steps: 3}
"""


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[JobRequest]:
    """What a cluster is asked for."""
    asked: list[JobRequest] = []

    class Cluster:
        address = "http://127.0.0.1:8265"

        def submit(self, request: JobRequest) -> str:
            asked.append(request)
            return "job-1"

    monkeypatch.setattr("orchestrator.commands.jobs._cluster", lambda _: Cluster())
    return asked


def test_what_cannot_fit_is_refused_before_it_is_submitted(
    project: Path, capsys: pytest.CaptureFixture[str], submitted: list[JobRequest]
) -> None:
    (project / "ppo.yaml").write_text(PPO)
    code, said = told(capsys, "submit", "ppo.yaml")
    assert code == 2
    assert said.startswith("preceptor: stage ppo does not fit (`--skip-memory-check` starts it all the same):")
    assert submitted == []
    assert cli.main(["submit", "ppo.yaml", "--skip-memory-check"]) == 0
    assert [one.entrypoint for one in submitted] == ["python -m orchestrator run --skip-memory-check ppo.yaml"]


def test_this_machines_memory_says_nothing_of_the_clusters(
    project: Path, monkeypatch: pytest.MonkeyPatch, submitted: list[JobRequest]
) -> None:
    monkeypatch.setattr("orchestrator.estimate.preflight.local_memory_bytes", lambda: 1.0)
    assert cli.main(["submit", "reward.yaml"]) == 0
    assert len(submitted) == 1


def test_the_runs_own_options_are_handed_on(project: Path, submitted: list[JobRequest]) -> None:
    registry = "postgresql://u@db/runs"
    assert cli.main(["submit", "reward.yaml", "run.seed=1", "--resume-if-begun", "--registry", registry]) == 0
    assert [one.entrypoint for one in submitted] == [
        f"python -m orchestrator run --resume-if-begun --registry {registry} reward.yaml run.seed=1"
    ]


def test_the_job_takes_what_the_environment_says_here(
    project: Path, monkeypatch: pytest.MonkeyPatch, submitted: list[JobRequest]
) -> None:
    monkeypatch.setenv("RUNS", "/shared/of me")
    monkeypatch.setenv("SEED", "7")
    monkeypatch.delenv("ROWS", raising=False)
    config = reward_config(run={"dir": "${env:RUNS}/a", "seed": "${env:SEED}"}, data={"path": "${env:ROWS,rows.jsonl}"})
    (project / "here.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["submit", "here.yaml", "run.dir=${env:RUNS}/b"]) == 0
    [asked] = submitted
    assert (asked.metadata["run_dir"], asked.env) == ("/shared/of me/b", {})
    words = shlex.split(asked.entrypoint)
    at = words.index("here.yaml")
    assert words[at + 2 :] == ['data.path="rows.jsonl"', 'run.dir="/shared/of me/b"', "run.seed=7"]
    # as it will be read on a node
    for name in ("RUNS", "SEED"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROWS", "another.jsonl")
    there = load_config("here.yaml", [words[at + 1].replace("${env:RUNS}", "x"), *words[at + 2 :]])
    assert not isinstance(there, Pipeline)
    assert (there.run.dir, there.run.seed, there.data.path) == ("/shared/of me/b", 7, "rows.jsonl")


def test_what_ray_leaves_out_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitignore").write_text((Path(__file__).parents[2] / ".gitignore").read_text())
    (tmp_path / ".rayignore").write_text("/big/\n")
    files = ("runs/demo-inputs/model/config.json", "runs/demo/ledger/1.json", "big/x", "data/y", "data/sub/z")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "data" / ".gitignore").write_text("sub\n")
    assert [name for name in files if left_out(tmp_path, tmp_path / name)] == [
        "runs/demo/ledger/1.json",
        "big/x",
        "data/sub/z",
    ]
    assert not left_out(tmp_path, tmp_path / "runs/demo-inputs/model")
    assert left_out(tmp_path, tmp_path / "big")
    assert left_out(tmp_path, tmp_path / "data/sub")
    assert not left_out(tmp_path, tmp_path / "runs"), "runs/demo-inputs in it is copied"
    assert left_out(tmp_path / "data", tmp_path / "runs/demo-inputs/model")
    assert left_out(tmp_path / "data", tmp_path / "data/../runs/demo-inputs/model")
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert [name for name in files if left_out(tmp_path, tmp_path / name)] == ["big/x"]


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [(None, "preceptor: job x: FAILED: no space left on the node\n"), (1, "preceptor: job x: FAILED\n")],
)
def test_a_job_that_never_ran_says_why(
    exit_code: int | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cluster:
        address = NOBODY

        def follow(self, job: str) -> Iterator[str]:
            yield from ()

        def wait(self, job: str, *, timeout_s: float) -> JobState:
            return JobState(
                job=job,
                name=None,
                status="FAILED",
                message="no space left\non the node",
                metadata={},
                started_s=1.0,
                ended_s=2.0,
                run_dir=None,
                exit_code=exit_code,
            )

    monkeypatch.setattr("orchestrator.commands.jobs._cluster", lambda _: Cluster())
    assert told(capsys, "logs", "x", "--follow") == (1, said)


# ---------------------------------------------------------------------------------------------------------- a server of a test


class Server(HTTPServer):
    """A job server that answers what a test gives it."""

    answers: dict[str, tuple[int, Any]]
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        code, body = self.server.answers[self.path]
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "x"}
RUNNING = {
    "type": "SUBMISSION",
    "submission_id": "small-1",
    "status": "RUNNING",
    "entrypoint": "true",
    "start_time": 1500,
    "metadata": {"job_name": "small", "run_dir": "runs/x"},
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.answers, server.asked = {"/api/version": (200, VERSION)}, []
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def jobs_at(server: Server) -> RayJobs:
    return RayJobs(f"http://127.0.0.1:{server.server_port}")


def test_the_given_address_wins_over_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    server.answers["/api/jobs/small-1"] = (200, RUNNING)
    assert jobs_at(server).state("small-1") == JobState(
        job="small-1",
        name="small",
        status="RUNNING",
        message="",
        metadata={"job_name": "small", "run_dir": "runs/x"},
        started_s=1.5,
        ended_s=None,
        run_dir="runs/x",
        exit_code=None,
    )


def test_an_unknown_job_is_named(server: Server) -> None:
    server.answers["/api/jobs/x"] = (404, "Job x does not exist")
    jobs = jobs_at(server)
    said = f"^job: got 'x', which {jobs.address} does not know; `preceptor jobs` lists what it knows$"
    for ask in (jobs.state, jobs.logs, lambda job: list(jobs.follow(job)), lambda job: jobs.stop(job, timeout_s=1)):
        with pytest.raises(UserError, match=said):
            ask("x")


def test_a_cluster_that_wants_a_token_says_so(server: Server) -> None:
    server.answers["/api/version"] = (401, "Unauthorized")
    with pytest.raises(
        UserError, match=r"asks for a token or refuses the one given; allowed: its token in RAY_AUTH_TOKEN"
    ):
        jobs_at(server)


def test_a_server_that_does_not_answer_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_at(server)
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.rfile.read())
    with pytest.raises(UserError, match=r"no Ray job server answers at .* \(it does not answer in time\)"):
        jobs.state("x")


def test_a_job_that_does_not_end_is_told(server: Server) -> None:
    server.answers["/api/jobs/small-1"] = (200, RUNNING)
    with pytest.raises(PreceptorError, match=r"job small-1 at .* has not ended within 0 s: RUNNING"):
        jobs_at(server).wait("small-1", timeout_s=0)


def test_names_that_ray_or_a_shell_would_mangle_are_refused(server: Server) -> None:
    with pytest.raises(UserError, match=r"^job name: got 'a b'; allowed: letters, digits, '\.', '_' and '-'$"):
        jobs_at(server).submit(JobRequest(entrypoint="true", name="a b"))
