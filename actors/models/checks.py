"""What can be known of a model folder without loading it. Reads JSON and file headers; imports no torch."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.errors import UserError
from actors.local_files import local_copy
from actors.store import run_path

# Settings that change logits after the head: log-probabilities from hidden states would be silently wrong.
LOGIT_SETTINGS = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logits_scale": (None, 1, 1.0),
    "lm_head_multiplier": (None, 1, 1.0),
}
# Sizes and shapes of a network: two models that agree in these have the same tensors.
ARCHITECTURE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


WITHOUT_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model that say what it is."""


def resolve_folder(model: str, *, weights: bool = True) -> Path:
    """The local folder of `model`; a URL is downloaded into our cache, a name that is neither is fetched from the Hugging Face hub into
    its cache; on wish without its weights, which may take long.

    Raises:
        UserError: if it is none of them.
    """
    if "://" in model:
        return local_copy(run_path(model, "model"), ("*",) if weights else WITHOUT_WEIGHTS)
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith("."):
        raise UserError(f"model folder {model} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [*WITHOUT_WEIGHTS, "*.safetensors"] if weights else list(WITHOUT_WEIGHTS)
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(f"model {model} is neither a local folder nor a model that the hub gives: {error}") from error


def name_for_libraries(model: str, *, weights: bool = False) -> str:
    """The model as transformers and vLLM are told it: they know folders and hub names, of URLs a copy."""
    return str(resolve_folder(model, weights=weights)) if "://" in model else model


def read_model_config(model: str | Path) -> dict[str, Any]:
    """The model's `config.json`.

    Raises:
        UserError: if the folder has none, or it is not a JSON object.
    """
    path = resolve_folder(str(model), weights=False) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no Hugging Face model folder: it has no config.json") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object")
    return config


def weights_digest(model: str) -> str:
    """sha256 over the model's weight files, names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(resolve_folder(model).glob("*.safetensors")):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def window(config: Mapping[str, Any]) -> int | None:
    """Most tokens the model's positions reach to; None where its `config.json` does not say. `n_positions` is GPT-2's word."""
    return config.get("max_position_embeddings", config.get("n_positions"))


def architecture_differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Settings in which two model configs have different tensors, as `key: a, b`; empty where they fit each other."""
    return [f"{key}: {a.get(key)}, {b.get(key)}" for key in ARCHITECTURE_KEYS if a.get(key) != b.get(key)]


def check_plain_logits(config: dict[str, Any], model: str) -> None:
    """Refuses models whose logits are more than hidden state times head.

    Raises:
        UserError: naming the setting.
    """
    for key, plain in LOGIT_SETTINGS.items():
        if config.get(key) not in plain:
            raise UserError(
                f"{model}: config.json sets {key} = {config[key]}; models that change their logits are not supported"
            )


def checkpoint_tensors(folder: Path) -> dict[str, Path]:
    """Every tensor of a safetensors checkpoint and the file that holds it.

    Raises:
        UserError: if the folder has no safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no *.safetensors file; other weight formats are not read")
    return {name: file for file in files for name in _header(file) if name != "__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length))
