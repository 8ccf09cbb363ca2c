"""The sizes of a network, from its `config.json` alone: parameters by where they stand, and what one token costs.

Known are the architectures of `FAMILIES`; counts are exact for them (tests compare them with what transformers builds). Any other is
unknown, never guessed: `UnknownModel` says why. Legend: `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


class UnknownModel(Exception):
    """Sizes that cannot be told; the text says of what and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One layer, or several that are equal."""

    count: int
    params: int
    """Of one."""
    active_params: int
    """Of one, those that a token meets: of the experts only the chosen ones."""
    mlp_width: int
    """Inner width that a token meets: of all its experts together."""
    experts: int = 0
    """0: no mixture."""
    experts_per_token: int = 0
    largest_tensor: int = 0
    """Numbers in its largest parameter: transformers stacks the experts of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A causal language model, or the same with a scalar head."""

    model_type: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerShape, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of queries and keys."""
    value_dim: int
    """Of values."""
    kv_elements: int
    """Numbers that one token leaves in one layer's key-value cache."""
    gated_mlp: bool
    """Two matrices into the inner width, whose products are multiplied."""
    activation: Literal["silu", "gelu", "relu"]
    embedding_params: int
    """Of words, and of positions where these are learned."""
    outer_params: int
    """Norms outside of the layers."""
    tied: bool
    """The output head is the embedding."""
    window: int | None
    """Most tokens of a sequence; None where it is not said."""

    @property
    def num_layers(self) -> int:
        return sum(layer.count for layer in self.layers)

    @property
    def cached_heads(self) -> int:
        """Of keys and values, that an engine's GPUs share out; 1: the cache is one narrow vector a token, which each of them holds."""
        narrow = self.kv_elements < self.num_kv_heads * (self.head_dim + self.value_dim)
        return 1 if narrow else self.num_kv_heads

    @property
    def head_params(self) -> int:
        """Of the output head's own; 0 where it is tied."""
        return 0 if self.tied else self.vocab_size * self.hidden_size

    @property
    def backbone_params(self) -> int:
        """Without any head."""
        return self.embedding_params + self.outer_params + sum(layer.count * layer.params for layer in self.layers)

    @property
    def num_params(self) -> int:
        """Of the language model; a tied head counts once."""
        return self.backbone_params + self.head_params

    @property
    def num_scalar_params(self) -> int:
        """Of a critic or reward model: one number a token in place of the output head."""
        return self.backbone_params + self.hidden_size

    @property
    def active_params(self) -> int:
        """Those that one token is multiplied with in a forward pass of the language model: embeddings are looked up, the head is not."""
        layers = sum(layer.count * layer.active_params for layer in self.layers)
        return layers + self.outer_params + self.vocab_size * self.hidden_size

    @property
    def largest_layer_params(self) -> int:
        return max(layer.params for layer in self.layers)

    @property
    def largest_tensor(self) -> int:
        """Numbers in the largest parameter."""
        return max(self.vocab_size * self.hidden_size, *(layer.largest_tensor for layer in self.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What sets an architecture's layers apart from Llama's."""

    qkv_bias: str | bool = "attention_bias"
    """Key of config.json that says so, or the answer."""
    out_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    qk_norm: bool = False
    norms: int = 2
    """Of each layer, of H numbers each."""
    tied: bool = False
    """Where config.json does not say."""
    kv_heads: int | None = None
    """Where config.json does not say; None: as many as heads."""
    head_dim: int | None = None
    """Likewise; None: H over heads."""
    mixture: Callable[[Config], tuple[Mixture, int]] | None = None
    """Mixture and the number of its layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The experts of a layer."""

    num_experts: int
    per_token: int
    width: int
    shared_width: int = 0
    """Inner width of what every token meets beside its experts."""
    shared_gate: bool = False


class Config:
    """A `config.json` that is asked for sizes."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values = values
        self.name = name

    def size(self, *keys: str, default: int | None = None) -> int:
        """The first of `keys` that is there."""
        found = next((self.values[key] for key in keys if self.values.get(key) is not None), default)
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise UnknownModel(f"{self.name}: config.json has no number {' or '.join(keys)}, got {found!r}")
        return found

    def flag(self, key: str | bool, *, default: bool = False) -> bool:
        if isinstance(key, bool):
            return key
        found = self.values.get(key)
        return default if found is None else bool(found)


def _mixtral(config: Config) -> tuple[Mixture, int]:
    mixture = Mixture(
        num_experts=config.size("num_local_experts"),
        per_token=config.size("num_experts_per_tok"),
        width=config.size("intermediate_size"),
    )
    return mixture, config.size("num_hidden_layers")


def _qwen_moe(config: Config) -> tuple[Mixture, int]:
    shared = config.size("shared_expert_intermediate_size", default=0)
    mixture = Mixture(
        num_experts=config.size("num_experts", "num_local_experts"),
        per_token=config.size("num_experts_per_tok"),
        width=config.size("moe_intermediate_size"),
        shared_width=shared,
        shared_gate=shared > 0,
    )
    every, dense = config.size("decoder_sparse_step", default=1), config.values.get("mlp_only_layers") or []
    layers = range(config.size("num_hidden_layers"))
    return mixture, sum(layer not in dense and (layer + 1) % every == 0 for layer in layers)


def _deepseek(config: Config) -> tuple[Mixture, int]:
    width = config.size("moe_intermediate_size")
    mixture = Mixture(
        num_experts=config.size("n_routed_experts"),
        per_token=config.size("num_experts_per_tok"),
        width=width,
        shared_width=width * config.size("n_shared_experts"),
    )
    return mixture, config.size("num_hidden_layers") - config.size("first_k_dense_replace")


FAMILIES: dict[str, _Family] = {
    "llama": _Family(mlp_bias="mlp_bias"),
    "mistral": _Family(qkv_bias=False, out_bias=False, kv_heads=8),
    "phi3": _Family(qkv_bias=False, out_bias=False),
    "smollm3": _Family(mlp_bias="mlp_bias", tied=True, kv_heads=4),
    "qwen2": _Family(qkv_bias=True, out_bias=False),
    "qwen3": _Family(qk_norm=True, head_dim=128),
    "gemma": _Family(tied=True, head_dim=256),
    "gemma2": _Family(tied=True, norms=4, head_dim=256),
    "gemma3_text": _Family(tied=True, norms=4, qk_norm=True, head_dim=256),
    "mixtral": _Family(qkv_bias=False, out_bias=False, kv_heads=8, mixture=_mixtral),
    "qwen2_moe": _Family(qkv_bias=True, out_bias=False, mixture=_qwen_moe),
    "qwen3_moe": _Family(qk_norm=True, mixture=_qwen_moe),
    "deepseek_v3": _Family(mixture=_deepseek),
}
"""Architectures of Llama's build. `opt` and `gpt2` have functions of their own."""


def model_shape(values: Mapping[str, Any], name: str) -> ModelShape:
    """The sizes of the model whose `config.json` this is; `name` is for messages.

    Raises:
        UnknownModel: another architecture, or a size is missing.
    """
    config = Config(values, name)
    model_type = values.get("model_type")
    if model_type == "opt":
        return _opt(config)
    if model_type == "gpt2":
        return _gpt2(config)
    if model_type not in FAMILIES:
        known = ", ".join(sorted({*FAMILIES, "opt", "gpt2"}))
        raise UnknownModel(f"{name}: its architecture {model_type!r} is not among those known here: {known}")
    return _llama_like(config, FAMILIES[model_type], model_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    kv_elements: int
    params: int


def _llama_like(config: Config, family: _Family, model_type: str) -> ModelShape:
    hidden, vocab, num_layers = (
        config.size("hidden_size"),
        config.size("vocab_size"),
        config.size("num_hidden_layers"),
    )
    attention = _latent_attention(config) if model_type == "deepseek_v3" else _attention(config, family)
    rest = attention.params + family.norms * hidden
    mixture, num_sparse = family.mixture(config) if family.mixture else (None, 0)
    layers = []
    if num_layers > num_sparse:
        width = config.size("intermediate_size")
        mlp = 3 * hidden * width + (2 * width + hidden if config.flag(family.mlp_bias) else 0)
        params = rest + mlp
        layers.append(
            LayerShape(
                count=num_layers - num_sparse,
                params=params,
                active_params=params,
                mlp_width=width,
                largest_tensor=hidden * max(width, attention.num_heads * attention.head_dim),
            )
        )
    if mixture is not None and num_sparse:
        layers.append(_sparse_layer(hidden, rest, mixture, num_sparse))
    return ModelShape(
        model_type=model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=tuple(layers),
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        value_dim=attention.value_dim,
        kv_elements=attention.kv_elements,
        gated_mlp=True,
        activation="gelu" if model_type.startswith("gemma") else "silu",
        embedding_params=vocab * hidden,
        outer_params=hidden,
        tied=config.flag("tie_word_embeddings", default=family.tied),
        window=_window(config),
    )


def _attention(config: Config, family: _Family) -> _Attention:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", default=family.kv_heads or heads)
    dim = config.size("head_dim", default=family.head_dim or hidden // heads)
    queries, keys = heads * dim, kv_heads * dim
    params = hidden * (queries + 2 * keys) + queries * hidden
    params += (queries + 2 * keys) * config.flag(family.qkv_bias) + hidden * config.flag(family.out_bias)
    params += 2 * dim * family.qk_norm
    return _Attention(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, value_dim=dim, kv_elements=2 * keys, params=params
    )


def _latent_attention(config: Config) -> _Attention:
    """DeepSeek-V2, section 2.1: keys and values come from one narrow vector, which is also all that the cache holds."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    rope, plain, value = (config.size(key) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    narrow, bias = config.size("kv_lora_rank"), config.flag("attention_bias")
    query = heads * (rope + plain)
    if config.values.get("q_lora_rank") is None:
        params = hidden * query
    else:
        rank = config.size("q_lora_rank")
        params = hidden * rank + rank * bias + rank + rank * query
    params += hidden * (narrow + rope) + (narrow + rope) * bias + narrow + narrow * heads * (plain + value)
    params += heads * value * hidden + hidden * bias
    return _Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=rope + plain,
        value_dim=value,
        kv_elements=narrow + rope,
        params=params,
    )


def _sparse_layer(hidden: int, rest: int, mixture: Mixture, count: int) -> LayerShape:
    always = rest + hidden * mixture.num_experts + 3 * hidden * mixture.shared_width + hidden * mixture.shared_gate
    expert = 3 * hidden * mixture.width
    return LayerShape(
        count=count,
        params=always + mixture.num_experts * expert,
        active_params=always + mixture.per_token * expert,
        mlp_width=mixture.per_token * mixture.width + mixture.shared_width,
        experts=mixture.num_experts,
        experts_per_token=mixture.per_token,
        largest_tensor=mixture.num_experts * 2 * mixture.width * hidden,
    )


def _opt(config: Config) -> ModelShape:
    hidden, inner = config.size("hidden_size"), config.size("ffn_dim")
    if config.size("word_embed_proj_dim", default=hidden) != hidden or not config.flag("do_layer_norm_before", default=True):  # fmt: skip
        raise UnknownModel(f"{config.name}: an OPT with projected embeddings or norms behind its layers is not known")
    positions = config.size("max_position_embeddings") + 2
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    return _plain(config, "opt", layer=layer, inner=inner, positions=positions, activation="relu")


def _gpt2(config: Config) -> ModelShape:
    hidden = config.size("n_embd", "hidden_size")
    inner = config.size("n_inner", default=4 * hidden)
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    positions = config.size("n_positions", "max_position_embeddings")
    return _plain(config, "gpt2", layer=layer, inner=inner, positions=positions, activation="gelu")


def _plain(
    config: Config, model_type: str, *, layer: int, inner: int, positions: int, activation: Literal["gelu", "relu"]
) -> ModelShape:
    """Norms and products with biases, learned positions, one matrix into the inner width."""
    hidden, heads = config.size("hidden_size", "n_embd"), config.size("num_attention_heads", "n_head")
    vocab = config.size("vocab_size")
    layers = LayerShape(
        count=config.size("num_hidden_layers", "n_layer"),
        params=layer,
        active_params=layer,
        mlp_width=inner,
        largest_tensor=inner * hidden,
    )
    return ModelShape(
        model_type=model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=(layers,),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        value_dim=hidden // heads,
        kv_elements=2 * hidden,
        gated_mlp=False,
        activation=activation,
        embedding_params=(vocab + positions) * hidden,
        outer_params=2 * hidden,
        tied=config.flag("tie_word_embeddings", default=True),
        window=_window(config),
    )


def _window(config: Config) -> int | None:
    if config.values.get("max_position_embeddings") is None and config.values.get("n_positions") is None:
        return None
    return config.size("max_position_embeddings", "n_positions")
