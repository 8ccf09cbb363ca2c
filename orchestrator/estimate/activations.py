"""What a forward pass holds for its backward pass: tensors that PyTorch's autograd saves in transformers' layers, counted one by one.

Legend: `T` tokens of a micro-batch, `H` hidden size, `d` bytes of the compute type, `V` vocabulary, `C` tokens of a chunk of logits.

| of a layer, per token | bytes |
| --- | --- |
| an RMS norm over x numbers: input in fp32, normalised, result | x (4 + 2 d) in bf16, 3 x d in fp32 |
| a layer norm (OPT, GPT-2), one kernel: input, result | 2 x d |
| attention: queries, keys, values as read, its result, the same transposed | d each; `sdpa` repeats keys and values to all heads |
| gated MLP: gate, its activation, up, their product; plain MLP: before and after the activation | d each |
| a mixture: the inputs and weighted results of each chosen expert on top | 2 H d each |

`sdpa` on packed sequences also keeps its mask as T x T numbers of type `d` in each layer, `eager` its probabilities of each head.
"""

from __future__ import annotations

from configs.schema.engine import EngineConfig
from orchestrator.estimate.shapes import LayerShape, ModelShape

BYTES = {"fp32": 4, "bf16": 2}


def layer_bytes(shape: ModelShape, layer: LayerShape, engine: EngineConfig, tokens: int) -> float:
    """What one layer saves of a micro-batch of `tokens`."""
    d = BYTES[engine.dtype]
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    values, repeated = shape.num_heads * shape.value_dim, shape.num_kv_heads * shape.value_dim
    if engine.attention != "flash_attention_2":
        keys, repeated = queries, values
    norms = 2 * shape.hidden_size * norm_bytes(shape, engine)
    if shape.model_type.startswith(("qwen3", "gemma3")):  # norms of queries and keys
        norms += (queries + shape.num_kv_heads * shape.head_dim) * norm_bytes(shape, engine)
    if shape.model_type in ("gemma2", "gemma3_text"):  # norms behind attention and MLP too
        norms += 2 * shape.hidden_size * norm_bytes(shape, engine)
    attention = d * (queries + keys + repeated + 2 * values)
    mlp = d * (4 if shape.gated_mlp else 2) * layer.mlp_width + 2 * d * layer.experts_per_token * shape.hidden_size
    return tokens * (norms + attention + mlp) + mask_bytes(shape, engine, tokens)


def norm_bytes(shape: ModelShape, engine: EngineConfig) -> int:
    """Per number that is normalised."""
    if not shape.gated_mlp:
        return 2 * BYTES[engine.dtype]
    return 12 if engine.dtype == "fp32" else 8


def mask_bytes(shape: ModelShape, engine: EngineConfig, tokens: int) -> float:
    """What attention to packed sequences keeps in one layer beside the above."""
    d = BYTES[engine.dtype]
    if engine.attention == "sdpa":
        return tokens * tokens * d
    if engine.attention == "eager":
        return tokens * tokens * shape.num_heads * (4 + d if engine.dtype == "bf16" else 4)
    return 0


def saved_bytes(shape: ModelShape, engine: EngineConfig, tokens: int) -> float:
    """What all layers save until the backward pass; with checkpointing the input of each layer, and one layer whole."""
    d = BYTES[engine.dtype]
    outer = tokens * shape.hidden_size * (d + norm_bytes(shape, engine))  # embeddings, last norm
    if engine.activation_checkpointing:
        inputs = shape.num_layers * tokens * shape.hidden_size * d
        return inputs + outer + largest_layer_bytes(shape, engine, tokens)
    return outer + sum(layer.count * layer_bytes(shape, layer, engine, tokens) for layer in shape.layers)


def largest_layer_bytes(shape: ModelShape, engine: EngineConfig, tokens: int) -> float:
    return max(layer_bytes(shape, layer, engine, tokens) for layer in shape.layers)


def passing_bytes(shape: ModelShape, engine: EngineConfig, tokens: int) -> float:
    """What a forward without gradients holds at its worst: the stream, the widest place of an MLP or attention, one mask."""
    d = BYTES[engine.dtype]
    width = max(layer.mlp_width + layer.experts_per_token * shape.hidden_size for layer in shape.layers)
    attention = shape.num_heads * (3 * shape.head_dim + shape.value_dim)
    return d * tokens * (2 * shape.hidden_size + max(3 * width, attention)) + mask_bytes(shape, engine, tokens)


def logits_bytes(shape: ModelShape, engine: EngineConfig, tokens: int, *, backward: bool) -> float:
    """Of one chunk, C x V x 4 twice: logits and log-probabilities. In bf16 the backward has the gradient in bf16 too, C x V x 2. The
    backward adds up the head's gradient in fp32, V x H x 4, and in bf16 turns it to bf16 with one product beside it, V x H x 2 twice."""
    chunk = min(engine.logits_chunk_tokens, tokens) * shape.vocab_size
    if not backward:
        return 8 * chunk
    head = shape.vocab_size * shape.hidden_size
    return 8 * chunk + 4 * head if engine.dtype == "fp32" else 10 * chunk + 8 * head
