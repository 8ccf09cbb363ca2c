"""TRL's formats, each with the row that its documentation shows, and names of columns.

Of their words the tiny tokenizer has `the`, `is`, `blue` and `green`; all others are `<unk>`.
"""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from actors.data.prompts import PromptDataset
from actors.data.rankings import RankingDataset
from actors.data.sequences import load_conversations, load_texts
from actors.data.tokenizer import Tokenizer
from configs.schema.data import (
    ConversationDataConfig,
    DataConfig,
    PromptDataConfig,
    RankingDataConfig,
    TextDataConfig,
)

Write = Callable[[list[dict[str, Any]]], str]

QUESTION = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}

ASKED = "<bos> <user> <unk> <unk> is the <unk> ? <eos> <assistant>"
ANSWERED_BLUE, ANSWERED_GREEN = f"{ASKED} <unk> is blue . <eos>", f"{ASKED} <unk> is green . <eos>"
SKY_BLUE, SKY_GREEN = "<unk> <unk> is blue . <eos>", "<unk> <unk> is green . <eos>"
PLAIN: dict[str, Any] = {"chat_template": False}


def words(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_language_modelling(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"text": "The sky is blue."}])
    dataset = load_texts(TextDataConfig(path=path, held_out_rows=0), tokenizer)
    assert words(tokenizer, dataset.sequence(0).token_ids) == SKY_BLUE


CONVERSATIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str, int]] = {
    "conversational language modelling": ({"messages": [QUESTION, BLUE]}, {}, ANSWERED_BLUE, 5),
    "prompt-completion": (
        {"prompt": "The sky is", "completion": " blue."},
        {"format": "prompt-completion", **PLAIN},
        SKY_BLUE,
        3,
    ),
    "conversational prompt-completion": (
        {"prompt": [QUESTION], "completion": [BLUE]},
        {"format": "prompt-completion"},
        ANSWERED_BLUE,
        5,
    ),
}


@pytest.mark.parametrize(("row", "config", "text", "num_learned"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversations(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any], config: dict[str, Any], text: str, num_learned: int
) -> None:
    path = write_rows([row])
    dataset = load_conversations(ConversationDataConfig(path=path, held_out_rows=0, **config), tokenizer)
    assert words(tokenizer, dataset.sequence(0).token_ids) == text
    assert dataset.num_loss_tokens == [num_learned]


@pytest.mark.parametrize(
    ("row", "config", "text"),
    [({"prompt": "The sky is"}, PLAIN, "<unk> <unk> is"), ({"prompt": [QUESTION]}, {}, ASKED)],
    ids=["prompt-only", "conversational prompt-only"],
)
def test_prompts(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any], config: dict[str, Any], text: str
) -> None:
    dataset = PromptDataset.load(PromptDataConfig(path=write_rows([row]), **config), tokenizer)
    assert words(tokenizer, dataset.row(0).token_ids) == text


PREFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str], int]] = {
    "preference": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        PLAIN,
        (SKY_BLUE, SKY_GREEN),
        3,
    ),
    "preference, implicit prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        PLAIN,
        (SKY_BLUE, SKY_GREEN),
        3,
    ),
    "conversational preference": (
        {"prompt": [QUESTION], "chosen": [BLUE], "rejected": [GREEN]},
        {},
        (ANSWERED_BLUE, ANSWERED_GREEN),
        5,
    ),
    "conversational preference, implicit prompt": (
        {"chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]},
        {},
        (ANSWERED_BLUE, ANSWERED_GREEN),
        5,
    ),
}


@pytest.mark.parametrize(("row", "config", "expected", "num_answer"), PREFERENCES.values(), ids=PREFERENCES)
def test_preferences(
    write_rows: Write,
    tokenizer: Tokenizer,
    row: dict[str, Any],
    config: dict[str, Any],
    expected: tuple[str, str],
    num_answer: int,
) -> None:
    path = write_rows([row, row])
    group = RankingDataset.load(RankingDataConfig(path=path, held_out_rows=1, **config), tokenizer).group(0)
    assert tuple(words(tokenizer, sequence) for sequence in group.sequences) == expected
    assert group.answer_lengths == (num_answer, num_answer)
    assert group.ranks == (0, 1)


# -------------------------------------------------------------------------------------------------------- names of columns


def test_every_format_reads_columns_of_other_names(write_rows: Write, tokenizer: Tokenizer) -> None:
    row = {"q": "why", "good": "it is", "bad": "no", "both": ["it is", "no"], "order": [0, 1]}
    path = write_rows([row, row])

    def ranked(**config: Any) -> tuple[list[int], ...]:
        data = RankingDataConfig.model_validate({"path": path, "held_out_rows": 1, **config})
        return RankingDataset.load(data, tokenizer).group(0).sequences

    preferred = ranked(columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    columns = {"prompt": "q", "responses": "both", "ranks": "order"}
    assert preferred == ranked(format="ranking", columns=columns)
    assert words(tokenizer, preferred[0]) == "<bos> <user> why <eos> <assistant> it is <eos>"
    learned = ConversationDataConfig(
        path=path, held_out_rows=0, format="prompt-completion", columns={"prompt": "q", "completion": "good"}
    )
    assert load_conversations(learned, tokenizer).sequence(0).token_ids == preferred[0]
    prompts = PromptDataset.load(PromptDataConfig(path=path, columns={"prompt": "q", "answer": "good"}), tokenizer)
    assert words(tokenizer, prompts.row(0).token_ids) == "<bos> <user> why <eos> <assistant>"
    assert prompts.row(0).columns["answer"] == "it is"


UNKNOWN: list[tuple[type[DataConfig], dict[str, Any], str]] = [
    (TextDataConfig, {}, "columns.other: no column of this format; allowed: text"),
    (TextDataConfig, {"text_column": "body"}, "columns.other: no column of this format; allowed: body"),
    (ConversationDataConfig, {}, "columns.other: no column of this format; allowed: messages"),
    (
        ConversationDataConfig,
        {"format": "prompt-completion"},
        "columns.other: no column of this format; allowed: prompt, completion",
    ),
    (
        RankingDataConfig,
        {},
        "columns.other: no column of this format; allowed: prompt, chosen, rejected, margin, annotator",
    ),
    (
        RankingDataConfig,
        {"format": "ranking"},
        "columns.other: no column of this format; allowed: prompt, responses, ranks, margin, annotator",
    ),
    (
        RankingDataConfig,
        {"format": "hh-rlhf"},
        "columns.other: no column of this format; allowed: chosen, rejected",
    ),
]


@pytest.mark.parametrize(("kind", "config", "message"), UNKNOWN)
def test_a_column_that_the_format_does_not_have_is_refused(
    kind: type[DataConfig], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as told:
        kind.model_validate({"path": "x", "columns": {"other": "y"}, **config})
    assert [error["msg"] for error in told.value.errors()] == [message]
    with pytest.raises(ValidationError) as told:
        kind.model_validate({"path": "x", "mix": [{"path": "y"}, {"path": "z", "columns": {"other": "y"}}], **config})
    assert [error["msg"] for error in told.value.errors()] == [f"mix.1.{message}"]


REFUSED: list[tuple[type[DataConfig], dict[str, Any], str]] = [
    (
        DataConfig,
        {"streaming": True},
        "max_rows: missing; allowed: a whole number of at least 1, where streaming is true",
    ),
    (TextDataConfig, {"max_rows": 64}, "held_out_rows: got 64; allowed: less than max_rows (64)"),
    (ConversationDataConfig, {"max_rows": 9}, "held_out_rows: got 64; allowed: less than max_rows (9)"),
    (
        ConversationDataConfig,
        {"chat_template": False},
        "chat_template: got false; allowed: true for format conversation: messages need a template",
    ),
]


@pytest.mark.parametrize(("kind", "config", "message"), REFUSED)
def test_keys_that_do_not_go_together_are_refused(kind: type[DataConfig], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as told:
        kind.model_validate({"path": "x", **config})
    assert [error["msg"] for error in told.value.errors()] == [message]


def test_a_mixture_may_hold_out_more_rows_than_its_first_source_has() -> None:
    config = {"path": "x", "max_rows": 9, "mix": [{"path": "y"}], "held_out_rows": 12}
    assert TextDataConfig.model_validate(config).held_out_rows == 12
