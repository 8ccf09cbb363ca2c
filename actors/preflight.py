"""What can be found wrong before any model is loaded: data, tokenizers, windows, architectures, reward functions.

Runs as one short task where the roles will run, since that is where the files are. Heavy imports stand inside the function: the driver
imports this module for the names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.errors import UserError
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage

if TYPE_CHECKING:
    from actors.data.prompts import PromptDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFacts:
    """What the orchestrator needs to know of the prompts."""

    num_prompts: int
    num_dropped: int
    longest_tokens: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingFacts:
    """What the orchestrator needs to know of the ranked answers."""

    num_groups: int
    num_held_out: int
    fingerprint: str


def check_ppo(config: PPOStage) -> PromptFacts:
    """Everything of a PPO stage that files can tell.

    Raises:
        UserError: naming the key or file, what was got and what is allowed.
    """
    from actors.data.prompts import PromptDataset
    from actors.data.tokenizer import load_tokenizer
    from actors.reward_worker import check_function

    assert config.policy.model is not None
    policy = _model_config(config.policy.model, "policy.model", LANGUAGE_MODELS)
    _check_models(config, policy)
    for number, function in enumerate(config.reward.functions):
        try:
            check_function(function.function)
        except UserError as error:
            raise UserError(f"reward.functions.{number}.function: {error}") from error
    tokenizer = load_tokenizer(config.policy.model)
    if config.reward.model is not None:
        _require_same_tokenizer(config, tokenizer)
    prompts = PromptDataset.load(config.data, tokenizer)
    _check_window(config, policy, prompts)
    return PromptFacts(
        num_prompts=len(prompts),
        num_dropped=prompts.num_dropped,
        longest_tokens=prompts.longest,
        fingerprint=prompts.fingerprint,
    )


def check_reward(config: RewardStage) -> RankingFacts:
    """Everything of a reward stage that files can tell. Raises UserError as `check_ppo` does."""
    from actors.data.rankings import RankingDataset
    from actors.data.tokenizer import load_tokenizer

    assert config.model.model is not None
    model = _model_config(config.model.model, "model.model", LANGUAGE_MODELS + SCALAR_MODELS)
    window = model.get("max_position_embeddings")
    if window is not None and config.data.max_tokens > window:
        raise UserError(
            f"data.max_tokens: got {config.data.max_tokens}; allowed: at most the model's window of {window} tokens ({config.model.model})"
        )
    rankings = RankingDataset.load(config.data, load_tokenizer(config.model.model))
    return RankingFacts(
        num_groups=len(rankings.train), num_held_out=len(rankings.held_out), fingerprint=rankings.fingerprint
    )


LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
SCALAR_MODELS = ("ForSequenceClassification",)


def _model_config(model: str, key: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The model's `config.json`. UserError, naming the key, where it is not of one of the kinds of architecture."""
    from actors.models.checks import check_plain_logits, read_model_config

    try:
        found = read_model_config(model)
        check_plain_logits(found, model)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    architecture = (found.get("architectures") or ["no architecture that its config.json names"])[0]
    if not architecture.endswith(kinds):
        allowed = " or ".join(f"*{kind}" for kind in kinds)
        raise UserError(f"{key}: {model!r} is {architecture}; allowed: {allowed}")
    return found


def _check_models(config: PPOStage, policy: dict[str, Any]) -> None:
    """Reference, critic and reward model are what their keys ask for."""
    if config.reference.model is not None:
        reference = _model_config(config.reference.model, "reference.model", LANGUAGE_MODELS)
        if reference.get("vocab_size") != policy.get("vocab_size"):
            raise UserError(
                f"reference.model: {config.reference.model!r} has a vocabulary of {reference.get('vocab_size')}, "
                f"policy.model {config.policy.model!r} one of {policy.get('vocab_size')}; they must be equal"
            )
    if config.critic.model is not None:
        _model_config(config.critic.model, "critic.model", LANGUAGE_MODELS + SCALAR_MODELS)
    if config.reward.model is not None:
        from actors.reward_trainer import load_reward_stats

        assert config.reward.model.model is not None
        _model_config(config.reward.model.model, "reward.model.model", SCALAR_MODELS)
        if config.reward.model.normalise:
            load_reward_stats(config.reward.model.model)


def _require_same_tokenizer(config: PPOStage, tokenizer: Any) -> None:
    from actors.data.tokenizer import difference, load_tokenizer

    assert config.reward.model is not None
    assert config.reward.model.model is not None
    if (what := difference(tokenizer, load_tokenizer(config.reward.model.model))) is not None:
        raise UserError(
            f"reward.model.model: the tokenizers of {config.policy.model!r} (policy) and {config.reward.model.model!r} differ: {what}. "
            "Allowed: a reward model that was trained with the policy's tokenizer"
        )


def _check_window(config: PPOStage, policy: dict[str, Any], prompts: PromptDataset) -> None:
    window = policy.get("max_position_embeddings")
    longest = prompts.longest + config.rollout.max_response_tokens
    if window is not None and longest > window:
        raise UserError(
            f"policy.model: the longest prompt ({prompts.longest} tokens) and rollout.max_response_tokens "
            f"({config.rollout.max_response_tokens}) make {longest} tokens; "
            f"allowed: at most the window of {config.policy.model!r}, {window}"
        )
