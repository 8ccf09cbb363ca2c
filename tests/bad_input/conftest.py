"""The job, and the models that each one copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bad_input.jobs import Job
from tests.tiny_models import make_tiny_causal_lm, make_tiny_scalar


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_causal_lm(folder / "policy", tied=True)
    make_tiny_scalar(folder / "reward")
    stats = {
        "num_groups": 8,
        "num_pairs": 8,
        "pair_accuracy": 0.9,
        "ece": 0.1,
        "length_correlation": 0.0,
        "mean": 0.5,
        "std": 2.0,
        "data_fingerprint": "f",
    }
    (folder / "reward" / "preceptor_reward.json").write_text(json.dumps(stats))
    return folder


@pytest.fixture
def job(tmp_path: Path, models: Path) -> Job:
    return Job(tmp_path, models)
