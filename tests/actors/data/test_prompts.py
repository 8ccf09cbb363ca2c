"""Prompts: rows to text and tokens, and what a user is told of bad ones."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from actors.data import prompts as module
from actors.data.prompts import PromptDataset, prompt_text, read_prompts
from actors.data.tokenizer import Tokenizer, load_tokenizer
from actors.errors import UserError
from configs.schema.data import PromptDataConfig
from tests.tiny_models import BOS_ID, EOS_ID

Write = Callable[[list[dict[str, Any]]], str]

CHAT = [
    {"role": "system", "content": "you good"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "bye"},
    {"role": "user", "content": "why ?"},
]
DIALOGUE = "\n\nHuman: what is red\n\nAssistant: the sun\n\nHuman: why\n\nAssistant: it is hot"


def load(path: str, tokenizer: Tokenizer, **config: Any) -> PromptDataset:
    return PromptDataset.load(PromptDataConfig(path=path, **config), tokenizer)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token by token, as one writes it down: words and special tokens apart by spaces."""
    return [tokenizer.convert_tokens_to_ids(word) for word in text.split()]


def test_text_becomes_one_message_of_the_user(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": "red cat", "answer": 5, "more": [1]}])
    row = load(path, tokenizer).row(0)
    assert row.id == "0"
    assert row.text == "red cat"
    assert row.token_ids == ids(tokenizer, "<bos> <user> red cat <eos> <assistant>")
    assert row.columns == {"answer": 5, "more": [1]}


def test_plain_text_has_no_template(write_rows: Write, tokenizer: Tokenizer) -> None:
    row = load(write_rows([{"prompt": "red cat"}]), tokenizer, chat_template=False).row(0)
    assert row.token_ids == ids(tokenizer, "red cat")


def test_plain_text_needs_no_chat_template(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = None
    path = write_rows([{"prompt": "red cat"}])
    assert len(load(path, tokenizer, chat_template=False)) == 1
    with pytest.raises(UserError, match=r"data\.chat_template: .* has no chat template"):
        load(path, tokenizer)


def test_held_out_prompts_are_the_last_ones(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": text} for text in ("red cat", "red", "blue", "red cat red cat", "green")])
    dataset = load(path, tokenizer, held_out_rows=2)
    assert (dataset.num_train, dataset.num_held_out, len(dataset)) == (3, 2, 5)
    assert [dataset.row(index).text for index in range(3, 5)] == ["red cat red cat", "green"]
    # one of them is too long
    shorter = load(path, tokenizer, held_out_rows=2, max_prompt_tokens=7, overlong="drop")
    assert (shorter.num_train, shorter.num_held_out, shorter.num_dropped) == (3, 1, 1)


def test_some_prompts_are_left_to_learn_from_and_some_to_evaluate_on(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": "red"}, {"prompt": "red cat red cat"}])
    with pytest.raises(UserError, match=r"data\.held_out_rows: 2 of the 2 rows of .* leaves none to learn from"):
        load(path, tokenizer, held_out_rows=2)
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens: all 1 held-out prompts of .* are longer than 7"):
        load(path, tokenizer, held_out_rows=1, max_prompt_tokens=7, overlong="drop")


def test_messages(write_rows: Write, tokenizer: Tokenizer) -> None:
    row = load(write_rows([{"turns": CHAT, "prompt": "x"}]), tokenizer, prompt_column="turns").row(0)
    assert row.token_ids == ids(
        tokenizer,
        "<bos> <system> you good <eos> <user> hello <eos> <assistant> bye <eos> <user> why ? <eos> <assistant>",
    )
    assert row.text == "\n\nsystem: you good\n\nHuman: hello\n\nAssistant: bye\n\nHuman: why ?\n\nAssistant:"
    assert row.columns == {"prompt": "x"}


def test_hh_dialogues_lose_their_last_answer(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"chosen": DIALOGUE, "rejected": "anything"}])
    row = load(path, tokenizer, format="hh-rlhf").row(0)
    assert row.token_ids == ids(
        tokenizer, "<bos> <user> what is red <eos> <assistant> the sun <eos> <user> why <eos> <assistant>"
    )
    assert row.text == DIALOGUE.removesuffix(" it is hot")
    assert row.columns == {"rejected": "anything"}
    plain = load(path, tokenizer, format="hh-rlhf", chat_template=False).row(0)
    assert plain.token_ids == ids(tokenizer, "Human : what is red Assistant : the sun Human : why Assistant :")


def test_ids_are_row_numbers_of_the_file_or_a_column(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": "cat", "key": key} for key in ("a", 7, "b")])
    assert [load(path, tokenizer, skip_rows=1).row(i).id for i in range(2)] == ["1", "2"]
    assert [load(path, tokenizer, id_column="key").row(i).id for i in range(3)] == ["a", "7", "b"]


def test_long_prompts_stop_the_run(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": "cat " * number} for number in (1, 4, 5)])
    # with the template's four: 5, 8 and 9
    assert len(load(path, tokenizer, max_prompt_tokens=9)) == 3
    with pytest.raises(UserError) as told:
        load(path, tokenizer, max_prompt_tokens=8)
    assert str(told.value) == (
        f"{path}:3: the prompt has 9 tokens, allowed are data.max_prompt_tokens: 8. "
        "Raise it, or leave such prompts out with data.overlong: drop"
    )


def test_long_prompts_are_left_out_and_counted(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": "cat " * number} for number in (5, 1, 6, 4)])
    dataset = load(path, tokenizer, max_prompt_tokens=8, overlong="drop")
    assert (len(dataset), dataset.num_dropped, dataset.longest) == (2, 2, 8)
    assert [dataset.row(i).id for i in range(2)] == ["1", "3"]
    assert [len(dataset.row(i).token_ids) for i in range(2)] == [5, 8]


def test_nothing_left_is_told(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": "cat cat"}])
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens: all 1 prompts of .* are longer than 3 tokens"):
        load(path, tokenizer, max_prompt_tokens=3, overlong="drop")


def test_batches_change_nothing(write_rows: Write, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows([{"prompt": "cat " * (1 + i % 3)} for i in range(7)])
    whole = load(path, tokenizer)
    monkeypatch.setattr(module, "BATCH", 2)
    split = load(path, tokenizer)
    assert [split.row(i) for i in range(7)] == [whole.row(i) for i in range(7)]
    assert split.fingerprint == whole.fingerprint


def test_the_fingerprint_knows_file_selection_and_tokens(
    write_rows: Write, tokenizer: Tokenizer, tokenizer_folder: str
) -> None:
    path = write_rows([{"prompt": "cat"}, {"prompt": "dog"}])
    other = load_tokenizer(tokenizer_folder)
    other.chat_template = "{{ messages[0]['content'] }}"
    datasets = [
        load(path, tokenizer),
        load(path, tokenizer, skip_rows=1),
        load(path, tokenizer, chat_template=False),
        load(path, other),
    ]
    assert load(path, tokenizer).fingerprint == datasets[0].fingerprint
    # the last two are the same tokens of the same rows
    assert len({dataset.fingerprint for dataset in datasets}) == 3
    assert datasets[2].fingerprint == datasets[3].fingerprint


BAD_ROWS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"question": "x"}, {}, ":1: there is no column 'prompt' (data.prompt_column); the columns are 'question'"),
    ({"prompt": 3}, {}, ":1: column 'prompt' must be text or a list, got a number 3"),
    ({"prompt": ""}, {}, ":1: column 'prompt' is empty"),
    ({"prompt": []}, {}, ":1: column 'prompt' is empty"),
    ({"prompt": "   "}, {"chat_template": False}, ":1: the prompt has no token"),
    (
        {"prompt": ["hello"]},
        {},
        ":1: column 'prompt': message 1 must be an object with role and content, got text 'hello'",
    ),
    ({"prompt": [{"role": "user"}]}, {}, ":1: column 'prompt': message 1: 'content' must be text, got null"),
    (
        {"prompt": [CHAT[1], {"role": 1, "content": "x"}]},
        {},
        ":1: column 'prompt': message 2: 'role' must be text, got a number 1",
    ),
    ({"prompt": CHAT[:3]}, {}, ":1: column 'prompt' must end before the answer, its last message is the assistant's"),
    (
        {"prompt": CHAT},
        {"chat_template": False},
        ":1: column 'prompt' has chat messages, which need data.chat_template: true",
    ),
    ({"prompt": "x", "key": 1.5}, {"id_column": "key"}, ":1: column 'key' must be text or a number, got a number 1.5"),
    ({"prompt": "x"}, {"id_column": "key"}, ":1: there is no column 'key' (data.id_column); the columns are 'prompt'"),
    (
        {"prompt": "x"},
        {"format": "hh-rlhf"},
        ":1: there is no column 'chosen' (data.format: hh-rlhf); the columns are 'prompt'",
    ),
    ({"chosen": "hello"}, {"format": "hh-rlhf"}, ":1: a dialogue must start with '\\n\\nHuman:', got 'hello'"),
]


@pytest.mark.parametrize(("row", "config", "message"), BAD_ROWS)
def test_a_bad_row_is_told_with_its_line(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    path = write_rows([row])
    with pytest.raises(UserError) as told:
        load(path, tokenizer, **config)
    assert str(told.value) == path + message


def test_an_id_twice_is_told_with_both_lines(write_rows: Write) -> None:
    path = write_rows([{"prompt": "x", "key": key} for key in ("a", "b", "a")])
    with pytest.raises(
        UserError, match=re.escape(f"{path}:3: id 'a' (data.id_column) is already that of {path}:1; ids must differ")
    ):
        read_prompts(PromptDataConfig(path=path, id_column="key"))


def test_prompts_can_be_read_without_a_tokenizer(write_rows: Write) -> None:
    path = write_rows([{"prompt": "cat " * 900, "answer": 1}, {"prompt": CHAT}])
    _, prompts = read_prompts(PromptDataConfig(path=path))
    assert [prompt.id for prompt in prompts] == ["0", "1"]
    assert prompt_text(prompts[0]) == "cat " * 900
    assert prompts[1].messages == CHAT
    assert prompts[1].where == f"{path}:2"


def test_an_end_token_that_also_pads_stays_where_the_template_puts_it(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.pad_token = tokenizer.eos_token
    dataset = load(write_rows([{"prompt": "cat"}, {"prompt": "cat cat cat"}]), tokenizer)
    assert dataset.row(0).token_ids == [BOS_ID, *ids(tokenizer, "<user> cat"), EOS_ID, *ids(tokenizer, "<assistant>")]
