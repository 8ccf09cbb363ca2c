"""Hugging Face models into memory, whole or sharded while they are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers
from safetensors import safe_open
from torch import nn
from transformers.initialization import no_init_weights

from actors.engine.sharding import DTYPES, gathered, sharded_construction
from actors.errors import UserError
from actors.models.checks import checkpoint_tensors
from configs.schema.engine import EngineConfig

DROPOUT_WORDS = ("dropout", "pdrop", "dropout_prob", "dropout_rate", "dropout_p")


def read_config(folder: Path, **overrides: Any) -> Any:
    """The transformers config with every dropout probability 0: in training, log-probabilities must be those of evaluation."""
    config = transformers.AutoConfig.from_pretrained(folder, **overrides)
    for key, value in config.to_dict().items():
        if key.endswith(DROPOUT_WORDS) and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def load_model(
    auto_class: Any, folder: Path, config: Any, engine: EngineConfig, *, device: str
) -> tuple[Any, set[str]]:
    """A model of `auto_class` with the weights of `folder`, and the names of parameters that the checkpoint lacks.

    Under ZeRO-3 each rank holds its share from the start, and one parameter at a time is whole while rank 0 reads it from disk (collective;
    the process group must have been joined). At the other stages the whole model is read to the CPU.
    """
    if engine.zero_stage == 3:
        return _load_sharded(auto_class, folder, config, engine, device=device)
    model, report = auto_class.from_pretrained(
        folder,
        config=config,
        dtype=DTYPES[engine.dtype],
        attn_implementation=engine.attention,
        output_loading_info=True,
    )
    return model, set(report["missing_keys"])


def _load_sharded(
    auto_class: Any, folder: Path, config: Any, engine: EngineConfig, *, device: str
) -> tuple[Any, set[str]]:
    assert dist.is_initialized(), "join_process_group comes before a sharded model is loaded"
    stored = checkpoint_tensors(folder)
    with no_init_weights(), sharded_construction(engine, device=device):
        model = auto_class.from_config(config, dtype=DTYPES[engine.dtype], attn_implementation=engine.attention)
    model.tie_weights()
    missing = set()
    for name, parameter in model.named_parameters():
        if name not in stored:
            missing.add(name)
            continue
        with gathered([parameter], writer=0):
            if dist.get_rank() == 0:
                _copy_from(stored[name], name, parameter)
    return model, missing


def _copy_from(file: Path, name: str, parameter: nn.Parameter) -> None:
    with safe_open(file, framework="pt") as tensors:
        value = tensors.get_tensor(name)
    if value.shape != parameter.shape:
        raise UserError(
            f"{file}: {name} has shape {tuple(value.shape)}, the model's config says {tuple(parameter.shape)}"
        )
    parameter.data.copy_(value)


def finish(model: Any, engine: EngineConfig) -> None:
    """What every loaded model gets: no dropout module, activation checkpointing where it is asked for."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if engine.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
