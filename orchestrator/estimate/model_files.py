"""Where a model's `config.json` comes from, without a hub: a folder, the facts that ship with the project, or the hub's cache."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from orchestrator.estimate.shapes import ModelShape, UnknownModel, model_shape

MODEL_FACTS = Path(configs.__path__[0]) / "facts" / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model's sizes, and where they were read."""

    shape: ModelShape
    origin: str
    """In words: a path, or `facts that ship with preceptor`."""


def find_model(model: str) -> FoundModel:
    """The sizes of a folder or hub name.

    Raises:
        UnknownModel: its config.json is nowhere to be had, is none, or is of an architecture that is not known.
    """
    path, origin = _config_file(model)
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModel(f"{model}: {path} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise UnknownModel(f"{model}: {path} is not a JSON object")
    return FoundModel(shape=model_shape(values, model), origin=origin)


def _config_file(model: str) -> tuple[Path, str]:
    folder = Path(model)
    if folder.is_dir():
        return folder / "config.json", str(folder / "config.json")
    shipped = MODEL_FACTS / f"{model.replace('/', '--')}.json"
    if "/" in model and shipped.is_file():
        return shipped, "facts that ship with preceptor"
    cached = _cached(model)
    if cached is not None:
        return cached, str(cached)
    raise UnknownModel(
        f"{model}: no folder, not among the facts that ship with preceptor ({MODEL_FACTS.name}/), not in the hub's cache"
    )


def _cached(model: str) -> Path | None:
    """Of the newest snapshot of `main`, where the Hugging Face hub keeps its files; read without its library, which is slow to import."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = cache / f"models--{model.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None
    path = repository / "snapshots" / revision / "config.json"
    return path if path.is_file() else None
