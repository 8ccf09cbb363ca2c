"""What `preceptor sweep` refuses, each in one message, before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from tests.orchestrator.small_stages import PPO, REWARD, merged


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(PPO))
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(REWARD))
    gpus = {"cluster": {"device": "cuda"}, "policy": {"placement": {"num_ranks": 2}}}
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump(merged(PPO, gpus)))
    reward = {key: value for key, value in REWARD.items() if key != "run"}
    stages = {"stage": "pipeline", "run": {"dir": "x"}, "stages": {"reward": reward}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(stages))
    (tmp_path / "full").mkdir()
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "full" / "file").touch()
    return tmp_path


LR = "policy.optimizer.lr=[1e-6,3e-6]"
ASHA = ("--search", "asha", "--samples", "4", "--metric", "score")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dir", "s"), "CONFIG: missing; allowed: preceptor sweep CONFIG 'key=[value,value]' --dir DIR"),
        (("ppo.yaml", LR, "--dir", "s", "--parallel", "0"), "--parallel: got 0; allowed: a whole number of at least 1"),
        (("ppo.yaml", LR, "--dir", "s", "--retries", "-1"), "--retries: got -1; allowed: a whole number of at least 0"),
        (
            ("ppo.yaml", LR, "--dir", "s3://bucket/s"),
            "--dir: got 's3://bucket/s'; allowed: a folder; on a cluster, one that all nodes share at the same path",
        ),
        (
            ("ppo.yaml", "--resume", "s"),
            "--resume: got CONFIG 'ppo.yaml' too; allowed: --resume DIR alone: the folder holds every trial's config",
        ),
        (
            ("--resume", "s", "--dry-run"),
            "--dry-run: got it with --resume; allowed: --parallel, --gpus, --retries, --metric, --mode",
        ),
        (("ppo.yaml", LR, "--dir", "s", "--samples", "3"), "--samples: got 3; allowed: with --search alone"),
        (
            ("ppo.yaml", LR, "--dir", "s", "--search", "asha", "--samples", "3"),
            "--metric: missing; allowed: --search asha --metric NAME --samples N",
        ),
        (
            ("ppo.yaml", LR, "--dir", "s", *ASHA, "--random", "3"),
            "--random: got 3 with --search; allowed: one of the two",
        ),
        (
            ("reward.yaml", "run.seed=[1,2]", "--dir", "s", *ASHA),
            "--max-steps: missing; allowed: the steps of a whole run, which stage reward knows only when it has read its data",
        ),
        (
            ("ppo.yaml", LR, "--dir", "s", *ASHA, "--grace-steps", "11"),
            "--grace-steps: got 11; allowed: a whole number from 1 to --max-steps, 10",
        ),
        (
            ("ppo.yaml", LR, "--dir", "s", *ASHA, "--reduction", "1"),
            "--reduction: got 1; allowed: a whole number of at least 2",
        ),
        (
            ("pipeline.yaml", "run.seed=[1,2]", "--dir", "s", *ASHA, "--max-steps", "5"),
            "--search asha: got a pipeline; allowed: one stage, whose steps can be compared",
        ),
        (("ppo.yaml", "--dir", "s", "run.seed=3"), "the sweep can't be read: no key has several values; allowed: at"),
        (
            ("ppo.yaml", "policy.lr=[1e-6,3e-6]", "--dir", "s"),
            "trial 0001 (policy.lr=1e-06): ppo.yaml is not a valid config: policy.lr: unknown key (did you mean",
        ),
        (
            ("ppo.yaml", "ppo.gamma=[1.0,1.5]", "--dir", "s"),
            "trial 0002 (ppo.gamma=1.5): ppo.yaml is not a valid config: ppo.gamma: got 1.5; allowed: a number from 0 to 1",
        ),
        (
            ("ppo.yaml", "ppo.prompts_per_step=[16,15]", "ppo.minibatches=2", "--dir", "s"),
            "trial 0002 (ppo.prompts_per_step=15): stage ppo can't run on this machine: ",
        ),
        (
            ("gpus.yaml", LR, "--dir", "s", "--gpus", "3", "--address", "http://127.0.0.1:1"),
            "--gpus: got 3, but trial 0001 takes 6; allowed: at least 6",
        ),
        (
            ("ppo.yaml", LR, "--dir", "full"),
            "full is not empty; allowed: a new or empty folder. `preceptor sweep --resume",
        ),
        (("--resume", "nowhere"), "nowhere holds no sweep: sweep.yaml is missing; allowed: the --dir of an earlier"),
        (
            ("ppo.yaml", LR, "--dir", "s", "--address", "http://127.0.0.1:1", "--env", "NOT_SET"),
            "--env: got 'NOT_SET'; allowed: the name of a variable that is set here",
        ),
        (
            ("ppo.yaml", LR, "--dir", "ignored/s", "--address", "127.0.0.1:8265"),
            "address: got '127.0.0.1:8265'; allowed: the Ray dashboard's, such as http://127.0.0.1:8265",
        ),
        (
            ("ppo.yaml", LR, "--dir", "s", "--address", "http://127.0.0.1:1"),
            "s is in --working-dir, and would be copied to the cluster with every trial; allowed: a folder that .gitignore or .rayignore",
        ),
        (
            ("ppo.yaml", LR, "--dir", "ignored/s", "--address", "http://127.0.0.1:1"),
            "address: no Ray job server answers at http://127.0.0.1:1",
        ),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir(files))
    assert main(["sweep", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("preceptor: ")
    assert message in said
    assert sorted(os.listdir(files)) == before


def test_a_dry_run_lists_every_trial_and_makes_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(files))
    axes = ("policy.optimizer.lr=[1e-6,3e-6]", "ppo.kl.controller.coef=[0.01,0.05]")
    assert main(["sweep", "gpus.yaml", *axes, "--dir", "s", "--address", "http://127.0.0.1:1", "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert rows[0] == ["trial", "state", "step", "time", "lr", "coef"]
    assert [row[2:] for row in rows[1:5]] == [
        ["1e-06", "0.01"],
        ["1e-06", "0.05"],
        ["3e-06", "0.01"],
        ["3e-06", "0.05"],
    ]
    assert " ".join(rows[5]) == "dry run: 4 trials of 6 GPUs, all of whose configs are right"
    assert sorted(os.listdir(files)) == before
