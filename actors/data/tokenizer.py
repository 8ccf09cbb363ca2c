"""Tokenizers: loaded with the checks that training needs, and compared.

Records are flat and never padded, so a padding token is not needed, and the end token can serve as one without being masked away
at the end of an answer.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from actors.errors import UserError
from actors.models.checks import name_for_libraries

Tokenizer = Any
"""A transformers tokenizer, which has no types worth the import."""

BATCH = 1024
"""Rows rendered and tokenised at once."""


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a model's folder or hub name.

    Raises:
        UserError: where there is none, or none that says how an answer ends.
    """
    from transformers import AutoTokenizer

    name = name_for_libraries(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model {model!r}: cannot load its tokenizer: {first_line}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"model {model!r}: its tokenizer has no tokenizer.json (a slow one: {type(tokenizer).__name__})"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model {model!r}: its tokenizer has no end token (`eos_token` in tokenizer_config.json), so no answer could end"
        )
    return tokenizer


def end_token_ids(model: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every token that ends an answer, ascending: the tokenizer's own and those of the model's generation config."""
    from transformers import GenerationConfig

    ids = {int(tokenizer.eos_token_id)}
    try:
        extra = GenerationConfig.from_pretrained(name_for_libraries(model)).eos_token_id
    except OSError:  # a model need not have a generation config
        extra = None
    if extra is not None:
        ids.update([extra] if isinstance(extra, int) else extra)
    return tuple(sorted(ids))


def require_chat_template(tokenizer: Tokenizer, where: str, *, key: str = "data.chat_template") -> None:
    """UserError, naming `where`, the key or row that needs it, unless the tokenizer has a chat template. `key` turns templates off."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{where}: the tokenizer of {tokenizer.name_or_path!r} has no chat template. Use an instruct model, "
            f"or set {key}: false for plain text"
        )


def render_chat(
    tokenizer: Tokenizer, messages: Any, *, where: str, open_answer: bool = False, cut_off: bool = False
) -> str:
    """The conversation as the model reads it; `open_answer` ends it where the assistant's answer starts, `cut_off` with the last message's
    text, without what the template writes behind a message.

    Raises:
        UserError: with `where`, for a conversation that the template refuses.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_answer, continue_final_message=cut_off
        )
    except (TemplateError, ValueError) as error:  # ValueError: the template does not write the message that was cut off
        raise UserError(f"{where}: the model's chat template refuses this conversation: {error}") from error


def encode_rendered(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of texts that already hold their special tokens, as chat templates write them."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def encode_plain(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of plain texts, each behind the tokenizer's start tokens. An end token that it would add is left to the answer."""
    prefix = start_token_ids(tokenizer)
    return [[*prefix, *ids] for ids in encode_rendered(tokenizer, texts)]


def start_token_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text: usually nothing, or the start token."""
    ids = tokenizer("")["input_ids"]
    if ids and ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids = ids[:-1]
    return list(ids)


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 of what makes text into ids: vocabulary, merges, normaliser, pre-tokeniser, start and end token.

    Not of the padding token, which never occurs, nor of the chat template, which writes text and not ids.
    """
    digest = hashlib.sha256()
    for _, part in _parts(tokenizer):
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return digest.hexdigest()


def same_tokenizer(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether ids of one can be read by a model of the other."""
    return fingerprint(a) == fingerprint(b)


def difference(a: Tokenizer, b: Tokenizer) -> str | None:
    """The first way in which two tokenizers differ, for an error message; None where they are the same."""
    for (name, part), (_, other) in zip(_parts(a), _parts(b), strict=True):
        if part == other:
            continue
        if name != "vocabulary":
            return f"{name}: {_short(part)} and {_short(other)}"
        if len(part) != len(other):
            return f"{len(part)} and {len(other)} tokens"
        token_id, token, other_token = next((i, x, y) for (x, i), (y, _) in zip(part, other, strict=True) if x != y)
        return f"token {token_id} is {token!r} and {other_token!r}"
    return None


def _parts(tokenizer: Tokenizer) -> list[tuple[str, Any]]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return [
        ("vocabulary", sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))),
        ("start token", tokenizer.bos_token),
        ("end token", tokenizer.eos_token),
        (
            "merges",
            [merge.split(" ") if isinstance(merge, str) else merge for merge in backend["model"].get("merges") or []],
        ),
        ("normaliser", backend["normalizer"]),
        ("pre-tokeniser", backend["pre_tokenizer"]),
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
