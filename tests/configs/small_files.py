"""Small config files, and what is said of those that are refused."""

from pathlib import Path
from textwrap import dedent

import pytest

from configs.errors import ConfigError
from configs.load import load_config
from configs.schema.ppo import PPOStage

PPO = """\
stage: ppo
run: {dir: runs/x}
data:
  path: prompts.jsonl
policy:
  model: m
reward:
  model: {model: r}
ppo:
  steps: 3
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), "utf-8")
    return path


def load_ppo(path: Path, *overrides: str) -> PPOStage:
    config = load_config(path, overrides)
    assert isinstance(config, PPOStage)
    return config


def lines(path: Path, *overrides: str) -> list[str]:
    """The problems of a config that is refused, with the folder left out of their text."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "pydantic" not in text and "type=" not in text
    return [line.strip().replace(f"{path.parent}/", "") for line in text.split("\n")]


def problems(path: Path, *overrides: str) -> list[str]:
    title, *rest = lines(path, *overrides)
    assert title == f"{path.name} is not a valid config:"
    return rest
