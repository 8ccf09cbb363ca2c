"""What DeepSpeed is told, and parameters that ZeRO-3 has sharded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride
from torch import nn

from configs.schema.engine import EngineConfig, OptimizerConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Buckets hold gradients on their way to other ranks. On CPU a large one only costs memory.
CPU_BUCKET_ELEMENTS, CUDA_BUCKET_ELEMENTS = 1_000_000, 100_000_000


def deepspeed_config(engine: EngineConfig, optimizer: OptimizerConfig | None, *, device: str) -> dict[str, Any]:
    """DeepSpeed's own config for this engine. Nothing here depends on the number of micro-batches: the engine marks the last one itself."""
    on_cuda = device == "cuda"
    bucket = CUDA_BUCKET_ELEMENTS if on_cuda else CPU_BUCKET_ELEMENTS
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket // 2,
        "contiguous_gradients": True,
        "overlap_comm": on_cuda and engine.zero_stage > 0,
    }
    if engine.offload_optimizer and optimizer is not None:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_cuda}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Stage 0 in fp32 would step on a gradient that is not finite: there the engine clips and checks itself.
        "gradient_clipping": optimizer.max_grad_norm if optimizer is not None and engine.zero_stage > 0 else 0.0,
    }
    if engine.dtype == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        # Contributions of micro-batches and ranks are added in fp32: the sum must not depend on how the batch was split.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


@contextlib.contextmanager
def sharded_construction(engine: EngineConfig, *, device: str) -> Iterator[None]:
    """Modules built inside keep only this rank's share of each parameter (ZeRO-3); at other stages nothing changes.

    The type comes from the config, not from `dtype=`, which DeepSpeed takes for bfloat16 on a device without float16. Only parameters get
    it: by default every tensor made inside would, and rotary frequencies in bfloat16 put late positions in the wrong place.
    """
    if engine.zero_stage != 3:
        yield
        return
    config = deepspeed_config(engine, None, device=device) | {"train_batch_size": torch.distributed.get_world_size()}
    with deepspeed.zero.Init(config_dict_or_path=config, tensor_overrides=[DeepSpeedTensorOverride.device]):
        yield


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 owns this parameter: its `data` is there only while it is gathered."""
    return "ds_id" in vars(parameter)


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter, gathered or not."""
    return vars(parameter)["ds_shape"] if is_sharded(parameter) else parameter.shape


def release(parameter: nn.Parameter) -> None:
    """Frees the whole value of a sharded parameter, so that the next use gathers the ranks' shares anew. Not collective.

    ZeRO-3 keeps small parameters whole from one forward to the next: after a change of the shares they would be the old ones.
    """
    if is_sharded(parameter):
        vars(parameter)["partition"]()


@contextlib.contextmanager
def gathered(parameters: Sequence[nn.Parameter], *, writer: int | None = None) -> Iterator[None]:
    """The whole values of sharded parameters, on every rank (collective). What rank `writer` writes into them reaches all ranks."""
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=writer, enabled=bool(sharded)), torch.no_grad():
        yield
