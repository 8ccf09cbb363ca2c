"""Conversations for supervised fine-tuning: rows to pieces of text that are learned or not, and to tokens with a loss mask.

Each turn of the assistant is found by rendering: the conversation before it with the answer left open, and again with the answer. What
the second has more is the turn. So no template has to mark it, and one that would show the model other text than it is trained on is told.

Legend: `T` tokens of one conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from actors.data.chats import Text, as_messages, check_messages, check_text, ended, render_answer, split_behind_end
from actors.data.hh import Message
from actors.data.rows import Rows
from actors.data.tokenizer import BATCH, Tokenizer, encode_rendered, start_token_ids
from actors.errors import UserError
from configs.schema.data import ConversationDataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a conversation's text, tokenised by itself."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One row, not yet tokenised. Its last piece is learned: what stands behind it could teach nothing."""

    where: str
    """`file:line`"""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedConversation:
    """One row in tokens, whole."""

    where: str
    token_ids: list[int]
    """[T]"""
    loss_mask: list[bool]
    """[T] token t is the assistant's or its end token. Never the first, which nothing stands before."""
    last_answer: int
    """Index of the last turn's first token."""


def encode_conversations(
    rows: Rows, config: ConversationDataConfig, tokenizer: Tokenizer
) -> Iterator[EncodedConversation]:
    """Every row, in order, whatever its length.

    Raises:
        UserError: with file and line, for a row that does not fit the format, has nothing to learn, or that the template refuses.
    """
    start = [] if config.chat_template else start_token_ids(tokenizer)
    for first in range(0, len(rows), BATCH):
        batch = [parse_conversation(rows, i, config, tokenizer) for i in range(first, min(first + BATCH, len(rows)))]
        ids = iter(encode_rendered(tokenizer, [piece.text for row in batch for piece in row.pieces]))
        for row in batch:
            yield _joined(row, [next(ids) for _ in row.pieces], start, tokenizer)


def parse_conversation(rows: Rows, index: int, config: ConversationDataConfig, tokenizer: Tokenizer) -> Conversation:
    """Row `index` as pieces of text; raises as `encode_conversations` does."""
    where = rows.where(index)
    if config.format == "conversation":
        value = rows.value(index, "messages", list, key="data.format: conversation")
        messages = check_messages(value, f"{where}: column 'messages'")
        pieces = _learned_turns(messages, 0, f"{where}: column 'messages'", tokenizer)
        return Conversation(where=where, pieces=pieces)
    prompt, completion = (_text(rows, index, column) for column in ("prompt", "completion"))
    if not prompt:
        raise UserError(f"{where}: column 'prompt' is empty")
    if config.chat_template:
        before = as_messages(prompt, "user")
        messages = [*before, *as_messages(completion, "assistant")]
        pieces = _learned_turns(messages, len(before), f"{where}: column 'completion'", tokenizer)
    elif isinstance(prompt, str) and isinstance(completion, str):
        pieces = (Piece(text=prompt, learned=False), Piece(text=completion, learned=True))
    else:
        raise UserError(f"{where}: chat messages need data.chat_template: true")
    return Conversation(where=where, pieces=pieces)


def _text(rows: Rows, index: int, column: str) -> Text:
    value: str | Sequence[Any] = rows.value(index, column, (str, list), key="data.format: prompt-completion")
    return check_text(value, f"{rows.where(index)}: column {column!r}")


def _learned_turns(messages: list[Message], first_learned: int, where: str, tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """The text up to the end of the last turn of the assistant; its turns from message `first_learned` on are learned.

    A turn within the conversation ends as the template writes it; only behind the last one an end token is added where there is none.
    """
    turns = [i for i in range(first_learned, len(messages)) if messages[i]["role"] == "assistant"]
    if not turns:
        raise UserError(f"{where} has no message of the assistant, so there is nothing to learn")
    if turns[0] == 0:
        raise UserError(f"{where}: the first message must not be the assistant's, as it answers nothing")
    pieces: list[Piece] = []
    rendered = ""
    for turn in turns:
        given, answer = render_answer(messages[:turn], [messages[turn]], tokenizer, where=where)
        if not given.startswith(rendered):
            raise UserError(
                f"{where}: the model's chat template writes an earlier turn of the assistant otherwise once message {turn} follows, "
                "so the turns can't be learned from one text. Give each turn a row of its own, with data.format: prompt-completion"
            )
        answer, _ = split_behind_end(answer, tokenizer)
        pieces += [Piece(text=given[len(rendered) :], learned=False), Piece(text=answer, learned=True)]
        rendered = given + answer
    return tuple(pieces)


def _joined(
    row: Conversation, ids: Sequence[list[int]], start: Sequence[int], tokenizer: Tokenizer
) -> EncodedConversation:
    token_ids, loss_mask = list(start), [False] * len(start)
    for piece, of_piece in zip(row.pieces[:-1], ids[:-1], strict=True):
        token_ids += of_piece
        loss_mask += [piece.learned] * len(of_piece)
    last_answer = ended(ids[-1], tokenizer)
    token_ids += last_answer
    loss_mask += [True] * len(last_answer)
    loss_mask[0] = False
    if not any(loss_mask):
        raise UserError(f"{row.where}: nothing stands before the answer's only token, so there is nothing to learn")
    return EncodedConversation(
        where=row.where,
        token_ids=token_ids,
        loss_mask=loss_mask,
        last_answer=len(token_ids) - len(last_answer),
    )
