"""What can be found wrong before any model is loaded: data, tokenizers, windows, architectures, reward functions.

Runs as one short task where the roles will run, since that is where the files are. Heavy imports stand inside the function: the driver
imports this module for the names alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.errors import UserError
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage

Architecture = Mapping[str, Any]
"""What of a model's `config.json` decides the shapes of its tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFacts:
    """What the orchestrator needs to know of the prompts."""

    num_prompts: int
    num_dropped: int
    longest_tokens: int
    fingerprint: str
    models: Mapping[str, Architecture]
    """By the model's key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingFacts:
    """What the orchestrator needs to know of the ranked answers."""

    num_groups: int
    num_held_out: int
    num_dropped: int
    """Groups left out for length."""
    num_ties: int
    """Groups left out because all their answers have the same rank."""
    fingerprint: str
    models: Mapping[str, Architecture]
    """By the model's key."""


def check_ppo(config: PPOStage, *, unmade: frozenset[str] = frozenset()) -> PromptFacts:
    """Everything of a PPO stage that files can tell.

    `unmade` are keys of models that an earlier stage of the pipeline is still to export; in `config` stands what each will be made from.
    Of such a model tokenizer, vocabulary and window are checked, which it hands on, and neither its head nor its statistics.

    Raises:
        UserError: naming the key or file, what was got and what is allowed.
    """
    from actors.data.prompts import PromptDataset
    from actors.data.tokenizer import load_tokenizer
    from actors.reward_worker import check_function

    models = _models(config)
    configs = {
        key: _model_config(model, key, KINDS[key] if key not in unmade else ANY) for key, model in models.items()
    }
    _require_same_vocabulary(models, configs)
    if config.reward.model is not None and config.reward.model.normalise and "reward.model.model" not in unmade:
        from actors.reward_trainer import load_reward_stats

        load_reward_stats(models["reward.model.model"])
    for number, function in enumerate(config.reward.functions):
        try:
            check_function(function.function)
        except UserError as error:
            raise UserError(f"reward.functions.{number}.function: {error}") from error
    tokenizer = load_tokenizer(models["policy.model"])
    _require_same_tokenizer(models, tokenizer)
    prompts = PromptDataset.load(config.data, tokenizer)
    _check_windows(models, configs, prompts.longest, config.rollout.max_response_tokens)
    return PromptFacts(
        num_prompts=len(prompts),
        num_dropped=prompts.num_dropped,
        longest_tokens=prompts.longest,
        fingerprint=prompts.fingerprint,
        models={key: _architecture(found) for key, found in configs.items()},
    )


def check_reward(config: RewardStage) -> RankingFacts:
    """Everything of a reward stage that files can tell. Raises UserError as `check_ppo` does."""
    from actors.data.rankings import RankingDataset
    from actors.data.tokenizer import load_tokenizer

    assert config.model.model is not None
    model = _model_config(config.model.model, "model.model", ANY)
    window = _window(model)
    if window is not None and config.data.max_tokens > window:
        raise UserError(
            f"data.max_tokens: got {config.data.max_tokens}; allowed: at most the model's window of {window} tokens ({config.model.model})"
        )
    rankings = RankingDataset.load(config.data, load_tokenizer(config.model.model))
    return RankingFacts(
        num_groups=len(rankings.train),
        num_held_out=len(rankings.held_out),
        num_dropped=rankings.num_dropped,
        num_ties=rankings.num_ties,
        fingerprint=rankings.fingerprint,
        models={"model.model": _architecture(model)},
    )


LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
SCALAR_MODELS = ("ForSequenceClassification",)
ANY = LANGUAGE_MODELS + SCALAR_MODELS
KINDS = {
    "policy.model": LANGUAGE_MODELS,
    "reference.model": LANGUAGE_MODELS,
    "critic.model": ANY,
    "reward.model.model": SCALAR_MODELS,
}
"""Ends of the names of architectures that a model's key takes."""


def _models(config: PPOStage) -> dict[str, str]:
    """Every model that the config names, by its key; the policy first."""
    models = {
        "policy.model": config.policy.model,
        "reference.model": config.reference.model,
        "critic.model": config.critic.model,
        "reward.model.model": config.reward.model.model if config.reward.model is not None else None,
    }
    return {key: model for key, model in models.items() if model is not None}


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


def _architecture(config: Mapping[str, Any]) -> Architecture:
    from actors.models.checks import ARCHITECTURE_KEYS

    return {key: config.get(key) for key in ARCHITECTURE_KEYS}


def _window(config: Mapping[str, Any]) -> int | None:
    """Most tokens the model's positions reach to; None where its `config.json` does not say. `n_positions` is GPT-2's word."""
    return config.get("max_position_embeddings", config.get("n_positions"))


def _require_same_vocabulary(models: Mapping[str, str], configs: Mapping[str, Mapping[str, Any]]) -> None:
    """KL compares the reference's distribution with the policy's, so they are over equally many tokens."""
    if "reference.model" not in models:
        return
    of_reference, of_policy = (configs[key].get("vocab_size") for key in ("reference.model", "policy.model"))
    if of_reference != of_policy:
        raise UserError(
            f"reference.model: {models['reference.model']!r} has a vocabulary of {of_reference}, "
            f"policy.model {models['policy.model']!r} one of {of_policy}; they must be equal"
        )


def _require_same_tokenizer(models: Mapping[str, str], tokenizer: Any) -> None:
    """All models of the stage read the policy's token ids as they are."""
    from actors.data.tokenizer import difference, load_tokenizer

    policy = models["policy.model"]
    for key, model in models.items():
        if model == policy:
            continue
        try:
            what = difference(tokenizer, load_tokenizer(model))
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        if what is not None:
            raise UserError(
                f"{key}: the tokenizers of {policy!r} (policy) and {model!r} differ: {what}. "
                "Allowed: a model that was trained with the policy's tokenizer"
            )


def _check_windows(
    models: Mapping[str, str], configs: Mapping[str, Mapping[str, Any]], longest_prompt: int, response: int
) -> None:
    """Past its window a model gives numbers without sense, and no error."""
    longest = longest_prompt + response
    for key, model in models.items():
        window = _window(configs[key])
        if window is not None and longest > window:
            raise UserError(
                f"{key}: the longest prompt ({longest_prompt} tokens) and rollout.max_response_tokens ({response}) "
                f"make {longest} tokens; allowed: at most the window of {model!r}, {window}"
            )
