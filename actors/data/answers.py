"""A prompt and one answer to it: as text, and as the tokens that a reward model reads, in training as in PPO.

Legend: `B` trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.data.chats import Text, as_messages, ended, render_answer
from actors.data.hh import plain_text
from actors.data.tokenizer import Tokenizer, encode_plain, encode_rendered

if TYPE_CHECKING:
    from actors.algorithms.records import Trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prompt and one answer to it, not yet tokenised. Both are texts, or both messages for a chat template."""

    where: str
    """`file:line: column`"""
    prompt: Text
    """Text, or the conversation before the answer."""
    answer: Text
    """Text, or the turns from the assistant's on; the last one is the assistant's."""
    cut_off: bool = False
    """It did not end, so it gets no end token, nor what a template writes behind a message."""


def answer_to(prompt: Text, response: str, *, where: str, chat_template: bool, cut_off: bool = False) -> Answer:
    """The text `response` as the answer to `prompt`, for a chat template or without one.

    Space around a message belongs to the template that it was written in, so it is left out where the answer is a message. Without a
    template a conversation is written as hh-rlhf does, and the answer to a text follows it as it is.
    """
    if chat_template:
        return Answer(
            where=where,
            prompt=as_messages(prompt, "user"),
            answer=as_messages(response.strip(), "assistant"),
            cut_off=cut_off,
        )
    if isinstance(prompt, str):
        return Answer(where=where, prompt=prompt, answer=response, cut_off=cut_off)
    return Answer(where=where, prompt=plain_text(prompt), answer=f" {response.strip()}", cut_off=cut_off)


def encode_answers(
    answers: Sequence[Answer], tokenizer: Tokenizer, *, chat_template: bool
) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of each in token ids, tokenised apart: in PPO too the answer starts a token of its own.

    An answer ends with the end token, as a sampled one does, and with none where it was cut off.

    Raises:
        UserError: with the answer's `where`, for a conversation that the template refuses.
    """
    if not chat_template:
        prompts = encode_plain(tokenizer, [_plain(answer.prompt) for answer in answers])
        texts = encode_rendered(tokenizer, [_plain(answer.answer) for answer in answers])
    else:
        rendered = [_rendered(answer, tokenizer) for answer in answers]
        prompts = encode_rendered(tokenizer, [prompt for prompt, _ in rendered])
        texts = encode_rendered(tokenizer, [text for _, text in rendered])
    return [
        (prompt, text if answer.cut_off else ended(text, tokenizer))
        for answer, prompt, text in zip(answers, prompts, texts, strict=True)
    ]


def response_texts(trajectories: Trajectories, indices: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """What the policy wrote in the trajectories `indices`, by its own tokenizer, special tokens left out."""
    bounds, texts = trajectories.cu_lengths.tolist(), []
    for i in indices:
        chosen = trajectories.loss_mask[bounds[i] : bounds[i + 1]]
        tokens = trajectories.tokens[bounds[i] : bounds[i + 1]][chosen]
        texts.append(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))
    return texts


def _plain(text: Text) -> str:
    assert isinstance(text, str), text
    return text


def _rendered(answer: Answer, tokenizer: Tokenizer) -> tuple[str, str]:
    assert isinstance(answer.prompt, list) and isinstance(answer.answer, list), answer
    return render_answer(answer.prompt, answer.answer, tokenizer, where=answer.where, cut_off=answer.cut_off)
