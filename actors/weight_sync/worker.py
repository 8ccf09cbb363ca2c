"""The engine's side of a weight sync: loads buckets into vLLM's model, inside each of its worker processes, and proves what it got.

`WeightReceiver` is vLLM's `worker_extension_cls`: its methods become methods of vLLM's worker, which provides `get_model`, `rank`,
`device` and `vllm_config`. Loading goes through vLLM's layerwise reload, which undoes and redoes what vLLM makes of weights after
loading them (on CPU: packing for oneDNN).

The layerwise reload has a gap: a layer that shares its parameter with another (a tied output head) gets the new values, but what was made
of the old ones (the packed copy that the CPU multiplies by) stays. `refresh_followers` closes it.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actors.errors import SyncFailed
from actors.weight_sync.bucket import Bucket, tensors_in
from actors.weight_sync.ipc import Handles, handle_of
from actors.weight_sync.nccl import BroadcastGroup, GroupAddress
from actors.weight_sync.proof import checksum
from actors.weight_sync.reports import WorkerReceipt


@dataclass(slots=True, kw_only=True)
class Update:
    """A sync under way."""

    followers: list[tuple[str, nn.Module]]
    """Layers whose parameters belong to another layer too and are loaded through that one."""
    checksums: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


class WeightReceiver:
    """Methods that vLLM's worker gains; the engine calls them by `collective_rpc`."""

    # class attributes: vLLM's worker never runs an extension's __init__
    _receiver_update: Update | None = None
    _receiver_group: BroadcastGroup | None = None
    _receiver_importer: Any = None

    get_model: Any
    vllm_config: Any
    rank: int
    device: torch.device

    def receiver_connect_cpu(self) -> None:
        """Nothing to meet: buckets come with the calls."""
        self._receiver_disconnect()

    def receiver_connect_broadcast(self, address: GroupAddress) -> None:
        """Joins the sender's broadcast group. SyncFailed where it does not come about in time."""
        self._receiver_disconnect()
        device = self.device if address.backend == "nccl" else torch.device("cpu")
        try:
            self._receiver_group = BroadcastGroup.join(address, address.rank_offset + self.rank, device)
            self._receiver_group.greet()
        except RuntimeError as error:  # what torch raises where a peer does not come
            raise SyncFailed(
                f"worker {self.rank} did not meet the sender at {address.host}:{address.port}: {error}"
            ) from error

    def receiver_connect_ipc(self) -> None:
        """Makes ready for handles; SyncFailed where this worker has no GPU."""
        if self.device.type != "cuda":
            raise SyncFailed(f"weight_sync.channel ipc needs CUDA, got device {self.device.type!r}; allowed on it: cpu")
        from vllm.distributed.weight_transfer.packed_tensor import PackedBufferImporter

        self._receiver_disconnect()
        self._receiver_importer = PackedBufferImporter()

    def receiver_begin(self) -> None:
        """Starts a sync: vLLM's layers go back to the layout in which they were loaded, without values."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self._receiver_update is not None:
            raise SyncFailed("a weight sync began while another was under way")
        self._receiver_update = Update(followers=followers(self.get_model()))
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.get_model())

    def receiver_load(self, bucket: Bucket, source: Any) -> None:
        """Loads one bucket. `source` is its bytes (numpy uint8 [N]), IPC handles, or None where they come by broadcast."""
        from vllm.config import set_current_vllm_config

        update = self._receiver_update
        if update is None:
            raise SyncFailed(f"bucket {bucket.index} came outside a weight sync")
        named = tensors_in(bucket, self._receiver_payload(bucket, source))
        for name, tensor in named:
            if name in update.checksums:
                raise SyncFailed(f"{name} came twice in one weight sync")
            update.checksums[name] = checksum(tensor)
            update.num_bytes += tensor.nbytes
        with set_current_vllm_config(self.vllm_config):
            self.get_model().load_weights(iter(named))

    def receiver_finish(self) -> WorkerReceipt:
        """Ends a sync: what was loaded becomes what vLLM computes with. The caller judges the receipt."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        update, model = self._receiver_update, self.get_model()
        if update is None:
            raise SyncFailed("a weight sync ended that had not begun")
        untouched = untouched_parameters(model, update.followers)
        with set_current_vllm_config(self.vllm_config), _quiet_reload():
            finalize_layerwise_reload(model, self.vllm_config.model_config)
            refresh_followers([layer for _, layer in update.followers])
        if self._receiver_importer is not None:
            self._receiver_importer.close()
        self._receiver_update = None
        return WorkerReceipt(checksums=update.checksums, untouched=untouched, num_bytes=update.num_bytes)

    def _receiver_disconnect(self) -> None:
        if self._receiver_group is not None:
            self._receiver_group.close()
        self._receiver_group = self._receiver_importer = None

    def _receiver_payload(self, bucket: Bucket, source: Any) -> Tensor:
        """The bucket's bytes: uint8 [N]."""
        if source is None:
            if self._receiver_group is None:
                raise SyncFailed(
                    f"bucket {bucket.index} is to come by broadcast, but this engine is in no broadcast group"
                )
            return self._receiver_group.receive(bucket.num_bytes)
        if isinstance(source, dict):
            return self._receiver_open(bucket, source)
        with warnings.catch_warnings():
            # Ray's shared memory can't be written to; nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(source)

    def _receiver_open(self, bucket: Bucket, handles: Handles) -> Tensor:
        """A copy of the bytes in the policy's buffer on this GPU: the sender fills it again as soon as this call returns."""
        args = list(handle_of(handles, str(torch.cuda.get_device_properties(self.device).uuid)))
        args[6] = self.device.index  # reduce_tensor's place for the device, which both processes may number differently
        return self._receiver_importer.rebuild(args)[: bucket.num_bytes].clone()


@contextlib.contextmanager
def _quiet_reload() -> Iterator[None]:
    """vLLM warns "Failed to load weights" of layers that have none (rotary tables, tied heads); `untouched_parameters` tells them apart."""
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def followers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers that hold only parameters which an earlier layer holds too: a tied head after its embedding."""
    seen: set[int] = set()
    found = []
    for name, layer in model.named_modules():
        own = [id(parameter) for parameter in layer._parameters.values() if parameter is not None]
        if own and all(parameter in seen for parameter in own):
            found.append((name, layer))
        seen.update(own)
    return found


def untouched_parameters(model: nn.Module, followers: list[tuple[str, nn.Module]]) -> tuple[str, ...]:
    """Parameters that the sync under way has not, or not wholly, filled, by vLLM's names. Asked before the reload is finalized.

    A layer counts as whole when as many values were loaded as its parameters have, the padding of a vocabulary left out: so a fused
    parameter (qkv, gate and up) that lacks one of its parts is found too.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

    exempt = {id(layer) for _, layer in followers}
    found = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        parameters = {key: value for key, value in layer._parameters.items() if value is not None}
        if not info.can_load() or not parameters or id(layer) in exempt:
            continue  # processed whole, or nothing to load
        expected = sum(get_tensor_load_numel(parameter) for parameter in parameters.values())
        if isinstance(layer, VocabParallelEmbedding):
            rows = layer.shard_indices.num_org_elements + layer.shard_indices.num_added_elements
            expected -= (layer.num_embeddings_per_partition - rows) * layer.embedding_dim
        if info.load_numel < expected:
            touched = {key for key, _ in info.loaded_weights}
            missing = [key for key in parameters if key not in touched] or list(parameters)
            found += [f"{name}.{key}" for key in missing]
    return tuple(found)


def refresh_followers(layers: list[nn.Module]) -> None:
    """Has vLLM make again what it computes with (packed copies) for layers whose parameters were loaded through another layer."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    for layer in layers:
        method = layer.__dict__.get("quant_method")
        if isinstance(method, QuantizeMethodBase):
            layer.__dict__.pop("_already_called_process_weights_after_loading", None)
            method.process_weights_after_loading(layer)
