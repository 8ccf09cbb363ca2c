"""Packing tensors into buckets and out again."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from actors.weight_sync.bucket import ALIGNMENT, Bucket, FilledBucket, fill_buckets, tensors_in
from actors.weight_sync.proof import checksum


def host(num_bytes: int) -> Tensor:
    return torch.full((num_bytes,), 0xAA, dtype=torch.uint8)


def filled(named: list[tuple[str, Tensor]], bucket_bytes: int) -> list[FilledBucket]:
    return list(fill_buckets(named, bucket_bytes, host))


@given(
    st.lists(st.tuples(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]), st.integers(0, 60)), max_size=12),
    st.integers(1, 300),
)
def test_what_comes_out_is_what_went_in(kinds: list[tuple[torch.dtype, int]], bucket_bytes: int) -> None:
    named = [(f"t{i}", torch.arange(size).to(dtype)) for i, (dtype, size) in enumerate(kinds)]
    buckets = filled(named, bucket_bytes)
    out = [pair for one in buckets for pair in tensors_in(one.bucket, one.payload)]
    assert [name for name, _ in out] == [name for name, _ in named]
    for (_, before), (_, after) in zip(named, out, strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    assert [one.bucket.index for one in buckets] == list(range(len(buckets)))
    for one in buckets:
        assert one.bucket.num_bytes <= bucket_bytes or len(one.bucket.slots) == 1
        assert one.checksums == {name: checksum(tensor) for name, tensor in tensors_in(one.bucket, one.payload)}


def test_layout_by_hand() -> None:
    # 40 bytes at 0, 8 at the next multiple of 64; the third does not fit into 80 and opens the next; the fourth is larger than any
    named = [("a", torch.zeros(10)), ("b", torch.ones(2)), ("c", torch.zeros(4)), ("d", torch.zeros(100))]
    layout = [
        [(slot.name, slot.offset, slot.num_bytes) for slot in one.bucket.slots] for one in filled(named, ALIGNMENT + 16)
    ]
    assert layout == [[("a", 0, 40), ("b", 64, 8)], [("c", 0, 16)], [("d", 0, 400)]]
    assert [one.bucket.num_bytes for one in filled(named, ALIGNMENT + 16)] == [72, 16, 400]


def test_a_tensor_is_copied_before_the_next_is_asked_for() -> None:
    """A gathered parameter is let go as soon as the iterator goes on."""

    def gathered() -> Iterator[tuple[str, Tensor]]:
        buffer = torch.empty(4)
        for value in (1.0, 2.0, 3.0):
            yield f"t{value:g}", buffer.fill_(value)
        buffer.fill_(-1.0)

    out = [pair for one in fill_buckets(gathered(), 1000, host) for pair in tensors_in(one.bucket, one.payload)]
    assert [(name, tensor.tolist()) for name, tensor in out] == [(f"t{v}", [float(v)] * 4) for v in (1, 2, 3)]


def test_memory_is_asked_for_only_after_the_bucket_before_was_consumed() -> None:
    events: list[str] = []

    def allocate(num_bytes: int) -> Tensor:
        events.append("allocate")
        return host(num_bytes)

    buckets = fill_buckets([("a", torch.zeros(8)), ("b", torch.zeros(8))], 32, allocate)
    events.extend(f"bucket {one.bucket.index}" for one in buckets)
    assert events == ["allocate", "bucket 0", "allocate", "bucket 1"]


def test_a_transposed_tensor_travels_by_its_values() -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    (one,) = filled([("t", tensor)], 1000)
    assert torch.equal(tensors_in(one.bucket, one.payload)[0][1], tensor)
    assert one.checksums["t"] == checksum(tensor)


@pytest.mark.parametrize("payload", [torch.zeros(7, dtype=torch.uint8), torch.zeros(8)])
def test_other_bytes_than_announced_are_refused(payload: Tensor) -> None:
    with pytest.raises(ValueError, match="bucket 3 has 8 bytes, got"):
        tensors_in(Bucket(index=3, slots=(), num_bytes=8), payload)
