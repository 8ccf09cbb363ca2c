"""Writes a tiny language model that knows nothing yet, and prompts for it: the inputs of configs/recipes/bandit.yaml.

    python tools/make_tiny_model.py OUT      makes OUT/model (a Llama of two layers, 150 kB) and OUT/prompts.jsonl

The model's weights are random and small, so that at first all of its words are about equally likely.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = (
    "yes no maybe is the a cat dog bird fish horse mouse red blue green black white brown big small old young fast slow"
    " hungry happy tired here there near far today now never always often good bad warm cold ? . ,"
).split()
MAX_TOKENS = 64


def make_tokenizer(
    folder: Path, words: Sequence[str], *, max_tokens: int, roles: Sequence[str] = (), chat_template: str | None = None
) -> None:
    """One token for each word. `roles` are further special tokens, for the chat template."""
    ids = {token: index for index, token in enumerate((*SPECIAL, *roles, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_tokens, additional_special_tokens=list(roles), **named
    )
    fast.chat_template = chat_template
    fast.save_pretrained(str(folder))


def make_model(
    folder: Path,
    *,
    vocab_size: int,
    max_tokens: int,
    hidden_size: int,
    num_layers: int,
    weight_std: float,
    seed: int,
) -> None:
    """A Llama of random weights of deviation `weight_std`. Heads of 32 are the smallest that vLLM computes on CPU."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3 // 2,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 64,
        head_dim=32,
        max_position_embeddings=max_tokens,
        initializer_range=weight_std,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).float().save_pretrained(str(folder))


def make_prompts(file: Path) -> None:
    """64 questions."""
    colours, animals = "red blue green black white brown big small".split(), "cat dog bird fish horse mouse".split()
    states = ("hungry", "happy")
    rows = [
        f"is the {colour} {animal} {state} ?" for colour, animal, state in itertools.product(colours, animals, states)
    ]
    file.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows[:64]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    arguments = parser.parse_args()
    folder = arguments.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    make_model(
        folder,
        vocab_size=len(SPECIAL) + len(WORDS),
        max_tokens=MAX_TOKENS,
        hidden_size=64,
        num_layers=2,
        weight_std=0.02,
        seed=arguments.seed,
    )
    make_tokenizer(folder, WORDS, max_tokens=MAX_TOKENS)
    make_prompts(arguments.out / "prompts.jsonl")
    sys.stdout.write(f"wrote {folder} and {arguments.out / 'prompts.jsonl'}\n")


if __name__ == "__main__":
    main()
