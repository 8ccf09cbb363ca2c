"""Stage `ppo`: the algorithm's numbers and the whole stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.schema.base import (
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    refuse,
)
from configs.schema.data import PromptDataConfig
from configs.schema.engine import MODEL, FrozenConfig, TrainerConfig
from configs.schema.rewards import FunctionConfig, RewardConfig
from configs.schema.rollout import RolloutConfig, WeightSyncConfig
from configs.schema.run import ClusterConfig, RunConfig


class FixedKLConfig(Section):
    """A coefficient that stays."""

    kind: Literal["fixed"] = "fixed"
    """Name of this variant."""
    coef: NonNegativeFloat = 0.05
    """KL coefficient."""


class AdaptiveKLConfig(Section):
    """A coefficient that steers KL to a target (Ziegler et al. 2019)."""

    kind: Literal["adaptive"]
    """Name of this variant."""
    coef: PositiveFloat = 0.05
    """KL coefficient at the start."""
    target: PositiveFloat
    """KL per trajectory in nats: sum over its tokens, mean over trajectories."""
    horizon: PositiveInt = 10000
    """Trajectories over which the coefficient moves."""


class KLConfig(Section):
    """How far the policy may go from the reference."""

    where: Literal["reward", "loss"] = "reward"
    """Taken from each token's reward, or added to the policy's loss."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of KL per token (Schulman 2020)."""
    controller: Annotated[FixedKLConfig | AdaptiveKLConfig, Field(discriminator="kind")] = FixedKLConfig()
    """Fixed or adaptive coefficient; fixed where `kind` is not given."""

    @field_validator("controller", mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        return {"kind": "fixed", **value} if isinstance(value, dict) else value


class PPOConfig(Section):
    """The algorithm (Schulman et al. 2017)."""

    steps: PositiveInt
    """PPO steps of the run: one batch of prompts each, from generation to weight sync."""
    prompts_per_step: PositiveInt = 64
    """Prompts of one step."""
    epochs: PositiveInt = 1
    """Passes over a step's trajectories."""
    minibatches: PositiveInt = 1
    """Optimizer steps in each epoch; divides the trajectories of a step."""
    target_kl: PositiveFloat | None = None
    """The policy's remaining updates of a step are left out once a minibatch lies further than this from the policy before them (k3, nats,
    mean over its tokens or answers as the loss is); never where null."""
    clip_low: Fraction = 0.2
    """Ratios below 1 minus this are clipped."""
    clip_high: PositiveFloat = 0.2
    """Ratios above 1 plus this are clipped; larger than `clip_low` is clip-higher."""
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False, strict=True)] | None = None
    """Bound of the loss for negative advantages, as a factor of the advantage; off where it is not given."""
    importance_cap: PositiveFloat | None = 2.0
    """Truncation of the importance weight exp(old - rollout); no weight where null."""
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Mean over the minibatch's tokens, or over its answers of each one's token mean."""
    value_clip: PositiveFloat | None = 0.2
    """Values move at most this far from the old ones within the loss; not clipped where null."""
    gamma: Fraction = 1.0
    """Discount."""
    gae_lambda: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Advantages get mean 0 and deviation 1 over the step's tokens."""
    entropy_coef: FiniteFloat = 0.0
    """Factor of the entropy bonus."""
    truncation: Literal["bootstrap", "penalise", "terminal"] = "bootstrap"
    """What follows an answer cut off by the length limit: the value after its last token, a constant penalty, or nothing."""
    kl: KLConfig = KLConfig()
    """Distance from the reference."""


class CriticConfig(TrainerConfig):
    """The value model."""

    init_from: Literal["reward", "policy", "model"] = "reward"
    """Start from the reward model, from the policy with a zero head, or from `model`."""
    warmup_steps: NonNegativeInt = 0
    """PPO steps at the start in which only the critic is updated."""


class EvaluationConfig(Section):
    """What the policy's answers to held-out prompts (`data.held_out_rows`) are worth. They are compared with those of the policy's first
    weights, sampled with the same seeds."""

    every: PositiveInt = 10
    """PPO steps between evaluations; before the first step and after the last there always is one."""
    responses_per_prompt: PositiveInt = 1
    """Answers sampled to each held-out prompt."""
    judge: FunctionConfig | None = None
    """Python function that says which answers are better; what pays does where it is not given. The judge itself pays nothing."""
    best: Literal["win_rate", "score", "judged"] = "win_rate"
    """What the best checkpoint has most of: wins against the first weights' answers, the mean of what pays, or of what the judge says."""
    export: Literal["last", "best"] = "last"
    """Which weights become the export: the last, or those of the best evaluation. Both have a checkpoint in any case."""


class PPOStage(Section):
    """Reinforcement learning from human feedback with PPO."""

    stage: Literal["ppo"]
    """Which stage this is."""
    run: RunConfig
    """Folder, seed, checkpoints."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray and time limits."""
    data: PromptDataConfig
    """Prompts."""
    policy: TrainerConfig
    """The model that learns."""
    reference: FrozenConfig = FrozenConfig()
    """The frozen model that the policy stays near; the policy's first weights where `model` is not given."""
    critic: CriticConfig = CriticConfig()
    """The value model."""
    reward: RewardConfig
    """What pays."""
    rollout: RolloutConfig = RolloutConfig()
    """Generation."""
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    """From policy to engines."""
    ppo: PPOConfig
    """The algorithm."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out prompts; there is none without `data.held_out_rows`."""

    @model_validator(mode="after")
    def _models_given(self) -> Self:
        if self.policy.model is None:
            raise refuse("policy.model", "missing", MODEL)
        if self.reward.model is not None and self.reward.model.model is None:
            raise refuse("reward.model.model", "missing", "a folder or hub name of a reward model")
        if self.critic.init_from == "reward" and self.reward.model is None:
            raise refuse("critic.init_from", "got 'reward' without a reward.model", "'policy' or 'model'")
        if self.critic.init_from == "model" and self.critic.model is None:
            raise refuse("critic.model", "missing", f"{MODEL}, as critic.init_from is 'model'")
        if self.critic.init_from != "model" and self.critic.model is not None:
            raise refuse("critic.init_from", f"got {self.critic.init_from!r} beside a critic.model", "'model'")
        return self

    @model_validator(mode="after")
    def _judge_decides(self) -> Self:
        if self.evaluation.best == "judged" and self.evaluation.judge is None:
            raise refuse("evaluation.best", "got 'judged' without evaluation.judge", "'win_rate' or 'score'")
        return self

    @model_validator(mode="after")
    def _evaluation_has_prompts(self) -> Self:
        if self.data.held_out_rows == 0 and self.evaluation != EvaluationConfig():
            raise refuse("data.held_out_rows", "got 0 beside a section evaluation", "a whole number of at least 1")
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        longest, penalise = self.rollout.max_response_tokens, self.ppo.truncation == "penalise"
        penalty, overlong = self.reward.missing_end_penalty, self.reward.length_penalty_from
        if penalty > 0 and not penalise:
            raise refuse("reward.missing_end_penalty", f"got {penalty}", "0 unless ppo.truncation is 'penalise'")
        if penalise and penalty == 0:
            raise refuse("reward.missing_end_penalty", "got 0", "a number above 0, as ppo.truncation is 'penalise'")
        if overlong is not None and overlong >= longest:
            raise refuse(
                "reward.length_penalty_from", f"got {overlong}", f"less than rollout.max_response_tokens ({longest})"
            )
        return self
