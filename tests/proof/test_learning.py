"""The recipe that a new user runs first: what pays becomes likely, and does not where the same rewards go to the wrong answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

ROOT = Path(__file__).resolve().parents[2]
WITHIN_STEPS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bandit")
    subprocess.run([sys.executable, "tools/make_tiny_model.py", str(folder)], cwd=ROOT, check=True, timeout=120)
    return folder


def paying_shares(inputs: Path, function: str) -> list[float]:
    """Runs the recipe; by step, the share of answers that are the paying word."""
    run_dir = inputs / function.partition(":")[2]
    overrides = {
        "run.dir": run_dir,
        "policy.model": inputs / "model",
        "data.path": inputs / "prompts.jsonl",
        "reward.functions.0.function": function,
        "ppo.steps": WITHIN_STEPS,
    }
    command = [sys.executable, "-m", "orchestrator", "run", "configs/recipes/bandit.yaml"]
    command += [f"{key}={value}" for key, value in overrides.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shares = []
    for folder in sorted((run_dir / "trajectories").iterdir()):
        answers = [
            answer for file in sorted(folder.iterdir()) for answer in pq.read_table(file)["response"].to_pylist()
        ]
        shares.append(sum(answer.strip() == "yes" for answer in answers) / len(answers))
    return shares


def test_the_paying_word_becomes_likely(inputs: Path) -> None:
    shares = paying_shares(inputs, "examples.bandit:pays")

    assert shares[0] < 0.1
    assert min(shares[-3:]) > 0.9, shares


def test_shuffled_rewards_teach_nothing(inputs: Path) -> None:
    shares = paying_shares(inputs, "examples.bandit:pays_shuffled")

    assert max(shares) < 0.3, shares
