"""The pieces in which weights travel: some tensors, one behind the other, in one flat buffer of bytes.

Legend: `N` bytes of one bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.weight_sync.proof import checksum

ALIGNMENT = 64
"""Bytes at whose multiples tensors start in a bucket, so that any dtype can be viewed in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """Where one tensor stands in a bucket, and what it is."""

    name: str
    dtype: str
    """`float32`, `bfloat16`, ..."""
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What is in one buffer. Travels ahead of the bytes or beside them."""

    index: int
    slots: tuple[TensorSlot, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledBucket:
    """A bucket with its bytes, on the sender's side."""

    bucket: Bucket
    payload: Tensor
    """uint8 [N]"""
    checksums: dict[str, str]
    """Of the tensors as they were before packing; where the payload is in another kind of memory, of the copies in it."""


def fill_buckets(
    named: Iterable[tuple[str, Tensor]], bucket_bytes: int, allocate: Callable[[int], Tensor]
) -> Iterator[FilledBucket]:
    """Packs tensors into buckets of at most `bucket_bytes`; a larger tensor gets one of its own.

    Each tensor is copied before the next is asked for: a gathered parameter lives no longer. `allocate(num_bytes)` gives uint8 memory,
    asked for only after the bucket before it was consumed.
    """
    slots: list[TensorSlot] = []
    checksums: dict[str, str] = {}
    payload, used, index = None, 0, 0

    def taken(payload: Tensor) -> FilledBucket:
        bucket = Bucket(index=index, slots=tuple(slots), num_bytes=used)
        return FilledBucket(bucket=bucket, payload=payload[:used], checksums=dict(checksums))

    for name, tensor in named:
        tensor = tensor.detach().contiguous()
        offset = -(-used // ALIGNMENT) * ALIGNMENT
        if payload is not None and offset + tensor.nbytes > len(payload):
            yield taken(payload)
            slots, checksums, payload, offset, index = [], {}, None, 0, index + 1
        if payload is None:
            payload = allocate(max(bucket_bytes, tensor.nbytes))
        place = payload[offset : offset + tensor.nbytes]
        place.copy_(tensor.view(-1).view(torch.uint8))
        used = offset + tensor.nbytes
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        slots.append(TensorSlot(name=name, dtype=dtype, shape=shape, offset=offset, num_bytes=tensor.nbytes))
        same_memory = tensor.device.type == payload.device.type
        checksums[name] = checksum(tensor if same_memory else place.view(tensor.dtype).view(tensor.shape))
    if payload is not None:
        yield taken(payload)


def tensors_in(bucket: Bucket, payload: Tensor) -> list[tuple[str, Tensor]]:
    """The bucket's tensors by name, as views of its bytes uint8 [N]. Raises ValueError where the bytes are not as many as announced."""
    if payload.dtype != torch.uint8 or payload.shape != (bucket.num_bytes,):
        raise ValueError(
            f"bucket {bucket.index} has {bucket.num_bytes} bytes, got {payload.dtype} {tuple(payload.shape)}"
        )
    return [
        (
            slot.name,
            payload[slot.offset : slot.offset + slot.num_bytes].view(getattr(torch, slot.dtype)).view(slot.shape),
        )
        for slot in bucket.slots
    ]
