"""What `preceptor sweep` refuses, each in one message, before anything starts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.estimate.preflight import check_memory
from orchestrator.sweep.records import SweepFolder, SweepSpec
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
    (tmp_path / "big.yaml").write_text(BIG)
    (tmp_path / "full").mkdir()
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "ignored").mkdir()
    (tmp_path / "ignored" / "rows.jsonl").write_text("{}\n")
    (tmp_path / "full" / "file").touch()
    return tmp_path


ANEW = "--parallel, --gpus, --retries, --metric, --mode, --registry, --skip-memory-check, --address"
BIG = """\
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
"""Fits an H200, not an L4."""
LR = "policy.optimizer.lr=[1e-6,3e-6]"
ASHA = ("--search", "asha", "--samples", "4", "--metric", "score")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dir", "s"), "CONFIG: missing; allowed: preceptor sweep CONFIG 'key=[value,value]'"),
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
            f"--dry-run: got it with --resume; allowed: {ANEW}",
        ),
        (("--resume", "s", "--seed", "7"), f"--seed: got it with --resume; allowed: {ANEW}"),
        (("--resume", "s", "--working-dir", "."), f"--working-dir: got it with --resume; allowed: {ANEW}"),
        (
            ("--resume", "s3://bucket/s"),
            "--resume: got 's3://bucket/s'; allowed: a folder; on a cluster, one that all nodes share at the same path",
        ),
        (("ppo.yaml", LR, "--samples", "3"), "--samples: got it without --search; allowed: with --search alone"),
        (("ppo.yaml", LR, "--reduction", "2"), "--reduction: got it without --search; allowed: with --search alone"),
        (("ppo.yaml", LR, "--seed", "7"), "--seed: got it where nothing is drawn; allowed: with --random or --search"),
        (("ppo.yaml", LR, "--env", "HOME"), "--env: got it without --address; allowed: with --address URL"),
        (
            ("ppo.yaml", LR, "--address", "http://127.0.0.1:1"),
            "--dir: missing; allowed: with --address a folder that this machine and the cluster's nodes share",
        ),
        (
            ("ppo.yaml", LR, "--registry", "postgresql://u:pw@127.0.0.1:1/d"),
            "--registry: got an address with a password, which the shell's history and the process list would show; allowed: one without",
        ),
        (
            ("big.yaml", "run.seed=[1,2]", "--address", "http://127.0.0.1:1", "--dir", "s"),
            "trial 0001 (run.seed=1) and 1 more: stage ppo does not fit (`--skip-memory-check` starts it all the same):",
        ),
        (
            (
                "big.yaml",
                "cluster.gpu=[h200-141gb,l4]",
                "policy.optimizer.lr=[1e-6,3e-6]",
                "--address",
                "http://127.0.0.1:1",
                "--dir",
                "s",
            ),
            "trial 0003 (cluster.gpu=l4 policy.optimizer.lr=1e-06) and 1 more: stage ppo does not fit",
        ),
        (
            ("ppo.yaml", LR, "cluster.groups.polciy.resource=a100", "--skip-memory-check"),
            "trial 0001 (policy.optimizer.lr=1e-06): cluster.groups does not fit the roles: cluster.groups.polciy: got a group",
        ),
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
        (
            (
                "ppo.yaml",
                "data.path=[hub/name,ignored/rows.jsonl]",
                "--dir",
                "ignored/s",
                "--address",
                "http://127.0.0.1:1",
            ),
            "the job would not find what is not copied to the cluster: data.path: got 'ignored/rows.jsonl', which .gitignore",
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


@pytest.fixture
def directed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SweepFolder, SweepSpec]]:
    """Sweeps that would run."""
    begun: list[tuple[SweepFolder, SweepSpec]] = []
    monkeypatch.setattr("orchestrator.sweep.direct.direct", lambda folder, spec: begun.append((folder, spec)))
    return begun


def test_without_a_folder_one_is_named_after_config_and_time(
    files: Path, capsys: pytest.CaptureFixture[str], directed: list[tuple[SweepFolder, SweepSpec]]
) -> None:
    assert main(["sweep", "ppo.yaml", LR]) == 0
    [(folder, _)] = directed
    assert re.fullmatch(rf"{files}/runs/sweep-ppo-20\d{{6}}-\d{{6}}", str(folder.path))
    assert capsys.readouterr().out.splitlines() == [
        f"folder: {folder.path}",
        f"go on with it: preceptor sweep --resume {folder.path}",
    ]
    assert [trial.overrides[0] for trial in folder.trials()] == [
        "policy.optimizer.lr=1e-06",
        "policy.optimizer.lr=3e-06",
    ]


def test_registry_and_memory_check_are_kept_and_may_be_given_anew(
    files: Path, directed: list[tuple[SweepFolder, SweepSpec]]
) -> None:
    assert main(["sweep", "ppo.yaml", LR, "--dir", "s", "--registry", "off"]) == 0
    assert main(["sweep", "--resume", "s"]) == 0
    assert main(["sweep", "--resume", "s", "--registry", "sqlite:///r.db", "--skip-memory-check"]) == 0
    assert [(spec.registry, spec.skip_memory_check) for _, spec in directed] == [
        ("off", False),
        ("off", False),
        ("sqlite:///r.db", True),
    ]


def test_an_address_for_a_sweep_of_this_machine_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str], directed: list[tuple[SweepFolder, SweepSpec]]
) -> None:
    assert main(["sweep", "ppo.yaml", LR, "--dir", "s"]) == 0
    assert main(["sweep", "--resume", "s", "--address", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err == (
        "preceptor: --address: got 'http://127.0.0.1:1', but this sweep's trials run on this machine; allowed: --resume DIR without it\n"
    )
    assert len(directed) == 1


def test_memory_is_estimated_once_for_trials_that_need_the_same(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(config: Any, *, here: bool) -> None:
        asked.append(config.rollout.max_response_tokens)
        check_memory(config, here=here)

    monkeypatch.setattr("orchestrator.sweep.prepare.check_memory", counted)
    axes = (
        "policy.optimizer.lr=[1e-6,3e-6]",
        "ppo.gamma=[0.9,1.0]",
        "run.seed=[1,2]",
        "rollout.max_response_tokens=[8,16]",
    )
    fits = ("big.yaml", "cluster.gpu=h200-141gb", *axes, "--address", "http://127.0.0.1:1", "--dir", "s", "--dry-run")
    assert main(["sweep", *fits]) == 0
    assert asked == [8, 16]
    too_small = [word.replace("h200-141gb", "l4") for word in fits]
    assert main(["sweep", *too_small, "--skip-memory-check"]) == 0
    assert main(["sweep", *too_small]) == 2
    assert asked == [8, 16, 8, 16]


def test_a_registry_that_every_trial_would_refuse_is_refused_before(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_REGISTRY", "mysql://h/d")
    assert main(["sweep", "ppo.yaml", LR, "--dir", "s"]) == 2
    assert capsys.readouterr().err.startswith(
        "preceptor: PRECEPTOR_REGISTRY: got a database of kind 'mysql'; allowed: sqlite:"
    )
    assert not (files / "s").exists()
