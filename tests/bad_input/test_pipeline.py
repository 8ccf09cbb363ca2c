"""A pipeline: later stages are checked before the first begins, as far as can be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from configs.load import load_config
from configs.schema.ppo import PPOStage
from orchestrator.commands.base import BAD_INPUT, FINE
from orchestrator.jobs import resolve_references
from tests.bad_input.jobs import Job
from tests.tiny_models import make_tiny_causal_lm


@pytest.fixture
def pipeline(job: Job) -> Job:
    """A reward stage before the job's PPO, whose reward model and critic it exports."""
    pairs = [{"prompt": f"what is {n} ?", "chosen": "one", "rejected": "two"} for n in ("one", "two", "three")]
    (job.folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    ppo = yaml.safe_load(job.config.read_text())
    ppo["run"] = {}
    ppo["reward"] = {"model": {"model": "stage:judge"}}
    judge = {
        "stage": "reward",
        "data": {"path": str(job.folder / "pairs.jsonl"), "max_tokens": 64, "held_out_rows": 1},
        "model": {"model": str(job.folder / "policy")},
        "training": {"groups_per_step": 1},
    }
    run = {"dir": str(job.folder / "run")}
    job.config.write_text(yaml.safe_dump({"stage": "pipeline", "run": run, "stages": {"judge": judge, "ppo": ppo}}))
    return job


def test_a_pipeline_says_what_can_not_be_checked_yet(pipeline: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.run() == FINE
    out = capsys.readouterr().out
    assert "not checked: stages.ppo.reward.model.model: stage:judge does not exist yet" in out
    assert out.count("not checked") == 1


def later_stage_without_data(job: Job) -> list[str]:
    return ["stages.ppo.data.path=nowhere.jsonl"]


def later_stage_without_policy(job: Job) -> list[str]:
    return [f"stages.ppo.policy.model={job.folder / 'nowhere'}"]


def later_stage_without_function(job: Job) -> list[str]:
    return ['stages.ppo.reward.functions=[{function: "no_such:pays"}]']


def later_stage_of_another_tokenizer(job: Job) -> list[str]:
    make_tiny_causal_lm(job.folder / "other", tied=True, vocab_size=110)
    return [f"stages.ppo.policy.model={job.folder / 'other'}"]


def later_stage_beyond_the_window(job: Job) -> list[str]:
    shutil.copytree(job.folder / "policy", job.folder / "short")
    job.edit("short/config.json", max_position_embeddings=21)
    return [f"stages.judge.model.model={job.folder / 'short'}", "stages.judge.data.max_tokens=20"]


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (later_stage_without_data, ["stages.ppo", "nowhere.jsonl"]),
        (later_stage_without_policy, ["stages.ppo", "policy.model", "does not exist"]),
        (later_stage_without_function, ["stages.ppo", "reward.functions.0", "no_such"]),
        (later_stage_of_another_tokenizer, ["stages.ppo", "critic.init_from", "110 and 128 tokens"]),
        (later_stage_beyond_the_window, ["stages.ppo", "reward.model.model: the longest prompt", "21"]),
    ],
)
def test_a_later_stage_is_checked_before_the_first_begins(
    pipeline: Job, spoil: Callable[[Job], list[str]], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.run(*spoil(pipeline)) == BAD_INPUT
    message = capsys.readouterr().err
    for part in parts:
        assert part in message, message


def test_only_models_are_exports_of_stages(pipeline: Job) -> None:
    config = load_config(pipeline.config, ["stages.ppo.data.path=stage:judge"])
    stage = resolve_references(config.stages["ppo"], Path("/runs/one"))  # type: ignore[union-attr]
    assert isinstance(stage, PPOStage)
    assert stage.reward.model is not None
    assert stage.reward.model.model == "/runs/one/judge/export"
    assert stage.data.path == "stage:judge"
