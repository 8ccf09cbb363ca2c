"""The same rewards, given to the wrong answers, teach nothing. That they teach what pays: `tests/test_readme.py`, with the same recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bandit import paying_shares

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_shuffled_rewards_teach_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "tools/make_tiny_model.py", str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    overrides = {
        "run.dir": tmp_path / "run",
        "policy.model": tmp_path / "model",
        "data.path": tmp_path / "prompts.jsonl",
        "reward.functions.0.function": "examples.bandit:pays_shuffled",
    }
    command = [sys.executable, "-m", "orchestrator", "run", "configs/recipes/bandit.yaml"]
    command += [f"{key}={value}" for key, value in overrides.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shares = paying_shares(tmp_path / "run")
    assert len(shares) == 20
    assert max(shares) < 0.3, shares
