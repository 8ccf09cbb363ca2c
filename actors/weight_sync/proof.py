"""Checksums of tensors and the probe's gap: what torch computes for the verdicts in `reports`.

What each proof can and cannot see:
- Checksums see a tensor that was lost or changed between sender and engine. They do not see what the engine does with it afterwards.
- The list of untouched parameters sees a tensor that the sender left out. It does not see a kernel that goes on computing with an old
  copy of an overwritten parameter (packed weights, a tied head).
- The probe sees whatever changes the answers on its few prompts by more than its tolerance. Weights that those prompts never touch
  (other tokens' embeddings) and changes below the tolerance it does not see; the checksums do.

Legend: `T` tokens of all trajectories together, `N` bytes, `W` 32-bit words.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import torch
from torch import Tensor

from actors.algorithms.records import Trajectories, cumulative
from actors.weight_sync.reports import ProbeReport

_CHUNK_WORDS = 1 << 20
_GOLDEN = -0x61C8864680B583EB  # 2^64 divided by the golden ratio, as a signed 64-bit number
_MIX = -0x40A7B892E31B1A47  # a multiplier of splitmix64 (Steele et al. 2014), as a signed 64-bit number


def checksum(tensor: Tensor) -> str:
    """Checksum of a tensor's dtype, shape and bits: sha256 for host memory, a 64-bit sum on a GPU, where hashing would copy it all."""
    tensor = tensor.detach().contiguous()
    data = tensor.view(-1).view(torch.uint8)
    kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    if tensor.device.type == "cpu":
        host: Any = data.numpy()  # a buffer, which numpy's types do not say
        return f"{kind} sha256:{hashlib.sha256(host).hexdigest()}"
    return f"{kind} sum64:{sum64(data):016x}"


def sum64(data: Tensor) -> int:
    """Sum of the 32-bit words of uint8 [N], each times an odd 64-bit number of its place, modulo 2^64; places restart every chunk.

    A change of a single word always changes the sum (an odd factor is invertible); any other change is missed with odds of about
    2^-64. Not made against an adversary.
    """
    if len(data) % 4:
        data = torch.nn.functional.pad(data, (0, 4 - len(data) % 4))
    words = data.view(torch.int32)  # [W]
    factors = _factors(str(data.device))
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    for start in range(0, len(words), _CHUNK_WORDS):
        chunk = words[start : start + _CHUNK_WORDS]
        total = total * _GOLDEN + (chunk * factors[: len(chunk)]).sum()
    return int(total) % (1 << 64)


@functools.cache
def _factors(device: str) -> Tensor:
    """Odd int64 [_CHUNK_WORDS], the same on every device."""
    mixed = torch.arange(1, _CHUNK_WORDS + 1, dtype=torch.int64, device=device) * _GOLDEN
    mixed = (mixed ^ (mixed >> 30)) * _MIX
    return (mixed ^ (mixed >> 27)) | 1


def probe_gap(trajectories: Trajectories, policy_logprobs: Tensor) -> ProbeReport:
    """Compares vLLM's log-probabilities with the policy's, float32 [T], over the tokens that the engine chose."""
    assert policy_logprobs.shape == trajectories.tokens.shape, (policy_logprobs.shape, trajectories.tokens.shape)
    mask = trajectories.loss_mask
    if not bool(mask.any()):
        return ProbeReport(num_tokens=0, max_gap=0.0, max_gap_scaled=0.0, mean_gap=0.0, worst="none")
    vllm, policy = trajectories.rollout_logprobs[mask].double(), policy_logprobs.detach().cpu()[mask].double()
    finite = vllm.isfinite() & policy.isfinite()
    gap = torch.where(finite, (vllm - policy).abs(), torch.inf)
    scaled = torch.where(finite, gap / policy.abs().clamp(min=1), torch.inf)
    worst = int(scaled.argmax())
    place = int(mask.nonzero()[worst])
    bounds = cumulative(trajectories.lengths)
    owner = int(torch.searchsorted(bounds, place, right=True)) - 1
    return ProbeReport(
        num_tokens=len(gap),
        max_gap=float(gap.max()),
        max_gap_scaled=float(scaled.max()),
        mean_gap=float(gap.mean()),
        worst=(
            f"token {place - int(bounds[owner])} of {trajectories.ids[owner]}: "
            f"vllm {float(vllm[worst]):.6g}, policy {float(policy[worst]):.6g}"
        ),
    )
