"""Where PPO's rewards come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import (
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    refuse,
)
from configs.schema.engine import FrozenConfig


class RewardModelConfig(FrozenConfig):
    """A trained reward model."""

    weight: FiniteFloat = 1.0
    """Factor in the sum of rewards."""
    normalise: bool = True
    """Subtract the mean and divide by the deviation of its scores on held-out data, stored with the model."""
    overlong: Literal["error", "truncate_left"] = "error"
    """Where answers reach it as text: a prompt and answer of too many of its tokens stop the step, or lose their oldest tokens."""
    chat_template: bool | None = None
    """Wrap prompt and answer in the reward model's own chat template; as `data.chat_template` where null."""


class FunctionConfig(Section):
    """A Python function `(prompt: str, response: str, **columns) -> float` in a worker process of its own."""

    function: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """`module:function`, importable from where the run was started."""
    timeout_s: PositiveFloat = 30.0
    """Longest time for one answer; then the worker is killed and the call counts as failed."""
    retries: NonNegativeInt = 2
    """Further tries of a call that raised, timed out or gave something not finite; then the step stops. It never becomes zero."""
    num_workers: PositiveInt = 1
    """Worker processes."""


class RewardFunctionConfig(FunctionConfig):
    """A Python function that pays."""

    weight: FiniteFloat = 1.0
    """Factor in the sum of rewards."""


class RewardConfig(Section):
    """A weighted sum of a reward model and functions."""

    model: RewardModelConfig | None = None
    """Reward model; none where only functions pay."""
    functions: tuple[RewardFunctionConfig, ...] = ()
    """Python functions."""
    clip: PositiveFloat | None = None
    """The sum is clipped to plus and minus this; not clipped where it is not given."""
    missing_end_penalty: NonNegativeFloat = 0.0
    """Taken from the score of an answer that was cut off (with `ppo.truncation: penalise`)."""
    length_penalty: NonNegativeFloat = 0.0
    """Largest penalty of an overlong answer: it rises linearly from 0 at `length_penalty_from` tokens to this at the longest answer."""
    length_penalty_from: NonNegativeInt | None = None
    """Response tokens from which an answer is overlong."""

    @model_validator(mode="after")
    def _something_pays(self) -> Self:
        if self.model is None and not self.functions:
            raise refuse("", "got neither a model nor functions", "`model`, `functions` or both")
        if self.length_penalty > 0 and self.length_penalty_from is None:
            raise refuse("length_penalty_from", "missing", "a number of tokens, as length_penalty is above 0")
        if self.length_penalty == 0 and self.length_penalty_from is not None:
            raise refuse("length_penalty", "got 0 beside length_penalty_from", "a number above 0")
        return self
