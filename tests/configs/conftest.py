"""A config file that loads."""

from pathlib import Path

import pytest

from tests.configs.small_files import PPO, write


@pytest.fixture
def ppo(tmp_path: Path) -> Path:
    return write(tmp_path / "ppo.yaml", PPO)
