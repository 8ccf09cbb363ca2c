"""What can be found wrong before any model is loaded: data, tokenizers, windows, architectures, reward functions.

Runs as one short task where the roles will run, since that is where the files are. Heavy imports stand inside the function: the driver
imports this module for the names alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.errors import UserError
from configs.schema import SupervisedStage, stage_models
from configs.schema.compare import CompareConfig
from configs.schema.data import PromptDataConfig
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.reward import RewardStage
from configs.schema.rewards import RewardModelConfig
from configs.schema.supervised import DPOStage

if TYPE_CHECKING:
    from actors.data.prompts import Prompt, PromptDataset
    from actors.data.reward_reader import RewardReader

Architecture = Mapping[str, Any]
"""What of a model's `config.json` decides the shapes of its tensors; and `weights`, a digest of them, where the run promises bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFacts:
    """What the orchestrator needs to know of the prompts."""

    num_prompts: int
    """To learn from."""
    num_held_out: int
    """To evaluate on; in the dataset they follow."""
    num_dropped: int
    longest_tokens: int
    fingerprint: str
    rows_fingerprint: str
    """Of what was read, before tokens."""
    models: Mapping[str, Architecture]
    """By the model's key."""
    why_text: str | None = None
    """Why answers have to reach the reward model as text; None where it reads the policy's tokens, or there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedFacts:
    """What the orchestrator needs to know of a supervised stage's data."""

    num_train: int
    num_held_out: int
    num_dropped: int
    """Rows left out for length."""
    num_ties: int | None
    """Groups left out because all their answers have the same rank; None where nothing is ranked."""
    fingerprint: str
    models: Mapping[str, Architecture]
    """By the model's key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareFacts:
    """What the orchestrator needs to know of the prompts that both models can answer."""

    ids: tuple[str, ...]
    prompts: tuple[Any, ...]
    """Text or chat messages, as the rows have them."""
    rows: tuple[tuple[int, ...], ...]
    """Of each model, where these prompts are in its own dataset: the two may drop others for their length."""
    num_dropped: int
    """Prompts left out for their length in one of the models' tokens."""
    fingerprints: tuple[str, ...]
    """Of each model's dataset."""
    rows_fingerprint: str
    """Of what was read, before tokens."""
    normalised: bool
    """The reward model has what its scores are normalised by."""


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

    models = stage_models(config)
    configs = {
        key: _model_config(model, key, KINDS[key] if key not in unmade else ANY) for key, model in models.items()
    }
    _require_same_vocabulary(models, configs)
    if config.reward.model is not None and config.reward.model.normalise and "reward.model.model" not in unmade:
        from actors.reward_trainer import load_reward_stats

        load_reward_stats(models["reward.model.model"])
    functions = {f"reward.functions.{n}.function": one.function for n, one in enumerate(config.reward.functions)}
    if config.evaluation.judge is not None:
        functions["evaluation.judge.function"] = config.evaluation.judge.function
    for key, function in functions.items():
        try:
            check_function(function)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    tokenizer = load_tokenizer(models["policy.model"])
    reader = _reward_reader(config, tokenizer)
    why_text = reader.why_text(tokenizer) if reader is not None else None
    # a critic that starts from the reward model reads tokens, whatever the reward model reads
    only_texts = {"reward.model.model"} if why_text is not None and config.critic.init_from != "reward" else set()
    reading_tokens = {key: model for key, model in models.items() if key not in only_texts}
    _require_same_tokenizer(reading_tokens, tokenizer)
    prompts = PromptDataset.load(config.data, tokenizer)
    _check_windows(reading_tokens, configs, prompts.longest, config)
    if reader is not None and why_text is not None:
        reader.check(prompts.prompts)
    return _prompt_facts(
        prompts,
        {
            key: _architecture(found, models[key], digest=config.run.deterministic and key not in unmade)
            for key, found in configs.items()
        },
        why_text=why_text,
    )


def check_supervised(config: SupervisedStage, *, unmade: bool = False) -> SupervisedFacts:
    """Everything of a supervised stage that files can tell. `unmade`, and UserError, as in `check_ppo`."""
    from actors.data.rankings import RankingDataset
    from actors.data.tokenizer import load_tokenizer
    from actors.language_trainer import load_sequences
    from actors.models.checks import window

    assert config.model.model is not None
    kinds = ANY if unmade or isinstance(config, RewardStage) else LANGUAGE_MODELS
    model = _model_config(config.model.model, "model.model", kinds)
    positions = window(model)
    if positions is not None and config.data.max_tokens > positions:
        raise UserError(
            f"data.max_tokens: got {config.data.max_tokens}; allowed: at most the window of {config.model.model}, {positions} tokens"
        )
    tokenizer = load_tokenizer(config.model.model)
    data = (
        RankingDataset.load(config.data, tokenizer)
        if isinstance(config, RewardStage | DPOStage)
        else load_sequences(config, tokenizer)
    )
    total, warmup = config.training.total_steps(len(data.train)), config.model.optimizer.warmup_steps
    if warmup >= total:
        raise UserError(
            f"model.optimizer.warmup_steps: got {warmup}; allowed: less than {total}, the steps of the run "
            f"({len(data.train)} to train on, {config.training.per_step} a step, {config.training.epochs} epochs)"
        )
    return SupervisedFacts(
        num_train=len(data.train),
        num_held_out=len(data.held_out),
        num_dropped=data.num_dropped,
        num_ties=data.num_ties if isinstance(data, RankingDataset) else None,
        fingerprint=data.fingerprint,
        models={
            "model.model": _architecture(model, config.model.model, digest=config.run.deterministic and not unmade)
        },
    )


def check_rank(config: RankStage) -> PromptFacts:
    """Everything of a rank stage that files can tell. UserError as in `check_ppo`."""
    from actors.data.prompts import PromptDataset
    from actors.data.tokenizer import load_tokenizer
    from actors.reward_worker import check_function

    model = config.policy.model
    found = _model_config(model, "policy.model", LANGUAGE_MODELS)
    try:
        check_function(config.annotator.function)
    except UserError as error:
        raise UserError(f"annotator.function: {error}") from error
    prompts = PromptDataset.load(config.data, load_tokenizer(model))
    _check_window("policy.model", model, found, prompts.longest, config.rollout.max_response_tokens)
    return _prompt_facts(prompts, {"policy.model": _architecture(found, model, digest=config.run.deterministic)})


def _prompt_facts(
    prompts: PromptDataset, models: Mapping[str, Architecture], *, why_text: str | None = None
) -> PromptFacts:
    return PromptFacts(
        num_prompts=prompts.num_train,
        num_held_out=prompts.num_held_out,
        num_dropped=prompts.num_dropped,
        longest_tokens=prompts.longest,
        fingerprint=prompts.fingerprint,
        rows_fingerprint=prompts.rows_fingerprint,
        models=models,
        why_text=why_text,
    )


def check_compare(config: CompareConfig) -> CompareFacts:
    """Everything of a comparison that files can tell. UserError as in `check_ppo`; the models are called A, B and --reward-model."""
    from actors.data.prompts import PromptDataset, read_prompts
    from actors.data.tokenizer import load_tokenizer
    from actors.reward_worker import check_function

    named = dict(zip(("A", "B"), config.models, strict=True))
    found = {key: _model_config(model, key, LANGUAGE_MODELS) for key, model in named.items()}
    if config.reward is not None:
        _model_config(str(config.reward.model.model), "--reward-model", SCALAR_MODELS)
    if config.annotator is not None:
        try:
            check_function(config.annotator.function)
        except UserError as error:
            raise UserError(f"--function: {error}") from error
    rows_fingerprint, prompts = read_prompts(config.data)
    datasets = []
    for key, model in named.items():
        try:
            data = PromptDataset.load(config.data, load_tokenizer(model))
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        _check_window(key, model, found[key], data.longest, config.rollout.max_response_tokens)
        datasets.append(data)
    places = [{prompt.id: index for index, prompt in enumerate(data.prompts)} for data in datasets]
    common = [prompt for prompt in prompts if all(prompt.id in of_model for of_model in places)]
    if not common:
        raise UserError(
            f"data.max_prompt_tokens: got {config.data.max_prompt_tokens}; no prompt of {config.data.path!r} is that short in both "
            "models' tokens"
        )
    normalised = config.reward is not None and _check_judge(config.reward.model, config.data, common)
    return CompareFacts(
        ids=tuple(prompt.id for prompt in common),
        prompts=tuple(prompt.content for prompt in common),
        rows=tuple(tuple(of_model[prompt.id] for prompt in common) for of_model in places),
        num_dropped=len(prompts) - len(common),
        fingerprints=tuple(data.fingerprint for data in datasets),
        rows_fingerprint=rows_fingerprint,
        normalised=normalised,
    )


def _check_judge(reward: RewardModelConfig, data: PromptDataConfig, prompts: Sequence[Prompt]) -> bool:
    """Whether the model can read the prompts; returns whether its scores are normalised: where that is wished and it has statistics."""
    from actors.data.reward_reader import RewardReader
    from actors.models.checks import resolve_folder
    from actors.reward_trainer import STATS_FILE, load_reward_stats

    assert reward.model is not None
    try:
        RewardReader(reward, data).check(prompts)
    except UserError as error:
        raise UserError(f"--reward-model: {error}") from error
    normalised = reward.normalise and (resolve_folder(reward.model, weights=False) / STATS_FILE).exists()
    if normalised:
        load_reward_stats(reward.model)
    return normalised


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


def _architecture(config: Mapping[str, Any], model: str, *, digest: bool) -> Architecture:
    from actors.models.checks import ARCHITECTURE_KEYS, weights_digest

    found = {key: config.get(key) for key in ARCHITECTURE_KEYS}
    return {**found, "weights": weights_digest(model)} if digest else found


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


def _reward_reader(config: PPOStage, tokenizer: Any) -> RewardReader | None:
    """How the reward model reads texts; None without one.

    Raises:
        UserError: for a critic that would start from a reward model of another tokenizer.
    """
    from actors.data.reward_reader import RewardReader
    from actors.data.tokenizer import difference

    reward = config.reward.model
    if reward is None:
        return None
    try:
        reader = RewardReader(reward, config.data)
    except UserError as error:
        raise UserError(f"reward.model.model: {error}") from error
    what = difference(tokenizer, reader.tokenizer)
    if what is not None and config.critic.init_from == "reward":
        raise UserError(
            f"critic.init_from: got 'reward', but the tokenizers of {config.policy.model!r} (policy) and {reward.model!r} (reward model) "
            f"differ: {what}. Allowed: 'policy', or 'model' with a critic.model that was trained with the policy's tokenizer"
        )
    return reader


def _require_same_tokenizer(models: Mapping[str, str], tokenizer: Any) -> None:
    """These models read the policy's token ids as they are."""
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
    models: Mapping[str, str], configs: Mapping[str, Mapping[str, Any]], longest_prompt: int, config: PPOStage
) -> None:
    """The policy also answers the probe of weight syncs."""
    response, probe = config.rollout.max_response_tokens, config.weight_sync.probe_tokens
    for key, model in models.items():
        if key == "policy.model" and probe > response:
            _check_window(key, model, configs[key], longest_prompt, probe, what="weight_sync.probe_tokens")
        else:
            _check_window(key, model, configs[key], longest_prompt, response)


def _check_window(
    key: str,
    model: str,
    config: Mapping[str, Any],
    longest_prompt: int,
    answer: int,
    *,
    what: str = "rollout.max_response_tokens",
) -> None:
    """Past its window a model gives numbers without sense, and no error."""
    from actors.models.checks import window

    positions, longest = window(config), longest_prompt + answer
    if positions is not None and longest > positions:
        raise UserError(
            f"{key}: the longest prompt ({longest_prompt} tokens) and {what} ({answer}) "
            f"make {longest} tokens; allowed: at most the window of {model!r}, {positions}"
        )
