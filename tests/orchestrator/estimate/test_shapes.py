"""Sizes from `config.json`, against what transformers builds, and against what is published."""

from typing import Any

import pytest
import torch
import transformers

from orchestrator.estimate.shapes import UnknownModel, model_shape

SMALL = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "intermediate_size": 168,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
}
LATENT = {
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 32, "num_key_value_heads": 3}),
    ("mistral", {"num_key_value_heads": 3, "head_dim": 24}),
    ("phi3", {"num_key_value_heads": 3, "pad_token_id": 0}),
    ("smollm3", {"num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0}),
    ("qwen2", {"num_key_value_heads": 2}),
    ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("qwen3", {"num_key_value_heads": 2, "head_dim": 48}),
    ("qwen3", {"num_key_value_heads": 2, "head_dim": 48, "attention_bias": True, "tie_word_embeddings": True}),
    ("gemma", {"num_key_value_heads": 1, "head_dim": 32}),
    ("gemma2", {"num_key_value_heads": 2, "head_dim": 32}),
    ("gemma3_text", {"num_key_value_heads": 2, "head_dim": 32}),
    ("mixtral", {"num_key_value_heads": 2, "num_local_experts": 4}),
    ("qwen2_moe", {**MOE, "num_key_value_heads": 2, "num_experts": 8, "shared_expert_intermediate_size": 56}),
    ("qwen3_moe", {**MOE, "num_key_value_heads": 2, "num_experts": 8, "head_dim": 16}),
    ("qwen3_moe", {**MOE, "num_key_value_heads": 2, "num_experts": 8, "head_dim": 16, "decoder_sparse_step": 2}),
    ("qwen3_moe", {**MOE, "num_key_value_heads": 2, "num_experts": 8, "head_dim": 16, "mlp_only_layers": [1]}),
    ("deepseek_v3", LATENT),
    ("deepseek_v3", {**LATENT, "q_lora_rank": None, "attention_bias": True}),
    ("opt", {"ffn_dim": 200, "word_embed_proj_dim": 96}),
    ("gpt2", {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 256}),
]


def built(model_type: str, settings: dict[str, Any]) -> tuple[dict[str, Any], int, int | None]:
    """config.json and the parameters that transformers makes of it: language model, and with a scalar head where there is such a class."""
    config = transformers.AutoConfig.for_model(model_type, **(SMALL | settings))
    with torch.device("meta"):
        language = transformers.AutoModelForCausalLM.from_config(config)
        config.num_labels = 1
        try:
            scalar = transformers.AutoModelForSequenceClassification.from_config(config)
        except ValueError:
            scalar = None
    return (
        config.to_dict(),
        sum(parameter.numel() for parameter in language.parameters()),
        None if scalar is None else sum(parameter.numel() for parameter in scalar.parameters()),
    )


@pytest.mark.parametrize(("model_type", "settings"), CASES)
def test_counts_are_those_that_transformers_builds(model_type: str, settings: dict[str, Any]) -> None:
    config, language, scalar = built(model_type, settings)
    shape = model_shape(config, "m")
    assert shape.num_params == language
    assert scalar is None or shape.num_scalar_params == scalar


def test_active_parameters_of_a_mixture_count_the_chosen_experts_alone() -> None:
    config = {**SMALL, **MOE, "model_type": "qwen3_moe", "num_experts": 8, "num_key_value_heads": 2, "head_dim": 16}
    shape = model_shape(config, "m")
    # by hand: a layer's experts are 3 x 96 x 40 each, 2 of 8 are met
    expert, num_layers = 3 * 96 * 40, 3
    assert shape.num_params - shape.active_params == num_layers * 6 * expert + 1000 * 96
    assert (shape.layers[0].experts, shape.layers[0].mlp_width) == (8, 80)


def test_cache_of_latent_attention_is_its_narrow_vector() -> None:
    # DeepSeek-V3 (arXiv 2412.19437): 512 + 64 numbers a token and layer
    config = {**SMALL, **LATENT, "model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert model_shape(config, "m").kv_elements == 576


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {**SMALL, "model_type": "mamba"},
            "org/m: its architecture 'mamba' is not among those known here: deepseek_v3, ",
        ),
        (SMALL, "org/m: its architecture None is not among those known here"),
        (
            {**SMALL, "model_type": "llama", "hidden_size": "wide"},
            "org/m: config.json has no number hidden_size, got 'wide'",
        ),
        (
            {**SMALL, "model_type": "mixtral"},
            "org/m: config.json has no number num_local_experts, got None",
        ),
        (
            {**SMALL, "model_type": "opt", "ffn_dim": 8, "word_embed_proj_dim": 4},
            "org/m: an OPT with projected embeddings or norms behind its layers is not known",
        ),
    ],
)
def test_what_is_not_known_is_said(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownModel) as error:
        model_shape(config, "org/m")
    assert str(error.value).startswith(said)
