"""Writes the inputs of configs/recipes/demo.yaml: a language model that knows nothing yet, and what the grammar of examples/demo yields.

python -m tools.make_demo OUT [--seed N]     the same seed, the same bytes

OUT/model             a Llama of three layers with random weights, whose tokens are the grammar's words
OUT/documents.jsonl   what it is pretrained on
OUT/chats.jsonl       what it is fine-tuned on: questions, and what careless people answered
OUT/prompts.jsonl     questions for rankings and PPO, each with the name of the annotator who will rank; the last 128 stand in no
                      other file: nothing is learned from them
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.demo.grammar import answer, document, questions, vocabulary
from tools.make_tiny_model import SPECIAL, make_model, make_tokenizer

ROLES = ("<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant> {{ message['content'] }} {{ eos_token }}"
    "{% else %}<user> {{ message['content'] }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
MAX_TOKENS = 128
NUM_DOCUMENTS, NUM_CHATS, NUM_PROMPTS, NUM_HELD_OUT, NUM_ANNOTATORS = 4000, 4000, 1024, 128, 5


def make_data(out: Path, seed: int) -> None:
    """The three files."""
    rng = random.Random(seed)
    asked = list(questions())
    rng.shuffle(asked)
    held_out, known = asked[:NUM_HELD_OUT], asked[NUM_HELD_OUT:]
    _write(out / "documents.jsonl", ({"text": document(rng)} for _ in range(NUM_DOCUMENTS)))
    _write(out / "chats.jsonl", (_chat(rng, *rng.choice(known)) for _ in range(NUM_CHATS)))
    _write(
        out / "prompts.jsonl",
        (
            {
                "id": f"prompt-{n}",
                "prompt": question,
                "annotator": f"seed {seed}, person {rng.randrange(NUM_ANNOTATORS)}",
            }
            for n, (question, _) in enumerate((*known[:NUM_PROMPTS], *held_out))
        ),
    )


def _chat(rng: random.Random, question: str, asks: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer(rng, *asks)}]}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    arguments = parser.parse_args()
    folder = arguments.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    make_model(
        folder,
        vocab_size=len(SPECIAL) + len(ROLES) + len(words),
        max_tokens=MAX_TOKENS,
        hidden_size=128,
        num_layers=3,
        weight_std=0.08,  # with the usual 0.02 so narrow a model needs many times the steps to learn facts
        seed=arguments.seed,
    )
    make_tokenizer(folder, words, max_tokens=MAX_TOKENS, roles=ROLES, chat_template=CHAT_TEMPLATE)
    make_data(arguments.out, arguments.seed)
    sys.stdout.write(f"wrote the demo's model and data to {arguments.out}\n")


if __name__ == "__main__":
    main()
