"""Log-probabilities and entropies of chosen tokens straight from hidden states; logits exist for one chunk of tokens at a time.

Legend: `N` tokens asked about, `H` hidden size, `V` vocabulary, `T` tokens of a packed batch, `C <= chunk_tokens` tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def token_logprobs(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool,
    head_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target | hidden) and the entropy of p, where p = softmax((hidden @ head_weight.T + head_bias) / temperature).

    At most `chunk_tokens` rows of logits exist at any time: the forward keeps none, the backward computes them again. Gradients flow
    from both results to `hidden`, `head_weight` and `head_bias`. The logits' matrix product runs in the wider of the two types (in
    autocast's, where that is on); temperature, softmax and sums are float32, as vLLM's sampler does it. The weight itself is saved for
    the backward, not a copy or a view, so that a sharded parameter that is released in between and gathered again (ZeRO-3) is read anew.

    Why not `torch.nn.functional.linear_cross_entropy`: with `reduction="none"` and chunking it gives log-probabilities and their
    gradients, and dividing `hidden` serves as temperature, but it has no entropy, for which all logits would be computed a second time,
    and from bfloat16 hidden states it returns bfloat16 log-probabilities, which ratios and KL estimates cannot be taken from.

    Args:
        hidden: [N, H], the state read before each target, bfloat16, float32 or (for gradient checks) float64.
        head_weight: [V, H], same or another floating type.
        targets: int64 [N], the tokens asked about.
        temperature: > 0, what the logits are divided by before the softmax.
        chunk_tokens: >= 1, the most tokens whose logits are held.
        with_entropy: False gives an entropy of zeros, which costs nothing and carries no gradient.
        head_bias: [V].

    Returns:
        float32 [N] log-probabilities and float32 [N] entropies in nats (float64 for float64 input). `N == 0` gives empty results that
        still carry a (zero) gradient.

    Raises:
        ValueError: for a temperature or a chunk size out of range, or shapes that do not fit.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be >= 1, got {chunk_tokens}")
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1] or head_weight.shape[1:] != hidden.shape[1:]:
        shapes = [tuple(tensor.shape) for tensor in (hidden, head_weight, targets)]
        raise ValueError(f"hidden [N, H], head_weight [V, H] and targets [N] do not fit: {shapes}")
    return _TokenLogprobs.apply(hidden, head_weight, head_bias, targets, temperature, chunk_tokens, with_entropy)


def response_positions(loss_mask: Tensor) -> Tensor:
    """Indices of the tokens that the policy chose: int64 [N] from bool [T].

    The log-probability of the token at t reads the hidden state at t - 1.

    Raises:
        ValueError: if the first token is among them: nothing stands before it.
    """
    positions = loss_mask.nonzero().squeeze(-1)
    if len(positions) and int(positions[0]) == 0:
        raise ValueError("loss_mask[0] is True, but no hidden state stands before the first token")
    return positions


def scatter_to_tokens(values: Tensor, positions: Tensor, length: int) -> Tensor:
    """`values` [N] at `positions` [N] of a flat array [length], 0 elsewhere. Differentiable in `values`."""
    return values.new_zeros(length).index_copy(0, positions, values)


def _chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk_tokens, num_tokens)) for start in range(0, num_tokens, chunk_tokens))


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Type of the matrix products: autocast's where that is on, else the wider one."""
    device = hidden.device.type
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and wider != torch.float64:
        return torch.get_autocast_dtype(device)
    return wider


def _chunk_log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Log-probabilities [C, V] of every token, float32 or wider. `hidden` [C, H], `weight` [V, H], `bias` [V] share one type."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits.div_(temperature), dim=-1)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [V, H] += left [V, C] @ right [C, H], without a second [V, H] where the types allow."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _TokenLogprobs(torch.autograd.Function):
    """With z the divided logits and p their softmax: d log p_t / d z = 1[t] - p and d H / d z = -p (log p + H)."""

    @staticmethod
    def forward(  # noqa: PLR0913 - what torch calls it with
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_tokens: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden, weight)
        result_dtype = torch.promote_types(dtype, torch.float32)
        logprobs = hidden.new_empty(len(hidden), dtype=result_dtype)
        entropy = hidden.new_zeros(len(hidden), dtype=result_dtype)
        cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _chunks(len(hidden), chunk_tokens):
                log_p = _chunk_log_softmax(hidden[chunk].to(dtype), cast_weight, cast_bias, temperature)
                logprobs[chunk] = log_p.gather(-1, targets[chunk, None]).squeeze(-1)
                if with_entropy:
                    entropy[chunk] = -log_p.exp().mul_(log_p).sum(-1)
                del log_p  # else it lives on while the next chunk's is made
        ctx.save_for_backward(hidden, weight, bias, targets, entropy)
        ctx.dtype, ctx.temperature, ctx.chunk_tokens = dtype, temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype, wide = ctx.dtype, entropy.dtype
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        # Summed over chunks in float32: in bfloat16 the later chunks would be rounded away.
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=wide, device=bias.device) if needs_bias else None
        cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(entropy)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _chunks(len(hidden), ctx.chunk_tokens):
                chunk_hidden = hidden[chunk].to(dtype)
                log_p = _chunk_log_softmax(chunk_hidden, cast_weight, cast_bias, ctx.temperature)
                grad_target = grad_logprobs[chunk, None]
                grad_logits = log_p.exp()
                if grad_entropy is None:
                    grad_logits.mul_(-grad_target)
                else:
                    log_p.add_(entropy[chunk, None]).mul_(-grad_entropy[chunk, None]).sub_(grad_target)
                    grad_logits.mul_(log_p)
                grad_logits.scatter_add_(-1, targets[chunk, None], grad_target).div_(ctx.temperature)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                grad_logits = grad_logits.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = (grad_logits @ cast_weight).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, grad_logits.T, chunk_hidden)
                del log_p, grad_logits
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None
