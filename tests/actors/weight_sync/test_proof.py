"""Checksums, the probe's gap and the verdicts: hand-made values, a slow twin, and faults that must be found.

Legend: `T` tokens, `N` bytes.
"""

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.algorithms.records import Trajectories, VersionSpan
from actors.errors import SyncFailed
from actors.weight_sync.proof import _CHUNK_WORDS, _factors, checksum, probe_gap, sum64
from actors.weight_sync.reports import (
    ProbeReport,
    check_drill,
    check_probe,
    merge_probes,
    sync_digest,
    verify,
)

WRAP = 1 << 64


def slow_factor(place: int) -> int:
    """The odd factor of a word's place, in Python's own integers (arithmetic shifts of signed 64-bit numbers)."""
    golden, mix = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9

    def signed(value: int) -> int:
        value %= WRAP
        return value - WRAP if value >= WRAP // 2 else value

    value = signed((place + 1) * golden)
    value = signed((value ^ (value >> 30)) * mix)
    return signed(value ^ (value >> 27)) | 1


def slow_sum64(data: bytes) -> int:
    data += bytes(-len(data) % 4)
    words = [int.from_bytes(data[i : i + 4], "little", signed=True) for i in range(0, len(data), 4)]
    total = 0
    for start in range(0, len(words), _CHUNK_WORDS):
        part = sum(word * slow_factor(place) for place, word in enumerate(words[start : start + _CHUNK_WORDS]))
        total = (total * 0x9E3779B97F4A7C15 + part) % WRAP
    return total


@given(st.binary(max_size=200))
def test_sum64_is_its_slow_twin(data: bytes) -> None:
    assert sum64(torch.tensor(list(data), dtype=torch.uint8)) == slow_sum64(data)


def test_sum64_runs_over_chunks() -> None:
    generator = torch.Generator().manual_seed(1)
    data = torch.randint(0, 256, (4 * _CHUNK_WORDS + 7,), dtype=torch.uint8, generator=generator)
    first, rest = data[: 4 * _CHUNK_WORDS], data[4 * _CHUNK_WORDS :]
    assert sum64(data) == (sum64(first) * 0x9E3779B97F4A7C15 + sum64(rest)) % WRAP
    moved = torch.cat([rest, first])
    assert sum64(moved) != sum64(data)


@given(st.binary(min_size=1, max_size=64), st.data())
def test_a_flipped_bit_always_changes_sum64(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    assert sum64(torch.tensor(list(data), dtype=torch.uint8)) != sum64(torch.tensor(list(flipped), dtype=torch.uint8))


def test_factors_are_odd_and_differ() -> None:
    factors = _factors("cpu")
    assert bool((factors & 1).all())
    assert len(factors.unique()) == _CHUNK_WORDS


def test_checksum_is_sha256_of_the_bits_with_dtype_and_shape() -> None:
    tensor = torch.tensor([[1.0, -2.0], [0.0, 4.0]], dtype=torch.bfloat16)
    bits = bytes.fromhex("803f00c00000" + "8040")
    assert checksum(tensor) == f"bfloat16[2, 2] sha256:{hashlib.sha256(bits).hexdigest()}"
    assert checksum(tensor.t()) != checksum(tensor)
    assert checksum(tensor.t().contiguous()) == checksum(tensor.t())
    assert checksum(tensor.reshape(4)) != checksum(tensor), "the same bits in another shape"
    assert checksum(torch.tensor([0.0])) != checksum(torch.tensor([-0.0])), "bits, not values"


def trajectories() -> Trajectories:
    """Two answers: tokens 3, 4 after prompt 1 2, and token 6 after prompt 5."""
    return Trajectories(
        ids=("a", "b"),
        prompt_ids=("p", "q"),
        tokens=torch.tensor([1, 2, 3, 4, 5, 6]),
        cu_lengths=torch.tensor([0, 4, 6]),
        loss_mask=torch.tensor([False, False, True, True, False, True]),
        rollout_logprobs=torch.tensor([0.0, 0.0, -1.0, -0.5, 0.0, -8.0]),
        truncated=torch.tensor([False, False]),
        version_spans=(
            (VersionSpan(start=2, end=4, policy_version=1),),
            (VersionSpan(start=1, end=2, policy_version=1),),
        ),
        turn_offsets=((2,), (1,)),
    )


def test_probe_gap_by_hand() -> None:
    report = probe_gap(trajectories(), torch.tensor([99.0, 99.0, -1.25, -0.5, 99.0, -10.0]))
    # gaps 0.25, 0, 2; scaled by max(1, |policy|): 0.25 / 1.25, 0, 2 / 10; prompts (99) are not looked at
    assert (report.num_tokens, report.max_gap, report.mean_gap) == (3, 2.0, 0.75)
    assert report.max_gap_scaled == pytest.approx(0.2)
    assert report.worst.startswith(("token 2 of a", "token 1 of b"))
    far = probe_gap(trajectories(), torch.tensor([99.0, 99.0, -1.0, -0.5, 99.0, -9.0]))
    assert far.worst == "token 1 of b: vllm -8, policy -9"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_an_infinite_gap(bad: float) -> None:
    report = probe_gap(trajectories(), torch.tensor([0.0, 0.0, -1.0, bad, 0.0, -8.0]))
    assert report.max_gap_scaled == math.inf
    with pytest.raises(SyncFailed, match="disagree"):
        check_probe(report, 1e6)


def report(scaled: float, num_tokens: int = 4, mean: float = 0.0) -> ProbeReport:
    return ProbeReport(num_tokens=num_tokens, max_gap=scaled, max_gap_scaled=scaled, mean_gap=mean, worst=f"w{scaled}")


def test_merged_probes_are_the_probe_of_all() -> None:
    merged = merge_probes([report(0.1, 1, 0.1), report(0.3, 3, 0.2), report(0.0, 0)])
    assert (merged.num_tokens, merged.max_gap_scaled, merged.worst) == (4, 0.3, "w0.3")
    assert merged.mean_gap == pytest.approx((0.1 + 0.6) / 4)


def test_check_probe() -> None:
    check_probe(report(1e-4), 1e-4)
    with pytest.raises(SyncFailed, match=r"0\.0002, allowed is 0\.0001"):
        check_probe(report(2e-4), 1e-4)
    with pytest.raises(SyncFailed, match="no token"):
        check_probe(report(0.0, 0), 1.0)


def test_check_drill_wants_agreement_and_contrast() -> None:
    check_drill(report(0.5e-4, mean=1e-5), report(2.0, mean=0.5), 1e-4)
    with pytest.raises(SyncFailed, match="disagree"):
        check_drill(report(2.0, mean=0.5), report(0.5e-4, mean=1e-5), 1e-4)
    with pytest.raises(SyncFailed, match="proves nothing"):  # the weights hardly changed
        check_drill(report(0.5e-4, mean=1e-6), report(2e-4, mean=2e-4), 1e-4)
    with pytest.raises(
        SyncFailed, match="proves nothing"
    ):  # a part of the change did not arrive, within a wide tolerance
        check_drill(report(0.1, mean=0.2), report(0.3, mean=0.4), 0.15)


@pytest.mark.parametrize(
    ("sent", "received", "untouched", "message"),
    [
        ({"a": "1", "b": "2"}, {"a": "1"}, (), "b: sent but not received"),
        ({"a": "1"}, {"a": "1", "c": "3"}, (), "c: received but not sent"),
        ({"a": "1", "b": "2"}, {"a": "1", "b": "x"}, (), "b: changed on the way"),
        ({"a": "1"}, {"a": "1"}, ("lm_head.weight",), "lm_head.weight: not, or not wholly, overwritten"),
        ({}, {}, (), "no tensor"),
        ({f"t{i}": "" for i in range(7)}, {}, (), "t0, t1, t2, t3, t4 and 2 more: sent but not received"),
    ],
)
def test_verify_names_the_tensor(
    sent: dict[str, str], received: dict[str, str], untouched: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SyncFailed, match=message):
        verify(sent, received, untouched)


def test_verify_accepts_a_whole_sync() -> None:
    verify({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, ())


def test_digest_is_free_of_order_and_sees_names() -> None:
    assert sync_digest({"a": "1", "b": "2"}) == sync_digest({"b": "2", "a": "1"})
    assert sync_digest({"a": "1"}) == hashlib.sha256(b"a 1\n").hexdigest()
    assert sync_digest({"a": "1", "b": "2"}) != sync_digest({"a": "2", "b": "1"})
