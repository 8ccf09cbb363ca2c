"""Tiny Llama models with a word tokenizer, written to folders that transformers and vLLM load.

Two layers, grouped-query attention, heads of 32 (the smallest that vLLM's CPU attention has), a vocabulary of plain words.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>")
PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
WORDS = tuple(
    "yes no the and is in to of it you we they he she good bad red blue green cat dog bird fish house tree sun moon"
    " one two three four five six seven eight nine ten plus minus times equals what why how who where when please"
    " thanks sorry hello bye Human Assistant big small old new hot cold up down left right more less all none same other".split()
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<assistant> {% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}<{{ message['role'] }}> {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


LETTER_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>\n{{ message['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
"""Writes a line break behind each message, and no space of the message's own around it."""


def vocabulary(vocab_size: int = 128) -> list[str]:
    """`vocab_size` tokens: special ones, punctuation, digits, letters, words, then `word107`, `word108`, ..."""
    plain = [*SPECIAL_TOKENS, *".,?!:#=+-", *string.digits, *string.ascii_lowercase, *WORDS]
    plain += [f"word{i}" for i in range(len(plain), vocab_size)]
    assert len(set(plain)) == len(plain), "a token twice"
    assert vocab_size > len(SPECIAL_TOKENS)
    return plain[:vocab_size]


def make_tiny_tokenizer(folder: str | Path, *, vocab_size: int = 128) -> PreTrainedTokenizerFast:
    """One token per word, digit or punctuation mark; any other word is `<unk>`. Adds no special tokens by itself."""
    ids = {token: index for index, token in enumerate(vocabulary(vocab_size))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[.,?!:#=+-]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))
    return fast


def make_letter_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """One token per character, and other special tokens than those of `make_tiny_tokenizer`: nothing can be read by the other's ids."""
    special = ("<pad>", "<end>", "<unk>", "<system>", "<user>", "<assistant>")
    ids = {
        token: index
        for index, token in enumerate((*special, "\n", " ", *string.punctuation, *string.digits, *string.ascii_letters))
    }
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = LETTER_TEMPLATE
    fast.save_pretrained(str(folder))
    return fast


def tiny_config(*, tied: bool, vocab_size: int = 128, num_layers: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,  # far from uniform: with the usual 0.02 every distribution of so small a model is nearly flat
        tie_word_embeddings=tied,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def make_tiny_causal_lm(
    folder: str | Path, *, tied: bool, vocab_size: int = 128, seed: int = 0, num_layers: int = 2
) -> Path:
    """Writes a fp32 Llama for causal language modelling and its tokenizer into `folder`; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(tied=tied, vocab_size=vocab_size, num_layers=num_layers)).float()
    model.save_pretrained(str(folder))
    make_tiny_tokenizer(folder, vocab_size=vocab_size)
    return Path(folder)


def make_tiny_scalar(folder: str | Path, *, vocab_size: int = 128, seed: int = 0, num_layers: int = 2) -> Path:
    """Writes a fp32 Llama with one score (a reward model or critic, head not zero) and its tokenizer into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(tied=False, vocab_size=vocab_size, num_layers=num_layers)
        config.num_labels = 1
        model = LlamaForSequenceClassification(config).float()
    model.save_pretrained(str(folder))
    make_tiny_tokenizer(folder, vocab_size=vocab_size)
    return Path(folder)


def make_letter_scalar(folder: str | Path, *, seed: int = 0) -> Path:
    """As `make_tiny_scalar`, with the tokenizer of `make_letter_tokenizer`."""
    make_tiny_scalar(folder, seed=seed)
    make_letter_tokenizer(folder)
    return Path(folder)
