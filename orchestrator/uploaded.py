"""What a job reads, held against what Ray copies of its working directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, Problem
from configs.load import relative_bases
from configs.schema import Config, Pipeline, stage_models
from configs.schema.base import Section
from configs.schema.data import SourceConfig
from configs.schema.rewards import FunctionConfig
from orchestrator.ray_jobs import left_out

FILE = "a file in --working-dir that is not ignored"
INPUT = "what is in --working-dir and not ignored, an absolute path that the cluster's nodes have, or an address such as s3://..."
MODULE = "a module in --working-dir that is not ignored, or one that is installed on the nodes"
OF_A_MODEL = ("config.json", "*.safetensors")


def require_uploaded(config: Config, config_file: Path | None, working_dir: Path) -> None:
    """Refuses what is here and would not be in the job's copy of the working directory: the config's files, data, models, modules of
    functions. What is not here may be there. `config_file`: None where the job reads another than the user's.

    Raises:
        ConfigError: every such thing with its key, its path and why it would not be there.
    """
    problems: list[Problem | None] = []
    if config_file is not None:
        bases = [("base", text, path) for text, path in relative_bases(config_file)]
        for key, text, path in [("CONFIG", str(config_file), config_file), *bases]:
            problems.append(_problem(key, text, Path(os.path.relpath(path, working_dir)), working_dir, FILE))
    for key, paths, allowed in _inputs(config, working_dir):
        found = (_problem(key, str(path), path, working_dir, allowed) for path in paths)
        problems.append(next((problem for problem in found if problem), None))
    if told := [problem for problem in problems if problem]:
        raise ConfigError("the job would not find what is not copied to the cluster", list(dict.fromkeys(told)))


def _inputs(config: Config, working_dir: Path) -> Iterator[tuple[str, list[Path], str]]:
    """Keys that name what a run reads, the paths that this may be at, and what is allowed there."""
    stages = config.stages if isinstance(config, Pipeline) else {"": config}
    for name, stage in stages.items():
        prefix = f"stages.{name}" if name else ""
        for key, model in stage_models(stage).items():
            weights = [path for pattern in OF_A_MODEL for path in _within(working_dir, model, pattern)]
            yield f"{prefix}.{key}".lstrip("."), [Path(model), *weights], INPUT
        for key, section in _sections(stage, prefix):
            if isinstance(section, SourceConfig):
                yield f"{key}.path", [Path(section.path)], INPUT
            elif isinstance(section, FunctionConfig):
                module = Path(*section.function.partition(":")[0].split("."))
                files = [module.with_suffix(".py"), module / "__init__.py"]
                # one that is elsewhere here may be installed there
                yield f"{key}.function", [file for file in files if (working_dir / file).exists()], MODULE


def _problem(key: str, text: str, path: Path, working_dir: Path, allowed: str) -> Problem | None:
    """What is wrong with a path as the job takes it, relative to its copy of the working directory."""
    if path.is_absolute():
        return None
    there = Path(os.path.normpath(working_dir.absolute() / path))
    if there.exists():
        if not left_out(working_dir, there):
            return None
        inside = there.is_relative_to(os.path.normpath(working_dir.absolute()))
        why = "which .gitignore or .rayignore names" if inside else "which is outside --working-dir"
    elif path.exists():
        why = "which is in this folder and not in --working-dir"
    else:
        return None
    return Problem(key=key, got=f"got {text!r}, {why}", allowed=allowed)


def _within(working_dir: Path, folder: str, pattern: str) -> Iterator[Path]:
    """Files of a folder of the working directory, as the job names them."""
    if not Path(folder).is_absolute() and (working_dir / folder).is_dir():
        yield from (Path(folder, path.name) for path in sorted((working_dir / folder).glob(pattern)))


def _sections(value: Any, key: str) -> Iterator[tuple[str, Section]]:
    """Every section of a config by its key's path."""
    if isinstance(value, Section):
        yield key, value
        inner = list(value)
    elif isinstance(value, tuple):
        inner = [(str(at), one) for at, one in enumerate(value)]
    else:
        return
    for name, one in inner:
        yield from _sections(one, f"{key}.{name}" if key else name)
