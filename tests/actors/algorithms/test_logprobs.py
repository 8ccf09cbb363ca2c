"""Log-probabilities in chunks: types, memory, released weights. Hand values and gradients are in `checks.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from actors.algorithms.logprobs import response_positions, token_logprobs
from tests.actors.algorithms.checks import head_problem, whole_logprobs
from tests.actors.algorithms.comparing import same

HOW: dict[str, Any] = {"temperature": 0.7, "chunk_tokens": 3, "with_entropy": True}


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation under it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max(
            [self.numel, *(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor))]
        )
        return out


def _results(chunk_tokens: int, with_entropy: bool = True) -> list[Tensor]:
    hidden, weight, bias, targets = head_problem(1)
    logprobs, entropy = token_logprobs(
        hidden, weight, targets, temperature=1.3, chunk_tokens=chunk_tokens, with_entropy=with_entropy, head_bias=bias
    )
    total = (logprobs * torch.arange(7)).sum() + 0.3 * entropy.sum()
    return [logprobs.detach(), entropy.detach(), *torch.autograd.grad(total, (hidden, weight, bias))]


@pytest.mark.parametrize("chunk_tokens", [1, 2, 6, 7, 100])
def test_chunk_size_changes_nothing(chunk_tokens: int) -> None:
    for got, wanted in zip(_results(chunk_tokens), _results(3), strict=True):
        same(got, wanted, 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gradients_are_slopes(temperature: float) -> None:
    hidden, weight, bias, targets = head_problem(2)

    def both(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        how = HOW | {"temperature": temperature}
        return token_logprobs(hidden, weight, targets, head_bias=bias, **how)

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))


def test_entropy_is_of_the_tempered_distribution() -> None:
    """Logits ln 1 and ln 3 at temperature 1/2 are odds of 1 to 9, not 1 to 3."""
    weight = torch.tensor([[1.0], [3.0]], dtype=torch.float64).log()
    _, entropy = token_logprobs(
        torch.ones(1, 1, dtype=torch.float64), weight, torch.tensor([0]), **HOW | {"temperature": 0.5}
    )
    p = torch.tensor([0.1, 0.9], dtype=torch.float64)
    same(entropy, [-(p * p.log()).sum()])


def test_without_entropy_zeros_and_the_same_logprobs() -> None:
    hidden, weight, _, targets = head_problem(3)
    logprobs, entropy = token_logprobs(hidden, weight, targets, **HOW | {"with_entropy": False})
    assert not entropy.requires_grad
    assert not bool(entropy.any())
    wanted, _ = whole_logprobs(hidden, weight, None, targets, 0.7)
    same(logprobs.detach(), wanted.detach())
    gradients = [torch.autograd.grad(x.square().sum(), (hidden, weight)) for x in (logprobs, wanted)]
    for a, b in zip(*gradients, strict=True):
        same(a, b)


def test_frozen_parts_get_no_gradient() -> None:
    hidden, weight, bias, targets = head_problem(4)
    logprobs, _ = token_logprobs(hidden, weight.detach(), targets, head_bias=bias.detach(), **HOW)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert bool(gradient.any())
    frozen, entropy = token_logprobs(hidden.detach(), weight.detach(), targets, **HOW)
    assert not frozen.requires_grad
    assert not entropy.requires_grad


def test_no_more_logits_than_a_chunk() -> None:
    """100 tokens, 64 words, chunks of 4: no operation, forward or backward, returns more than a chunk's 256 logits or the weight's 128."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(100, 2, generator=generator).requires_grad_()
    weight = torch.randn(64, 2, generator=generator).requires_grad_()
    targets = torch.randint(0, 64, (100,), generator=generator)
    with LargestTensor() as largest:
        logprobs, entropy = token_logprobs(hidden, weight, targets, **HOW | {"chunk_tokens": 4})
        (logprobs.sum() + entropy.sum()).backward()
    assert largest.numel == 4 * 64
    with LargestTensor() as largest:
        whole_logprobs(hidden, weight, None, targets, 0.7)
    assert largest.numel == 100 * 64


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float32])
def test_types(hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Results are float32 whatever goes in, gradients have the type of their tensor, and bfloat16 costs only its own rounding."""
    exact = head_problem(5)
    hidden = exact[0].detach().to(hidden_dtype).requires_grad_()
    weight = exact[1].detach().to(weight_dtype).requires_grad_()
    targets = exact[3]
    got = token_logprobs(hidden, weight, targets, **HOW)
    wanted = whole_logprobs(hidden.double(), weight.double(), None, targets, 0.7)
    tolerance = 1e-5 if torch.float32 in (hidden_dtype, weight_dtype) else 0.05
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == torch.float32
        same(a.detach(), b.detach(), tolerance)
    gradients = [torch.autograd.grad(pair[0].sum() + pair[1].sum(), (hidden, weight)) for pair in (got, wanted)]
    assert [g.dtype for g in gradients[0]] == [hidden_dtype, weight_dtype]
    for a, b in zip(*gradients, strict=True):
        same(a, b, 0.1 if torch.bfloat16 in (hidden_dtype, weight_dtype) else 1e-4)


def test_weight_gradient_of_many_chunks_in_bfloat16_is_not_rounded_away() -> None:
    """4,096 equal contributions: summed in bfloat16 they would stop at 256 times the first."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    how = HOW | {"temperature": 1.0, "chunk_tokens": 1, "with_entropy": False}
    logprobs, _ = token_logprobs(hidden, weight, torch.zeros(4096, dtype=torch.int64), **how)
    logprobs.sum().backward()
    assert weight.grad is not None
    same(weight.grad, [[2048.0], [-2048.0]])


def test_autocast_is_kept_for_the_backward() -> None:
    """Under bfloat16 autocast, float32 tensors give what bfloat16 ones give, and the backward, run outside, agrees with its forward."""
    hidden, weight, _, targets = head_problem(6, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, entropy = token_logprobs(hidden, weight, targets, **HOW)
    gradients = torch.autograd.grad(logprobs.sum() + entropy.sum(), (hidden, weight))
    low = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()
    wanted = token_logprobs(*low, targets, **HOW)
    assert torch.equal(logprobs, wanted[0])
    assert torch.equal(entropy, wanted[1])
    low_gradients = torch.autograd.grad(wanted[0].sum() + wanted[1].sum(), low)
    assert all(g.dtype == torch.float32 for g in gradients)
    for got, low_gradient in zip(gradients, low_gradients, strict=True):
        same(got, low_gradient.float(), 1e-2)


def test_a_weight_released_between_forward_and_backward() -> None:
    """What ZeRO-3 does: the storage goes after the forward, other memory with the same numbers comes before the backward."""
    hidden, weight, bias, targets = head_problem(7)
    parameter = nn.Parameter(weight.detach().clone())
    logprobs, entropy = token_logprobs(hidden, parameter, targets, head_bias=bias, **HOW)
    assert any(saved is parameter for saved in logprobs.grad_fn.saved_tensors)  # type: ignore[union-attr]
    whole = parameter.data
    parameter.data = torch.empty(0, dtype=torch.float64)
    whole.fill_(float("nan"))
    parameter.data = weight.detach().clone()
    (logprobs.sum() + entropy.sum()).backward()
    wanted = whole_logprobs(hidden, weight, bias, targets, 0.7)
    (gradient,) = torch.autograd.grad(wanted[0].sum() + wanted[1].sum(), weight)
    assert parameter.grad is not None
    same(parameter.grad, gradient)


def test_no_tokens_still_reach_the_weight() -> None:
    """A rank without a response token runs the same backward as the others."""
    hidden, weight, bias, targets = head_problem(8)
    logprobs, entropy = token_logprobs(hidden[:0], weight, targets[:0], head_bias=bias, **HOW)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    for tensor in (hidden, weight, bias):
        assert tensor.grad is not None
        assert not bool(tensor.grad.any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        (lambda: {"temperature": float("nan")}, "temperature must be > 0"),
        (lambda: {"chunk_tokens": 0}, "chunk_tokens must be >= 1, got 0"),
        (lambda: {"targets": torch.zeros(6, dtype=torch.int64)}, "do not fit"),
        (lambda: {"head_weight": torch.zeros(11, 4)}, "do not fit"),
    ],
)
def test_bad_arguments(change: Callable[[], dict[str, Any]], message: str) -> None:
    hidden, weight, _, targets = head_problem()
    arguments = {"hidden": hidden, "head_weight": weight, "targets": targets, **HOW} | change()
    with pytest.raises(ValueError, match=message):
        token_logprobs(**arguments)


def test_the_first_token_has_no_logprob() -> None:
    with pytest.raises(ValueError, match="no hidden state stands before the first token"):
        response_positions(torch.tensor([True, False]))
    assert response_positions(torch.zeros(3, dtype=torch.bool)).shape == (0,)
