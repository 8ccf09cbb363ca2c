"""The checks can fail: each formula, changed in one place, must be caught by the checks of its module.

A mutation is a text of the module's source and what takes its place; the changed copy is executed under another name, and nothing else
sees it. A text that is no longer found exactly once fails the test: the mutation has to follow the code.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.actors.algorithms.checks import CHECKS

MUTATIONS: tuple[tuple[str, str, str, str], ...] = (
    # module, what goes wrong, text, its replacement
    (
        "advantages",
        "successor is the next token, masked or not",
        "own_values.roll(-1)",
        "values.double().roll(-1)[positions]",
    ),
    ("advantages", "successor is the token before", "own_values.roll(-1)", "own_values.roll(1)"),
    ("advantages", "the bootstrap value is dropped", "bootstrap_values[some].double()", "0.0"),
    ("advantages", "the bootstrap value goes to the token before the last", "ends[some] - 1]", "ends[some] - 2]"),
    (
        "advantages",
        "the successor's value is subtracted",
        "own_rewards + gamma * successors",
        "own_rewards - gamma * successors",
    ),
    ("advantages", "lambda is missing", "gamma * lam * table[column + 1]", "gamma * table[column + 1]"),
    ("advantages", "gamma is missing in the sum", "gamma * lam * table[column + 1]", "lam * table[column + 1]"),
    ("advantages", "the scan leaves out the first token", "range(longest - 2, -1, -1)", "range(longest - 2, 0, -1)"),
    ("advantages", "returns are advantages", "(own_advantages + own_values)", "(own_advantages)"),
    ("advantages", "moments count masked places", "chosen = x[mask].double()", "chosen = x.nan_to_num(0.0).double()"),
    ("advantages", "moments are of the first number", "m2 = (shifted - shifted_mean)", "m2 = (shifted)"),
    (
        "advantages",
        "epsilon stands beside the deviation",
        "unbiased_variance + WHITENING_EPSILON)",
        "unbiased_variance) + WHITENING_EPSILON",
    ),
    ("advantages", "whitening does not centre", "advantages.double() - moments.mean", "advantages.double()"),
    ("advantages", "a single number is divided", "if moments.count > 1 else 1.0", "if moments.count > 0 else 1.0"),
    (
        "advantages",
        "ended answers are bootstrapped",
        "torch.where(truncated, last_values",
        "torch.where(~truncated, last_values",
    ),
    ("moments", "biased variance", "self.m2 / (self.count - 1)", "self.m2 / self.count"),
    ("moments", "the distance of the means is left out", " + delta * delta * count * part.count / total", ""),
    ("moments", "the mean of the means", "delta * part.count / total\n", "delta / 2\n"),
    ("kl", "k3 with the other sign", "torch.expm1(-clamped) + clamped", "torch.expm1(clamped) - clamped"),
    ("kl", "k3 without its clamp", "log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)", "log_ratio"),
    ("kl", "k2 without its half", "0.5 * log_ratio.square()", "log_ratio.square()"),
    ("kl", "reference minus policy", "(logprobs - reference_logprobs)", "(reference_logprobs - logprobs)"),
    (
        "kl_controller",
        "the error is not clipped",
        "min(max(mean_kl / self.target - 1.0, -self.MAX_ERROR), self.MAX_ERROR)",
        "mean_kl / self.target - 1.0",
    ),
    ("kl_controller", "the coefficient falls when it should rise", "1.0 + error *", "1.0 - error *"),
    (
        "kl_controller",
        "the number of trajectories is forgotten",
        "error * num_trajectories / self.horizon",
        "error / self.horizon",
    ),
    ("kl_controller", "a state that is not taken up", "self.coef = _coef_of(state)", "_coef_of(state)"),
    ("rewards", "the score stands one place before the last token", "index_add(0, last,", "index_add(0, last - 1,"),
    (
        "rewards",
        "the score stands at the trajectory's end, masked or not",
        "index_add(0, last,",
        "index_add(0, cu_lengths[1:] - 1,",
    ),
    ("rewards", "the KL is a reward", "-kl_coef * kl", "kl_coef * kl"),
    ("rewards", "a source's weight is lost", "scores + weight * source", "scores + source"),
    ("rewards", "each source is clipped, not their sum", "weight * source", "(weight * source).clamp(-1.5, 1.5)"),
    (
        "rewards",
        "masked places pay KL",
        "torch.where(loss_mask, -kl_coef * kl, zero)",
        "-kl_coef * kl_estimate(old_logprobs, reference_logprobs, kind=kl_kind)",
    ),
    ("rewards", "normalised by the variance", "(scores - mean) / std\n", "(scores - mean) / std**2\n"),
    ("rewards", "the penalty grows beyond the hard limit", "overlong.clamp(0.0, 1.0)", "overlong.clamp(min=0.0)"),
    ("rewards", "a missing end is rewarded", "penalties - missing_end_penalty", "penalties + missing_end_penalty"),
    (
        "losses",
        "maximum of the surrogates",
        "objective = torch.minimum(unclipped, clipped)",
        "objective = torch.maximum(unclipped, clipped)",
    ),
    ("losses", "the objective is minimised", "loss = -(objective * importance", "loss = (objective * importance"),
    ("losses", "the upper bound is the lower one's", "1.0 + clip_high", "1.0 + clip_low"),
    ("losses", "the log-ratio is not clamped", ".clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()", ".exp()"),
    ("losses", "old over new", "ratio = _ratio(new, old)", "ratio = _ratio(old, new)"),
    ("losses", "the importance weight is not capped", "importance_ratio.clamp(max=importance_cap)", "importance_ratio"),
    ("losses", "importance of rollout over old", "_ratio(old, rollout)", "_ratio(rollout, old)"),
    (
        "losses",
        "gradient flows into the old policy",
        "new_logprobs, old_logprobs.detach()",
        "new_logprobs, old_logprobs",
    ),
    (
        "losses",
        "dual clip for positive advantages",
        "(advantage < 0) & (objective < floor)",
        "(advantage > 0) & (objective > floor)",
    ),
    (
        "losses",
        "masked places are multiplied by zero",
        "torch.where(loss_mask, array, array.new_zeros(()))",
        "array * loss_mask",
    ),
    (
        "losses",
        "mean over all places, masked ones too",
        "/ _require_count(global_count)\n\n\ndef policy_loss",
        "/ loss_mask.numel()\n\n\ndef policy_loss",
    ),
    ("losses", "a sequence's tokens count its masked ones", "num_unmasked(loss_mask, cu_lengths)", "cu_lengths.diff()"),
    ("losses", "approx_kl the other way round", "kl_estimate(old, new, kind=", "kl_estimate(new, old, kind="),
    ("losses", "clip_frac counts what stays within", "clipped < unclipped", "clipped <= unclipped"),
    ("losses", "the smaller value error", "worst = torch.maximum(", "worst = torch.minimum("),
    ("losses", "the value is not clipped", "(value - old).clamp(-clip, clip)", "(value - old)"),
    ("losses", "the value loss has no half", "0.5 * (worst * weights)", "(worst * weights)"),
    ("losses", "the likelihood is minimised", "return -_mean(logprobs", "return _mean(logprobs"),
    (
        "losses",
        "equal scores count as right",
        "0.5 * (gap == 0).to(gap.dtype), 0.0)",
        "1.0 * (gap == 0).to(gap.dtype), 0.0)",
    ),
    (
        "losses",
        "the worse answer's pairs count",
        "order[:, :, None] < order[:, None, :]",
        "order[:, :, None] > order[:, None, :]",
    ),
    (
        "losses",
        "drawn answers stay in the race",
        "order[:, None, :] >= order[:, :, None]",
        "order[:, None, :] <= order[:, :, None]",
    ),
    (
        "losses",
        "tied answers are not in the race",
        "order[:, None, :] >= order[:, :, None]",
        "order[:, None, :] > order[:, :, None]",
    ),
    ("losses", "padding is in the race", "valid[:, None, :] & (order[:, None, :] >=", "(order[:, None, :] >="),
    ("preference", "a mean is a sum", "if mean else sums", "if False else sums"),
    ("preference", "the reference learns", "reference_logprobs.detach()", "reference_logprobs"),
    ("preference", "the reference pulls the other way", "(logprobs - reference", "(logprobs + reference"),
    ("preference", "beta is forgotten", "return beta * (", "return ("),
    ("preference", "the target of ipo is doubled", "1 / (2 * beta)", "1 / beta"),
    ("preference", "ipo compares rewards with a gap", "weights * (gap / beta -", "weights * (gap -"),
    (
        "preference",
        "smoothing counts twice",
        "+ label_smoothing * logsigmoid(-gap)",
        "+ label_smoothing * logsigmoid(gap)",
    ),
    ("preference", "equal rewards count as right", "0.5 * (gap == 0)", "1.0 * (gap == 0)"),
    ("preference", "the worse answer is the better", "(ranks[:, None] < ranks)", "(ranks[:, None] > ranks)"),
    ("preference", "a tie is a pair", "(ranks[:, None] < ranks)", "(ranks[:, None] <= ranks)"),
    ("preference", "answers of other groups are compared", "(group[:, None] == group) & ", ""),
    (
        "preference",
        "every pair weighs the same",
        "num_pairs[group[better]].to(rewards.dtype) * global_count",
        "(global_count + 0 * rewards[better])",
    ),
    (
        "logprobs",
        "the temperature is forgotten",
        "torch.log_softmax(logits.div_(temperature), dim=-1)",
        "torch.log_softmax(logits, dim=-1)",
    ),
    (
        "logprobs",
        "entropy before temperature",
        "entropy[chunk] = -log_p.exp().mul_(log_p).sum(-1)",
        "entropy[chunk] = torch.distributions.Categorical(logits=temperature * log_p).entropy()",
    ),
    ("logprobs", "the gradient is not divided by the temperature", ".div_(ctx.temperature)\n", "\n"),
    ("logprobs", "the entropy's gradient is that of -p log p", "log_p.add_(entropy[chunk, None]).mul_", "log_p.mul_"),
    ("logprobs", "the gradient of the other tokens is lost", "sub_(grad_target)", "sub_(0.0)"),
    (
        "logprobs",
        "only the last chunk reaches the weight",
        "total.addmm_(left, right)",
        "total.copy_(left @ right)",
    ),
    (
        "logprobs",
        "only the last chunk reaches the bias",
        "grad_bias += grad_logits.sum(0)",
        "grad_bias = grad_logits.sum(0)",
    ),
    (
        "logprobs",
        "the last chunk is cut short",
        "min(start + chunk_tokens, num_tokens)",
        "min(start + chunk_tokens, num_tokens - 1)",
    ),
    (
        "logprobs",
        "one position too early",
        "positions = loss_mask.nonzero().squeeze(-1)",
        "positions = loss_mask.nonzero().squeeze(-1) - 1",
    ),
    ("schedule", "the first update has rate 0", "peak * (step + 1) / warmup_steps", "peak * step / warmup_steps"),
    ("schedule", "decay counts from step 0", "(step - warmup_steps) / max(", "step / max("),
    ("schedule", "the final rate is forgotten", "final_frac + (1.0 - final_frac) *", ""),
    ("schedule", "nothing holds at the end", ", 1.0)\n    return peak", ", 9.0)\n    return peak"),
    ("calibration", "ties count as right", "0.5 * (chosen == rejected)", "1.0 * (chosen == rejected)"),
    (
        "calibration",
        "gaps of bins cancel",
        "abs(one.mean_prob - one.observed_frac)",
        "(one.mean_prob - one.observed_frac)",
    ),
    ("calibration", "small bins weigh as much as large ones", "one.count * abs(", "abs("),
    (
        "calibration",
        "what was foretold and what was change places",
        "for x in (prob, outcome)",
        "for x in (outcome, prob)",
    ),
    ("calibration", "correlation about zero", "x, y = x - x.mean(), y - y.mean()", "pass"),
    ("segments", "a trajectory's first token belongs to the one before", "right=True", "right=False"),
    (
        "segments",
        "first instead of last",
        "torch.full((len(cu_lengths) - 1,), -1",
        "torch.full((len(cu_lengths) - 1,), 0",
    ),
)


@contextmanager
def _mutant(name: str, text: str, replacement: str) -> Iterator[ModuleType]:
    spec = importlib.util.find_spec(f"actors.algorithms.{name}")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    assert source.count(text) == 1, (
        f"{name}.py has {text!r} {source.count(text)} times: the mutation has to follow the code"
    )
    mutant = ModuleType(f"mutant_of_{name}")
    sys.modules[mutant.__name__] = mutant  # dataclasses look their module up
    try:
        exec(compile(source.replace(text, replacement), f"<mutant of {name}.py>", "exec"), mutant.__dict__)
        yield mutant
    finally:
        del sys.modules[mutant.__name__]


def _caught(module: ModuleType, name: str) -> bool:
    for check in CHECKS[name]:
        try:
            check(module)
        # Whatever a broken formula breaks in torch is as good a catch as a wrong number.
        except (AssertionError, RuntimeError, ValueError, IndexError, pytest.fail.Exception):
            return True
    return False


@pytest.mark.parametrize(
    ("name", "text", "replacement"),
    [pytest.param(name, text, new, id=f"{name}: {what}") for name, what, text, new in MUTATIONS],
)
def test_a_wrong_formula_is_caught(name: str, text: str, replacement: str) -> None:
    with _mutant(name, text, replacement) as module:
        assert _caught(module, name)


@pytest.mark.parametrize("name", list(CHECKS))
def test_an_unchanged_copy_is_not(name: str) -> None:
    """The harness itself catches nothing, and every module has mutations."""
    with _mutant(name, "from __future__ import annotations\n", "from __future__ import annotations\n") as module:
        assert not _caught(module, name)
    assert name in {mutation[0] for mutation in MUTATIONS}
