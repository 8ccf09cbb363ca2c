"""A trained model as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from actors.durable import sync, sync_tree
from actors.local_files import staged_folder
from actors.models.checks import name_for_libraries
from actors.store import is_local

FILE_BYTES = 5 * 10**9


class FolderWriter:
    """Writes tensors as they come into safetensors files of at most `file_bytes` (a larger tensor gets a file of its own)."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._parts: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0

    def add(self, name: str, value: Tensor) -> None:
        if self._held and self._held_bytes + value.nbytes > self._file_bytes:
            self._flush()
        self._held[name] = value.detach().to("cpu", copy=True).contiguous()
        self._held_bytes += value.nbytes
        self._total_bytes += value.nbytes

    def close(self) -> None:
        """Gives the files their final names, which contain their number, and writes the index where there are several."""
        self._flush()
        if len(self._parts) == 1:
            self._parts[0][0].rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self._parts, start=1):
            final = f"model-{number:05d}-of-{len(self._parts):05d}.safetensors"
            path.rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _flush(self) -> None:
        if self._held:
            path = self._folder / f"part-{len(self._parts):05d}.safetensors"
            save_file(self._held, path, {"format": "pt"})
            sync(path)
            self._parts.append((path, list(self._held)))
            self._held, self._held_bytes = {}, 0


def write_folder(
    folder: Path, model: Any, tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype, tokenizer_from: str
) -> None:
    """Writes config, tokenizer and weights. `model` is the transformers model that the tensors are of; only its config is read.

    All of it is on disk when this returns.
    """
    with staged_folder(folder) as here:
        writer = FolderWriter(here)
        for name, value in tensors:
            writer.add(name, value)
        writer.close()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name_for_libraries(tokenizer_from))
        tokenizer.save_pretrained(here)
        export_config(model, dtype=dtype, pad_token_id=tokenizer.pad_token_id).save_pretrained(here)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(here)
    if is_local(folder):
        sync_tree(folder)


def export_config(model: Any, *, dtype: torch.dtype, pad_token_id: int | None) -> Any:
    """The model's config as `save_pretrained` would write it.

    A ForSequenceClassification model reads its score at the last token that is not padding. Where padding and end token are the same, that
    would be the token before the end, so no padding token is named: transformers then takes sequences one at a time and reads the last.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    if type(model).__name__.endswith("ForSequenceClassification"):
        end = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        config.pad_token_id = None if pad_token_id in end else pad_token_id
    return config
