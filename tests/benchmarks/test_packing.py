"""The packing benchmark compares like with like: the same losses and the same trained weights, packed and padded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.packing import equal_batches, lognormal_sequences

SMOKE = """
import sys
from pathlib import Path
import torch
from benchmarks.models import make_small_model
from benchmarks.packing import Packed, Padded, equal_batches, join_alone, lognormal_sequences, packing_table

join_alone()
folder = make_small_model(Path(sys.argv[1]), vocab_size=128, hidden_size=64, num_layers=1)
data = lognormal_sequences(6, typical=24, longest=48, vocab_size=128)
packed, padded = Packed(folder, 96), Padded(folder)
losses = packed.update(data), padded.update(data, equal_batches(range(6), 2))
assert abs(losses[0] - losses[1]) < 1e-5, losses
theirs = dict(padded.model.named_parameters())
for name, ours in packed.engine.iter_full_parameters():
    assert torch.allclose(ours, theirs[name].detach(), atol=3e-6), name
table = packing_table(folder, data, budget=96, longest=48, rounds=1)
assert [row[0] for row in table.rows] == ["packed", "padded, random order", "padded, sorted by length"]
assert table.rows[0][1] == sum(data.lengths) <= table.rows[2][1] <= table.rows[1][1], table.rows
print("same")
"""


def test_lengths_are_seeded_and_bounded() -> None:
    data = lognormal_sequences(200, typical=64, longest=256, vocab_size=10, seed=3)
    assert data.lengths == lognormal_sequences(200, typical=64, longest=256, vocab_size=10, seed=3).lengths
    assert min(data.lengths) >= 16
    assert max(data.lengths) == 256
    assert 50 < sorted(data.lengths)[100] < 80
    assert data.num_response_tokens == int(data.batch(range(200)).loss_mask.sum())


def test_equal_batches_leave_nothing_out() -> None:
    assert equal_batches([4, 3, 2, 1, 0], 2) == [[4, 3], [2, 1], [0]]


@pytest.mark.slow
def test_packed_and_padded_train_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SMOKE, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.endswith("same\n"), done.stderr[-2000:]
