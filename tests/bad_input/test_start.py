"""What a run finds when it starts: other models than it was begun with, and how much of the data is left out."""

from __future__ import annotations

import json
import shutil

import pytest

from actors.errors import UserError
from actors.preflight import check_ppo, check_supervised
from configs.load import load_config
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from orchestrator.run_dir import same_models
from tests.bad_input.jobs import Job
from tests.tiny_models import make_tiny_scalar


def test_a_run_does_not_go_on_with_a_model_of_another_architecture(job: Job) -> None:
    config = load_config(job.config)
    assert isinstance(config, PPOStage)
    run = job.folder / "begun"
    run.mkdir()
    same_models(run, check_ppo(config).models)
    same_models(run, check_ppo(config).models)
    noted = (run / "models.json").read_text()
    stats = (job.folder / "reward" / "preceptor_reward.json").read_text()
    shutil.rmtree(job.folder / "reward")
    make_tiny_scalar(job.folder / "reward", num_layers=3)
    (job.folder / "reward" / "preceptor_reward.json").write_text(stats)
    with pytest.raises(UserError) as caught:
        same_models(run, check_ppo(config).models)
    for part in ("reward.model.model is not the model", "models.json", "num_hidden_layers: 2, 3", "start a new run"):
        assert part in str(caught.value)
    assert (run / "models.json").read_text() == noted


def test_what_is_left_out_of_ranked_answers_is_counted(job: Job) -> None:
    rows = [
        {"prompt": "what ?", "responses": ["one", "two"], "ranks": [0, 1]},
        {"prompt": "what ?", "responses": ["one", "two"], "ranks": [1, 1]},
        {"prompt": "what ?", "responses": ["yes " * 50, "two"], "ranks": [0, 1]},
        {"prompt": "what ?", "responses": ["yes " * 50, "no"], "ranks": [0, 1]},
        {"prompt": "what ?", "responses": ["two", "one"], "ranks": [0, 1]},
    ]
    path = job.folder / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(path), "format": "ranking", "max_tokens": 20, "overlong": "drop", "held_out_rows": 1}
    facts = check_supervised(
        RewardStage.model_validate(
            {"stage": "reward", "run": {"dir": "r"}, "data": data, "model": {"model": str(job.folder / "policy")}}
        )
    )
    assert (facts.num_train, facts.num_held_out, facts.num_dropped, facts.num_ties) == (1, 1, 2, 1)
