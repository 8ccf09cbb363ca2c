"""A config that passes, to spoil one thing of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from orchestrator.cli import main


class Job:
    """A config that passes, and its files, to be spoilt."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        for name in ("policy", "reward"):
            shutil.copytree(models / name, folder / name)
        self.prompts = folder / "prompts.jsonl"
        self.prompts.write_text(
            "".join(json.dumps({"prompt": f"what is {n} plus one ?"}) + "\n" for n in ("two", "three"))
        )
        self.config = folder / "config.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "stage": "ppo",
                    "run": {"dir": str(folder / "run")},
                    "data": {"path": str(self.prompts), "max_prompt_tokens": 64},
                    "policy": {"model": str(folder / "policy")},
                    "reward": {"model": {"model": str(folder / "reward")}},
                    "rollout": {"max_response_tokens": 16, "prompts_per_wave": 2},
                    "ppo": {"steps": 1, "prompts_per_step": 2},
                }
            )
        )

    def edit(self, name: str, **changes: object) -> None:
        """Changes keys of a JSON file."""
        path = self.folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def run(self, *overrides: str) -> int:
        return main(["run", str(self.config), "--dry-run", *overrides])
