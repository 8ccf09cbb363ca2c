"""Conversations: messages of a row, and the text of an answer within what the chat template writes.

Prompt and answer are rendered and tokenised apart, since in PPO too the answer starts a token of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.data.hh import Message
from actors.data.rows import shown
from actors.data.tokenizer import Tokenizer, render_chat
from actors.errors import UserError

Text = str | list[Message]
"""Plain text, or chat messages."""


def check_messages(value: Sequence[Any], where: str) -> list[Message]:
    """`value` as chat messages.

    Raises:
        UserError: with `where`, for an empty list or an element that is not an object with the texts `role` and `content`.
    """
    if not value:
        raise UserError(f"{where} is empty")
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise UserError(f"{where}: message {number} must be an object with role and content, got {shown(message)}")
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise UserError(f"{where}: message {number}: {name!r} must be text, got {shown(message.get(name))}")
        if message.get("tool_calls"):
            # left out, they would train an answer that nobody gave
            raise UserError(f"{where}: message {number}: 'tool_calls' are not supported, allowed are role and content")
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def check_text(value: str | Sequence[Any], where: str) -> Text:
    """`value` as text or as chat messages; raises as `check_messages` does."""
    return value if isinstance(value, str) else check_messages(value, where)


def as_messages(text: Text, role: str) -> list[Message]:
    """The messages; plain text is one message of `role`."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def render_answer(
    prompt: list[Message], answer: list[Message], tokenizer: Tokenizer, *, where: str, cut_off: bool = False
) -> tuple[str, str]:
    """The conversation up to where the answer starts, and the rest of it, as the chat template writes them; of an answer that was `cut_off`
    no more than its text.

    Raises:
        UserError: with `where`, where the template refuses the conversation, or writes the prompt otherwise once an answer follows.
    """
    given = render_chat(tokenizer, prompt, where=where, open_answer=True)
    if cut_off and not answer[-1]["content"]:
        return given, ""
    whole = render_chat(tokenizer, [*prompt, *answer], where=where, cut_off=cut_off)
    if not whole.startswith(given):
        raise UserError(
            f"{where}: the model's chat template writes another beginning once the answer is there "
            f"({given[-40:]!r} against {whole[max(0, len(given) - 40) : len(given)]!r}), so prompt and answer cannot be told apart"
        )
    return given, whole[len(given) :]


def split_behind_end(answer: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """The answer up to its end token, and the space that many templates write behind it. All of the answer, where it does not end so."""
    before, end, behind = answer.rpartition(tokenizer.eos_token)
    return (before + end, behind) if end and not behind.strip() else (answer, "")


def ended(answer: list[int], tokenizer: Tokenizer) -> list[int]:
    """The answer up to its end token, where it is followed by space alone (many templates write a line break behind it); else with one.

    A sampled answer ends so too. An end token that is also the padding token is a token like any other here.
    """
    end = tokenizer.eos_token_id
    if end in answer:
        last = len(answer) - 1 - answer[::-1].index(end)
        if not tokenizer.decode(answer[last + 1 :]).strip():
            return answer[: last + 1]
    return [*answer, end]
