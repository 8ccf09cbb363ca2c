"""The drill's changed weights: every one changes, alike on every rank, and comes back bit for bit."""

from __future__ import annotations

import torch
from torch import nn

from actors.engine.perturbation import perturb, restore


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2))


def test_every_weight_changes_and_comes_back() -> None:
    changed = model()
    before = {name: p.detach().clone() for name, p in changed.named_parameters()}
    kept = perturb(changed, seed=1, rank=0)
    for name, parameter in changed.named_parameters():
        # what is exactly 0 has nothing to be multiplied
        nonzero = before[name] != 0
        assert (parameter != before[name])[nonzero].sum() > 0.9 * nonzero.sum() - 1e-6, name
    restore(kept)
    for name, parameter in changed.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_replicated_weights_change_alike_on_every_rank_and_differ_by_seed() -> None:
    first, second, other = model(), model(), model()
    perturb(first, seed=1, rank=0)
    perturb(second, seed=1, rank=1)
    perturb(other, seed=2, rank=0)
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or not a.any()
