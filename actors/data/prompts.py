"""Prompts for PPO: rows of a file to token ids.

Legend: `N` prompts, `T` tokens of all prompts, flat.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.data.chats import check_messages
from actors.data.files import read_rows
from actors.data.hh import Message, parse_dialogue, plain_text
from actors.data.rows import Rows
from actors.data.tokenizer import BATCH, Tokenizer, encode_plain, encode_rendered, render_chat, require_chat_template
from actors.errors import UserError
from configs.schema.data import PromptDataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row, not yet tokenised."""

    id: str
    where: str
    """`file:line`"""
    content: str | list[Message]
    """Text or conversation, as the row has it."""
    columns: Mapping[str, Any]
    """The row's other columns."""

    @property
    def messages(self) -> list[Message]:
        """The conversation; plain text is one message of the user."""
        return [{"role": "user", "content": self.content}] if isinstance(self.content, str) else self.content


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """One prompt as the engines take it."""

    id: str
    text: str
    """What `prompt_text` gives."""
    token_ids: list[int]
    columns: Mapping[str, Any]
    """The row's other columns."""
    where: str = ""
    """`file:line`; empty for a prompt that stands in no file."""


class PromptDataset:
    """All prompts of a run, tokenised once: 4 bytes a token."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        token_ids: Sequence[Sequence[int]],
        *,
        fingerprint: str,
        num_dropped: int,
        num_held_out: int = 0,
    ) -> None:
        assert len(prompts) == len(token_ids)
        self.prompts = tuple(prompts)
        """[N] as the rows have them."""
        self._tokens = array("i")
        self._bounds = [0]
        for ids in token_ids:
            self._tokens.extend(ids)
            self._bounds.append(len(self._tokens))
        self.num_held_out = num_held_out
        """Prompts at the end that nothing is learned from."""
        self.num_dropped = num_dropped
        """Prompts left out for their length (`data.overlong: drop`)."""
        self.rows_fingerprint = fingerprint
        """sha256 of the file and the selection: of what is read by whoever has no tokenizer."""
        digest = hashlib.sha256(fingerprint.encode())
        digest.update(self._tokens)  # as they lie in memory: no copy
        self.fingerprint = digest.hexdigest()
        """sha256 of the file, the selection and every token: of what is read, and of how the tokenizer and its template wrote it."""

    @staticmethod
    def load(config: PromptDataConfig, tokenizer: Tokenizer) -> PromptDataset:
        """Reads, renders, tokenises and checks every prompt.

        Raises:
            UserError: for anything wrong with the file, a row or its conversation, with file and line; for a prompt that is too long
                where `data.overlong` is `error`, or where none is left to learn from or, of those to hold out, to evaluate on.
        """
        rows, prompts = _read(config)
        if config.held_out_rows >= len(prompts):
            raise UserError(
                f"data.held_out_rows: {config.held_out_rows} of the {len(prompts)} rows of {rows.paths} leaves none to learn from"
            )
        first_held_out = len(prompts) - config.held_out_rows
        if config.chat_template:
            require_chat_template(tokenizer, "data.chat_template")
        kept: list[Prompt] = []
        token_ids: list[list[int]] = []
        num_held_out = 0
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            for index, prompt, ids in zip(itertools.count(start), batch, _encode(batch, config, tokenizer)):
                if _fits(prompt, len(ids), config):
                    kept.append(prompt)
                    token_ids.append(ids)
                    num_held_out += index >= first_held_out
        for what, number, asked in (
            ("", len(kept) - num_held_out, first_held_out),
            ("held-out ", num_held_out, config.held_out_rows),
        ):
            if asked and not number:
                raise UserError(
                    f"data.max_prompt_tokens: all {asked} {what}prompts of {rows.paths} are longer than {config.max_prompt_tokens} tokens"
                )
        return PromptDataset(
            kept,
            token_ids,
            fingerprint=rows.fingerprint,
            num_dropped=len(prompts) - len(kept),
            num_held_out=num_held_out,
        )

    def __len__(self) -> int:
        """Held-out ones included."""
        return len(self.prompts)

    @property
    def num_train(self) -> int:
        """Prompts to learn from; they come first."""
        return len(self) - self.num_held_out

    def row(self, index: int) -> PromptRow:
        """Prompt `index` of the dataset (of those kept)."""
        prompt = self.prompts[index]
        return PromptRow(
            id=prompt.id,
            text=prompt_text(prompt),
            token_ids=self._tokens[self._bounds[index] : self._bounds[index + 1]].tolist(),
            columns=prompt.columns,
            where=prompt.where,
        )

    @property
    def lengths(self) -> list[int]:
        """[N] tokens of each prompt."""
        return [after - before for before, after in itertools.pairwise(self._bounds)]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(self.lengths)


def read_prompts(config: PromptDataConfig) -> tuple[str, list[Prompt]]:
    """Every prompt of the file, also those that are too long: text and columns alone, without a tokenizer. With the rows' fingerprint.

    Raises:
        UserError: for anything wrong with the file or a row, with file and line.
    """
    rows, prompts = _read(config)
    return rows.fingerprint, prompts


def prompt_text(prompt: Prompt) -> str:
    """What a reward function is given as the prompt: the row's text; of a conversation its turns as hh-rlhf writes them.

    Free of the model's template, so that a function means the same for every model. Roles other than user and assistant keep their name.
    """
    return prompt.content if isinstance(prompt.content, str) else plain_text(prompt.content)


def _read(config: PromptDataConfig) -> tuple[Rows, list[Prompt]]:
    rows = read_rows(config)
    prompts = [_parse(rows, index, config) for index in range(len(rows))]
    first: dict[str, str] = {}
    for prompt in prompts:
        if first.setdefault(prompt.id, prompt.where) != prompt.where:
            raise UserError(
                f"{prompt.where}: id {prompt.id!r} (data.id_column) is already that of {first[prompt.id]}; ids must differ"
            )
    return rows, prompts


def _parse(rows: Rows, index: int, config: PromptDataConfig) -> Prompt:
    where = rows.where(index)
    row = rows[index]
    content: str | list[Message]
    if config.format == "hh-rlhf":
        column = "chosen"
        content = parse_dialogue(rows.value(index, column, str, key="data.format: hh-rlhf"), where)[:-1]
    else:
        column = config.prompt_column
        value = rows.value(index, column, (str, list), key="data.prompt_column")
        content = value if isinstance(value, str) else check_messages(value, f"{where}: column {column!r}")
        if not value:
            raise UserError(f"{where}: column {column!r} is empty")
        if not isinstance(content, str) and content[-1]["role"] == "assistant":
            raise UserError(
                f"{where}: column {column!r} must end before the answer, its last message is the assistant's"
            )
        if not isinstance(content, str) and not config.chat_template:
            raise UserError(f"{where}: column {column!r} has chat messages, which need data.chat_template: true")
    if config.id_column is None:
        identifier = rows.row_id(index)
    else:
        identifier = str(rows.value(index, config.id_column, (str, int), key="data.id_column"))
    others = {name: value for name, value in row.items() if name != column}
    return Prompt(id=identifier, where=where, content=content, columns=others)


def _encode(batch: Sequence[Prompt], config: PromptDataConfig, tokenizer: Tokenizer) -> list[list[int]]:
    if config.chat_template:
        texts = [render_chat(tokenizer, prompt.messages, where=prompt.where, open_answer=True) for prompt in batch]
        return encode_rendered(tokenizer, texts)
    return encode_plain(tokenizer, [prompt_text(prompt) for prompt in batch])


def _fits(prompt: Prompt, num_tokens: int, config: PromptDataConfig) -> bool:
    if num_tokens == 0:
        raise UserError(f"{prompt.where}: the prompt has no token")
    if num_tokens <= config.max_prompt_tokens:
        return True
    if config.overlong == "drop":
        return False
    raise UserError(
        f"{prompt.where}: the prompt has {num_tokens} tokens, allowed are data.max_prompt_tokens: {config.max_prompt_tokens}. "
        "Raise it, or leave such prompts out with data.overlong: drop"
    )
