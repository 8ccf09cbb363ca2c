"""Dialogues as hh-rlhf writes them."""

import pytest

from actors.data.hh import parse_dialogue, plain_text
from actors.errors import UserError

TWO_TURNS = "\n\nHuman: what is red\n\nAssistant: the sun\n\nHuman: why\n\nAssistant: it is hot"


def test_turns_become_messages() -> None:
    assert parse_dialogue(TWO_TURNS, "here") == [
        {"role": "user", "content": "what is red"},
        {"role": "assistant", "content": "the sun"},
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "it is hot"},
    ]


def test_line_breaks_and_names_within_a_turn_stay() -> None:
    text = "\n\nHuman: one\n\ntwo\nAssistant: is no turn here\n\nAssistant: Human: nor here"
    assert parse_dialogue(text, "here") == [
        {"role": "user", "content": "one\n\ntwo\nAssistant: is no turn here"},
        {"role": "assistant", "content": "Human: nor here"},
    ]


def test_a_speaker_twice_in_a_row_is_one_turn() -> None:
    text = "\n\nHuman: hello\n\nHuman: who\n\nAssistant: we\n\nAssistant:\n\nAssistant: you"
    assert parse_dialogue(text, "here") == [
        {"role": "user", "content": "hello\n\nwho"},
        {"role": "assistant", "content": "we\n\nyou"},
    ]


def test_an_empty_answer_is_an_answer() -> None:
    assert parse_dialogue("\n\nHuman: hello\n\nAssistant:", "here")[-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    "text", ["", "Human: hello\n\nAssistant: bye", "\n\nAssistant: hello", "\nHuman: hello", "hello"]
)
def test_another_beginning_is_told(text: str) -> None:
    with pytest.raises(UserError) as told:
        parse_dialogue(text, "file:3")
    assert str(told.value) == f"file:3: a dialogue must start with '\\n\\nHuman:', got {text!r}"


def test_an_end_without_an_answer_is_told() -> None:
    with pytest.raises(UserError, match=r"file:3: a dialogue must end with an answer .*, it ends with '.*Human: why'"):
        parse_dialogue("\n\nHuman: what is hot\n\nAssistant: hot\n\nHuman: why", "file:3")


def test_plain_text_writes_what_was_read() -> None:
    messages = parse_dialogue(TWO_TURNS, "here")
    assert plain_text(messages) == TWO_TURNS
    assert plain_text(messages[:-1]) == TWO_TURNS.removesuffix(" it is hot")


def test_plain_text_names_other_roles() -> None:
    assert (
        plain_text([{"role": "system", "content": "thanks"}, {"role": "user", "content": "hello"}])
        == "\n\nsystem: thanks\n\nHuman: hello\n\nAssistant:"
    )
