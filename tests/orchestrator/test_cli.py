"""The command line from outside: exit codes, one message for each error, and nothing heavy before it is needed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from actors.errors import RoleFailed, UserError
from configs.load import schema_json
from orchestrator import cli, jobs
from orchestrator.commands.training import STAGES
from orchestrator.progress import DRIVER_LOG
from orchestrator.signals import Stopped
from tests.tiny_models import make_tiny_causal_lm

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """\
stage: ppo
run: {dir: RUN_DIR}
data: {path: p.jsonl}
policy: {model: m}
reward: {model: {model: r}}
ppo: {steps: 3}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.replace("RUN_DIR", str(tmp_path / "run")), "utf-8")
    return path


def preceptor(*arguments: str | Path, cwd: Path = ROOT, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def called(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command within this process."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


# ------------------------------------------------------------------------------------------------------- help and schema


def test_help_is_fast_and_shows_examples() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = preceptor("--help")
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert "preceptor run recipe.yaml rollout.temperature=0.7" in done.stdout
    assert "exit codes: 0 fine, 1 the run failed, 2 bad input, 130 interrupted" in done.stdout
    assert min(times) < 0.5, times


@pytest.mark.parametrize("command", ["--help", "plan", "schema"])
def test_nothing_heavy_is_loaded_to_answer(command: str, config: Path) -> None:
    arguments = {"--help": ["--help"], "plan": ["plan", str(config)], "schema": ["schema"]}[command]
    script = (
        "import sys\nfrom orchestrator import cli\n"
        f"try:\n    code = cli.main({arguments!r})\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(f'{code} {sorted(heavy)}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == "0 []\n"


@pytest.mark.parametrize("command", ["run", "plan", "resume", "export", "compare", "report", "schema"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"usage: preceptor {command} ")
    assert "--debug" in out


def test_the_schema_as_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = called(capsys, "schema", "reward")
    (row,) = [line for line in out.splitlines() if line.startswith("training.groups_per_step ")]
    assert row.split(maxsplit=1)[1].split() == (
        "a whole number of at least 1 16 Ranked groups (pairs, where K is 2) of one optimizer step.".split()
    )
    assert "stage: ppo" not in out
    _, out, _ = called(capsys, "schema")
    assert all(f"stage: {stage}" in out for stage in ("ppo", "reward", "pipeline"))
    _, out, _ = called(capsys, "schema", "--json")
    assert "RolloutConfig" in json.loads(out)["$defs"]


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m orchestrator schema | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --------------------------------------------------------------------------------------------------------------- plan


def test_plan_shows_roles_and_arithmetic(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, "plan", config, "ppo.epochs=2", "cluster.num_cpus=1")
    assert (code, err) == (0, "")
    assert "policy     1      cpu     1 a rank  policy     -" in out
    assert "update: 64 trajectories a minibatch, 2 updates a step (2 epochs), 6 in the run" in out


def test_plan_as_json_takes_overrides_on_both_sides_of_an_option(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = called(capsys, "plan", config, "ppo.epochs=2", "--json", "ppo.minibatches=4")
    assert code == 0
    assert json.loads(out)["updates_per_step"] == 8


def test_plan_of_a_pipeline_has_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "configs/recipes/smollm2-hh.yaml"
    code, out, _ = called(capsys, "plan", recipe, "--json")
    assert code == 0
    assert list(json.loads(out)) == ["reward", "ppo"]
    code, out, _ = called(capsys, "plan", recipe)
    assert code == 0
    assert "stage reward on this machine" in out
    assert "stage ppo on this machine" in out


# ---------------------------------------------------------------------------------------------------------- bad input


def test_a_bad_config_is_one_message_and_code_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, "run", config, "rollout.temperature=-1") == (
        2,
        "",
        f"preceptor: {config} is not a valid config:\n"
        "  rollout.temperature: got -1; allowed: a number of at least 0.01 (override 'rollout.temperature=-1')\n",
    )


def test_an_impossible_plan_is_one_message_and_code_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, "plan", config, "rollout.tensor_parallel=2")
    assert (code, out) == (2, "")
    assert err == (
        "preceptor: stage ppo can't run on this machine:\n"
        "  rollout.tensor_parallel: got 2; allowed: 1 with cluster.device cpu\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("train",), "invalid choice: 'train'"),
        (("run",), "the following arguments are required: CONFIG"),
        (("run", "c.yaml", "--dryrun"), "not understood: --dryrun"),
        (("resume", "a", "b=1"), "not understood: b=1"),
        (("export", "a", "b", "--role", "reward"), "invalid choice: 'reward'"),
        (("export", "a", "b", "--step", "x"), "invalid int value: 'x'"),
        (("schema", "grpo"), "invalid choice: 'grpo'"),
    ],
)
def test_a_wrong_command_line_is_code_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = called(capsys, *arguments)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("command", "said"),
    [(("resume",), "interrupted; `preceptor resume RUN` continues"), (("export", "out"), "interrupted")],
)
def test_only_a_run_is_said_to_go_on(
    command: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, command[0], raising(KeyboardInterrupt()))
    (tmp_path / "config.yaml").touch()  # a run has begun
    code, _, err = called(capsys, command[0], tmp_path, *command[1:])
    assert (code, err) == (130, f"preceptor: {said.replace('RUN', str(tmp_path))}\n")


def test_what_never_began_is_not_said_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "resume", raising(KeyboardInterrupt()))
    assert called(capsys, "resume", tmp_path)[2] == "preceptor: interrupted\n"


@pytest.mark.parametrize("command", [("resume",), ("export", "out")])
def test_a_run_directory_that_is_not_there(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    code, _, err = called(capsys, command[0], gone, *command[1:])
    assert code == 2
    assert (
        err == f"preceptor: RUN_DIR: got '{gone}', which is no folder; allowed: the run.dir of a run that was started\n"
    )


def test_a_folder_of_the_users_own_that_shadows_ours_is_refused(tmp_path: Path, config: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise SystemExit('the wrong package was loaded')\n")
    done = preceptor("plan", config, path=f"{tmp_path}{os.pathsep}{ROOT}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"preceptor: package 'configs' must come from {ROOT / 'configs'}, got {tmp_path / 'configs' / '__init__.py'}: "
        "a folder of that name shadows ours; rename it, or start elsewhere\n"
    )


def test_a_folder_of_yaml_files_named_configs_shadows_nothing(tmp_path: Path, config: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(config.read_text())
    done = preceptor("plan", "configs/mine.yaml", path=f"{tmp_path}{os.pathsep}{ROOT}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# -------------------------------------------------------------------------------------------------------- failed runs


def raising(error: BaseException) -> Callable[..., None]:
    def run(*args: object, **kwargs: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RoleFailed("critic", 1, 7, "out of memory"), 1, "critic rank 1 failed in step 7: out of memory; more in LOG"),
        (UserError("data.path: no such file"), 2, "data.path: no such file"),
        (Stopped("stopped; go on with resume"), 130, "stopped; go on with resume"),
        (KeyboardInterrupt(), 130, "interrupted; `preceptor resume RUN` continues"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "unexpected error: ZeroDivisionError: division by zero; more in LOG; --debug shows the stack trace",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_a_run(
    error: BaseException,
    code: int,
    said: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "run", raising(error))
    log = tmp_path / "run" / DRIVER_LOG
    log.parent.mkdir(parents=True)
    log.write_text("before\n")
    (tmp_path / "run" / "config.yaml").touch()
    said = said.replace("LOG", str(log)).replace("RUN", str(tmp_path / "run"))
    assert called(capsys, "run", config) == (code, "", f"preceptor: {said}\n")
    # the log has the stack trace where the message points to it, and keeps what was there
    assert log.read_text().startswith("before\n")
    assert ("Traceback" in log.read_text()) == (str(log) in said)
    got, _, err = called(capsys, "run", config, "--debug")
    assert got == code
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith(f"preceptor: {said}\n")


def test_without_a_run_directory_no_log_is_made(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "run", raising(ZeroDivisionError("x")))
    (tmp_path / "run").mkdir()
    assert called(capsys, "run", config)[2] == (
        "preceptor: unexpected error: ZeroDivisionError: x; --debug shows the stack trace\n"
    )
    assert list((tmp_path / "run").iterdir()) == []


def test_the_command_line_knows_every_stage_of_the_schema() -> None:
    mapping = json.loads(schema_json())["discriminator"]["mapping"]
    assert set(STAGES) == set(mapping)


def test_data_inspect_shows_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_causal_lm(tmp_path / "model", tied=True)
    row = {"messages": [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "yes it is"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    config = {
        "stage": "sft",
        "run": {"dir": "unused"},
        "data": {"path": str(tmp_path / "chats.jsonl"), "held_out_rows": 1},
        "model": {"model": str(tmp_path / "model")},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    code, out, err = called(capsys, "data", "inspect", tmp_path / "c.yaml", "--rows", "1")
    assert (code, err) == (0, "")
    assert "«yes it is <eos>»" in " ".join(out.split())
