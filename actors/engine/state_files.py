"""Master weights and Adam's state as safetensors files that know nothing of ranks or ZeRO stages.

A file holds, for some parameters, `master/NAME`, `exp_avg/NAME` and `exp_avg_sq/NAME`, whole and in fp32, and in its metadata the format
and Adam's step count. Each parameter is in exactly one file; which one says nothing. Reading takes the union of all files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.durable import sync
from actors.engine.optimizer_states import MOMENTS, OptimizerStates
from actors.engine.sharding import full_shape
from actors.errors import UserError
from actors.local_files import staged_file
from actors.store import is_local, make_folder
from actors.tasks import WrittenFile

FORMAT = "preceptor-training-state-1"
PATTERN = "state-*.safetensors"
# A rank holds a file's tensors in host memory until it is written.
FILE_BYTES = 2 * 1024**3


def write_states(
    parameters: Mapping[str, nn.Parameter], states: OptimizerStates, folder: Path, *, file_bytes: int = FILE_BYTES
) -> list[WrittenFile]:
    """Writes this rank's share of the training state into `folder` (collective) and says which files that made. They are on disk
    when this returns.

    Parameters go round the ranks by size, so that each writes about as much. One parameter at a time is whole on every rank.
    """
    rank = dist.get_rank()
    owners = share_out({name: full_shape(p).numel() for name, p in parameters.items()}, dist.get_world_size())
    metadata = {"format": FORMAT, "num_steps": str(states.num_steps())}
    make_folder(folder)
    files: list[WrittenFile] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        if held:
            with staged_file(folder / f"state-{rank:05d}-{len(files):05d}.safetensors") as path:
                save_file(held, path, metadata)
                files.append(describe_file(path))
            held.clear()

    for name, parameter in parameters.items():
        for kind in ("master", *MOMENTS):
            value = states.master(parameter) if kind == "master" else states.moment(parameter, kind)
            if owners[name] == rank:
                held[f"{kind}/{name}"] = value.to("cpu", torch.float32, copy=True).contiguous()
        if sum(tensor.nbytes for tensor in held.values()) >= file_bytes:
            flush()
    flush()
    if is_local(folder):
        sync(folder)
    return files


def read_states(parameters: Mapping[str, nn.Parameter], states: OptimizerStates, folder: Path) -> None:
    """Puts the training state of `folder` into the engine (collective); every rank reads every file.

    Raises:
        UserError: if files are missing, of another format, or of another model.
    """
    num_steps, stored = index_states(folder)
    expected = {f"{kind}/{name}" for name in parameters for kind in ("master", *MOMENTS)}
    if stored.keys() != expected:
        missing, unknown = sorted(expected - stored.keys()), sorted(stored.keys() - expected)
        raise UserError(f"{folder} does not fit this model: lacks {missing[:3]}, has besides {unknown[:3]}")
    for name, parameter in parameters.items():
        device = parameter.device
        for kind in ("master", *MOMENTS):
            value = _read(stored[f"{kind}/{name}"], f"{kind}/{name}").to(device)
            if value.shape != full_shape(parameter):
                shapes = f"{tuple(value.shape)}, the model's {tuple(full_shape(parameter))}"
                raise UserError(f"{folder}: {kind}/{name} has shape {shapes}")
            if kind == "master":
                states.set_master(parameter, value)
            else:
                states.set_moment(parameter, kind, value)
    states.set_num_steps(num_steps)


def index_states(folder: Path) -> tuple[int, dict[str, Path]]:
    """Adam's step count and, for each tensor of the training state in `folder`, its file.

    Raises:
        UserError: if there are no files, or they disagree.
    """
    stored: dict[str, Path] = {}
    counts: set[int] = set()
    for path in sorted(folder.glob(PATTERN)):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} has format {metadata.get('format')}, this version reads {FORMAT}")
            counts.add(int(metadata["num_steps"]))
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                if key in stored:
                    raise UserError(f"{key} is in {stored[key]} and in {path}: two checkpoints in one folder")
                stored[key] = path
    if len(counts) != 1:
        raise UserError(f"{folder} holds no training state" if not counts else f"{folder} mixes steps {sorted(counts)}")
    return counts.pop(), stored


def share_out(sizes: Mapping[str, int], num_ranks: int) -> dict[str, int]:
    """A rank for each name, largest first to the rank with least; the same on every rank."""
    loads = [0] * num_ranks
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


def describe_file(path: Path) -> WrittenFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenFile(name=path.name, sha256=digest, num_bytes=path.stat().st_size)


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(key)
