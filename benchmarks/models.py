"""Models and prompts for benchmarks, so that nothing has to be fetched: a small Llama with random weights, and words to ask it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCAB_SIZE = 32_000


def make_small_model(
    folder: Path, *, vocab_size: int = VOCAB_SIZE, hidden_size: int = 256, num_layers: int = 4
) -> Path:
    """A fp32 Llama with tied head and its tokenizer: 11 million parameters as it comes. The same weights each time."""
    if (folder / "config.json").exists():
        return folder
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=max(1, hidden_size // 128),
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).float().save_pretrained(folder)
    words = [*SPECIAL_TOKENS, *(f"w{number}" for number in range(len(SPECIAL_TOKENS), vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def make_scorer(folder: Path, model: Path) -> Path:
    """A reward model of the same architecture with a random head, fp32: it costs what a trained one costs."""
    if (folder / "config.json").exists():
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        scorer = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    scorer.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def write_prompts(path: Path, model: Path, *, num_prompts: int, max_tokens: int, seed: int = 0) -> Path:
    """Plain-text prompts of random words of the model's own vocabulary, at most `max_tokens` each, at least half of that where the
    tokenizer reads its own words back one for one."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    chance = random.Random(seed)
    words = [tokenizer.decode([token]) for token in chance.sample(range(len(tokenizer)), min(4096, len(tokenizer)))]
    words = [word.strip() for word in words if word.strip().isalnum() and word.isascii()]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_prompts):
            chosen = chance.choices(words, k=chance.randint(max_tokens // 2, max_tokens))
            while len(tokenizer(" ".join(chosen))["input_ids"]) > max_tokens:
                chosen.pop()
            file.write(json.dumps({"prompt": " ".join(chosen)}) + "\n")
    return path
