"""Rankings: rows to groups of token sequences, and what a user is told of bad ones."""

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from actors.data import rankings as module
from actors.data.chats import ended
from actors.data.rankings import RankingDataset
from actors.data.tokenizer import Tokenizer, load_tokenizer
from actors.errors import UserError
from configs.schema.data import RankingDataConfig
from tests.tiny_models import EOS_ID

Write = Callable[[list[dict[str, Any]]], str]

PAIR = {"prompt": "why", "chosen": "it is hot", "rejected": "no"}
FILLER = {"prompt": "what", "chosen": "yes", "rejected": "no"}


def load(path: str, tokenizer: Tokenizer, **config: Any) -> RankingDataset:
    return RankingDataset.load(RankingDataConfig(path=path, **{"held_out_rows": 1, **config}), tokenizer)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token by token, as one writes it down: words and special tokens apart by spaces."""
    return [tokenizer.convert_tokens_to_ids(word) for word in text.split()]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CHAT_ROWS: dict[str, dict[str, Any]] = {
    "text": PAIR,
    "messages": {"prompt": [user("why")], "chosen": [assistant("it is hot")], "rejected": [assistant("no")]},
    "text and messages": {"prompt": "why", "chosen": [assistant("it is hot")], "rejected": "no"},
    "whole conversations": {
        "chosen": [user("why"), assistant("it is hot")],
        "rejected": [user("why"), assistant("no")],
    },
}


@pytest.mark.parametrize("row", CHAT_ROWS.values(), ids=CHAT_ROWS)
def test_preferences_in_every_form_are_the_same_sequences(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any]
) -> None:
    path = write_rows([row, FILLER])
    group = load(path, tokenizer).group(0)
    assert group.sequences == (
        ids(tokenizer, "<bos> <user> why <eos> <assistant> it is hot <eos>"),
        ids(tokenizer, "<bos> <user> why <eos> <assistant> no <eos>"),
    )
    assert (group.answer_lengths, group.ranks, group.where) == ((4, 2), (0, 1), f"{path}:1")


def test_plain_text_ends_with_the_end_token(write_rows: Write, tokenizer: Tokenizer) -> None:
    group = load(write_rows([PAIR, FILLER]), tokenizer, chat_template=False).group(0)
    assert group.sequences == (ids(tokenizer, "why it is hot <eos>"), ids(tokenizer, "why no <eos>"))
    assert group.answer_lengths == (4, 2)


def test_rankings_of_several_answers_with_ties(write_rows: Write, tokenizer: Tokenizer) -> None:
    row = {"prompt": "why", "responses": ["red", "blue cat", "", [assistant("sun")]], "ranks": [2, 1, 7, 2]}
    group = load(write_rows([row, row]), tokenizer, format="ranking").group(0)
    start = "<bos> <user> why <eos> <assistant>"
    assert group.sequences == tuple(ids(tokenizer, f"{start} {end} <eos>") for end in ("red", "blue cat", "", "sun"))
    assert group.ranks == (2, 1, 7, 2)
    assert group.answer_lengths == (2, 3, 1, 2)


def test_hh_dialogues_may_differ_before_the_answer(write_rows: Write, tokenizer: Tokenizer) -> None:
    row = {
        "chosen": "\n\nHuman: why\n\nAssistant: it is hot",
        "rejected": "\n\nHuman: hello\n\nAssistant: bye\n\nHuman: why\n\nAssistant: no",
    }
    group = load(write_rows([row, row]), tokenizer, format="hh-rlhf").group(0)
    assert group.sequences == (
        ids(tokenizer, "<bos> <user> why <eos> <assistant> it is hot <eos>"),
        ids(tokenizer, "<bos> <user> hello <eos> <assistant> bye <eos> <user> why <eos> <assistant> no <eos>"),
    )
    plain = load(write_rows([row, row]), tokenizer, format="hh-rlhf", chat_template=False).group(0)
    assert plain.sequences[0] == ids(tokenizer, "Human : why Assistant : it is hot <eos>")


def test_prompt_and_answer_are_the_tokens_that_ppo_sees(write_rows: Write, tokenizer: Tokenizer) -> None:
    from actors.data.prompts import PromptDataset
    from configs.schema.data import PromptDataConfig

    path = write_rows([PAIR, FILLER])
    prompt = PromptDataset.load(PromptDataConfig(path=path), tokenizer).row(0).token_ids
    sequence = load(path, tokenizer).group(0).sequences[0]
    assert sequence == [*prompt, *ids(tokenizer, "it is hot"), EOS_ID]


def test_what_a_template_writes_behind_the_end_token_is_left_out(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    group = load(write_rows([PAIR, FILLER]), tokenizer).group(0)
    assert group.sequences[0] == ids(tokenizer, "<user> why <eos> <assistant> it is hot <eos>")


def test_an_end_token_is_added_where_the_template_writes_none(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    turns = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    group = load(write_rows([PAIR, FILLER]), tokenizer).group(0)
    assert group.sequences[0] == ids(tokenizer, "<user> why <assistant> it is hot <eos>")


def test_a_template_that_rewrites_the_prompt_is_told(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(
        UserError,
        match=r":1: column 'chosen': the model's chat template writes another beginning once the answer is there",
    ):
        load(write_rows([PAIR, FILLER]), tokenizer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("it is hot <eos>", "it is hot <eos>"),
        ("it is hot", "it is hot <eos>"),
        ("it <eos> is hot", "it <eos> is hot <eos>"),
        ("it <eos> is <eos>", "it <eos> is <eos>"),
        ("", "<eos>"),
        ("<eos>", "<eos>"),
    ],
)
def test_answers_end_once(tokenizer_folder: str, answer: str, expected: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert ended(ids(tokenizer, answer), tokenizer) == ids(tokenizer, expected)
    tokenizer.pad_token = tokenizer.eos_token
    assert ended(ids(tokenizer, answer), tokenizer) == ids(tokenizer, expected)


def test_margin_and_annotator_are_carried(write_rows: Write, tokenizer: Tokenizer) -> None:
    rows: list[dict[str, Any]] = [
        {**PAIR, "margin": 0.5, "annotator": "ann"},
        {**PAIR, "margin": 2, "annotator": 7},
        {**PAIR, "margin": None, "annotator": None},
        PAIR,
    ]
    dataset = load(write_rows(rows), tokenizer)
    groups = [dataset.group(i) for i in range(4)]
    assert [group.margin for group in groups] == [0.5, 2.0, None, None]
    assert [group.annotator for group in groups] == ["ann", "7", None, None]
    dataset = load(write_rows([ranking(margin=1, annotator="bob"), ranking()]), tokenizer, format="ranking")
    assert (dataset.group(0).margin, dataset.group(0).annotator) == (1.0, "bob")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("why it is hot", "why it was", ("why it is hot <eos>", "why it <unk> <eos>", (3, 2))),
        ("why ? yes", "why ? you", ("why ? yes <eos>", "why ? you <eos>", (2, 2))),
        ("why ? yes", "why ? yes it is", ("why ? yes <eos>", "why ? yes it is <eos>", (2, 4))),
        ("why\nyes", "why\nno", ("why yes <eos>", "why no <eos>", (2, 2))),
        ("why", "why not", ("why <eos>", "why <unk> <eos>", (1, 2))),
    ],
)
def test_the_prompt_may_be_what_both_texts_begin_with(
    write_rows: Write, tokenizer: Tokenizer, chosen: str, rejected: str, expected: tuple[str, str, tuple[int, int]]
) -> None:
    path = write_rows([{"chosen": chosen, "rejected": rejected}] * 2)
    group = load(path, tokenizer, chat_template=False).group(0)
    assert group.sequences == (ids(tokenizer, expected[0]), ids(tokenizer, expected[1]))
    assert group.answer_lengths == expected[2]


LONG = [  # longest answers with prompt: 8, 9 and 6 tokens; plain, without template
    {"prompt": "one two three four", "chosen": "cat cat cat", "rejected": "cat"},
    {"prompt": "one two three four five", "chosen": "cat", "rejected": "cat dog cat"},
    {"prompt": "one two three", "chosen": "cat cat", "rejected": "cat"},
]


def test_long_answers_stop_the_run(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows(LONG)
    assert len(load(path, tokenizer, chat_template=False, max_tokens=9)) == 3
    with pytest.raises(UserError) as told:
        load(path, tokenizer, chat_template=False, max_tokens=8)
    assert str(told.value) == (
        f"{path}:2: prompt and answer have 9 tokens, allowed are data.max_tokens: 8. "
        "Raise it, or set data.overlong to drop or truncate_left"
    )


def test_long_groups_are_left_out_and_counted(write_rows: Write, tokenizer: Tokenizer) -> None:
    dataset = load(write_rows(LONG), tokenizer, chat_template=False, max_tokens=8, overlong="drop")
    assert (len(dataset), dataset.num_dropped, dataset.lengths) == (2, 1, [14, 11])


def test_long_prompts_lose_their_oldest_tokens_alike_for_all_answers(write_rows: Write, tokenizer: Tokenizer) -> None:
    dataset = load(write_rows(LONG), tokenizer, chat_template=False, max_tokens=6, overlong="truncate_left")
    assert dataset.num_dropped == 0
    assert dataset.group(0).sequences == (
        ids(tokenizer, "three four cat cat cat <eos>"),
        ids(tokenizer, "three four cat <eos>"),
    )
    assert dataset.group(1).sequences == (
        ids(tokenizer, "four five cat <eos>"),
        ids(tokenizer, "four five cat dog cat <eos>"),
    )
    assert dataset.group(0).answer_lengths == (4, 2)
    assert [dataset.group(i).num_cut_tokens for i in range(3)] == [2, 3, 0]
    assert (dataset.num_cut_tokens, dataset.num_answer_tokens) == (5, 4 + 2 + 2 + 4 + 3 + 2)
    assert dataset.group(2).sequences[0] == ids(tokenizer, "one two three cat cat <eos>")


def test_an_answer_that_fits_in_no_way_is_left_out(write_rows: Write, tokenizer: Tokenizer) -> None:
    dataset = load(write_rows([*LONG, FILLER]), tokenizer, chat_template=False, max_tokens=4, overlong="truncate_left")
    assert (len(dataset), dataset.num_dropped) == (2, 2)
    assert dataset.group(0).sequences[0] == ids(tokenizer, "three cat cat <eos>")


def test_groups_that_are_one_tie_say_nothing(write_rows: Write, tokenizer: Tokenizer) -> None:
    rows = [
        {"prompt": "why", "responses": ["red", "blue"], "ranks": ranks} for ranks in ([1, 1], [1, 2], [3, 3], [2, 1])
    ]
    dataset = load(write_rows(rows), tokenizer, format="ranking")
    assert (len(dataset), dataset.num_ties, dataset.num_dropped) == (2, 2, 0)
    assert [dataset.group(i).ranks for i in range(2)] == [(1, 2), (2, 1)]


def test_the_last_rows_are_held_out(write_rows: Write, tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "why", "chosen": f"word10{i}", "rejected": "no"} for i in range(6)]
    path = write_rows(rows)
    dataset = load(path, tokenizer, held_out_rows=2, skip_rows=1, max_rows=4)
    assert (dataset.train, dataset.held_out) == (range(2), range(2, 4))
    assert [dataset.group(i).where for i in dataset.held_out] == [f"{path}:4", f"{path}:5"]


def test_held_out_rows_are_rows_also_where_some_are_left_out(write_rows: Write, tokenizer: Tokenizer) -> None:
    long = {"prompt": "why", "chosen": "no " * 50, "rejected": "no"}
    dataset = load(
        write_rows([PAIR, long, PAIR, long, FILLER]), tokenizer, held_out_rows=2, max_tokens=20, overlong="drop"
    )
    assert (dataset.train, dataset.held_out, dataset.num_dropped) == (range(2), range(2, 3), 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAIR], "data.held_out_rows: 1 of the 1 rows of '{path}' leaves none to train on"),
        (
            [{**PAIR, "chosen": "no " * 50}, PAIR],
            "data.path: no group to train on is left of '{path}': 1 rows are longer than data.max_tokens 20, 0 rank all answers the same",
        ),
        (
            [PAIR, {**PAIR, "chosen": "no " * 50}],
            "data.path: no group held out is left of '{path}': 1 rows are longer than data.max_tokens 20, 0 rank all answers the same",
        ),
    ],
)
def test_nothing_left_is_told(
    write_rows: Write, tokenizer: Tokenizer, rows: list[dict[str, Any]], message: str
) -> None:
    path = write_rows(rows)
    with pytest.raises(UserError) as told:
        load(path, tokenizer, max_tokens=20, overlong="drop")
    assert str(told.value) == message.replace("{path}", path)


def test_lengths_are_sums_over_a_groups_answers(write_rows: Write, tokenizer: Tokenizer) -> None:
    dataset = load(write_rows([PAIR, FILLER]), tokenizer)
    assert dataset.lengths == [9 + 7, 7 + 7]


def test_batches_change_nothing(write_rows: Write, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(list(islice(cycle([PAIR, FILLER, LONG[0]]), 7)))
    whole = load(path, tokenizer)
    monkeypatch.setattr(module, "BATCH", 2)
    split = load(path, tokenizer)
    assert [split.group(i) for i in range(7)] == [whole.group(i) for i in range(7)]


def test_the_fingerprint_knows_tokens_and_ranks(write_rows: Write, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_rows([PAIR, FILLER])
    first = load(path, tokenizer).fingerprint
    assert load(path, tokenizer).fingerprint == first
    assert load(path, tokenizer, chat_template=False).fingerprint != first
    assert load(write_rows([PAIR, FILLER, FILLER]), tokenizer).fingerprint != first
    three = write_rows([PAIR, PAIR, FILLER])
    assert load(three, tokenizer).fingerprint != load(three, tokenizer, held_out_rows=2).fingerprint
    named = write_rows([{**PAIR, "margin": 1, "other": 2}, FILLER])
    assert load(named, tokenizer).fingerprint != load(named, tokenizer, columns={"prompt": "prompt"}).fingerprint
    assert load(write_rows([FILLER, PAIR]), tokenizer).fingerprint != first


def ranking(**columns: Any) -> dict[str, Any]:
    return {"prompt": "why", "responses": ["red", "blue"], "ranks": [0, 1], **columns}


RANKING: dict[str, Any] = {"format": "ranking"}
PLAIN: dict[str, Any] = {"chat_template": False}
BAD_ROWS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"prompt": "x", "chosen": "y"},
        {},
        "there is no column 'rejected' (data.format: preference); the columns are 'prompt', 'chosen'",
    ),
    (
        {"chosen": "y", "rejected": "z"},
        {},
        "column 'chosen' is text, and there is no column 'prompt'. Without one, chosen and rejected must be lists of messages that begin "
        "with the prompt; texts that do need data.chat_template: false",
    ),
    ({**PAIR, "prompt": ""}, {}, "column 'chosen': its prompt is empty"),
    ({**PAIR, "prompt": []}, {}, "column 'prompt' is empty"),
    ({**PAIR, "rejected": 3}, {}, "column 'rejected' must be text or a list, got a number 3"),
    (
        {**PAIR, "rejected": [user("x")]},
        {},
        "column 'rejected': the last message must be the assistant's answer, got an object {'role': 'user', 'content': 'x'}",
    ),
    (
        {"chosen": [assistant("x")], "rejected": [assistant("y")]},
        {},
        "column 'chosen': a conversation needs a prompt and an answer, got 1 message",
    ),
    ({**PAIR, "chosen": [assistant("x")]}, PLAIN, "column 'chosen': chat messages need data.chat_template: true"),
    (CHAT_ROWS["whole conversations"], PLAIN, "column 'chosen': chat messages need data.chat_template: true"),
    (ranking(ranks=[0]), RANKING, "columns 'responses' and 'ranks' must be lists of one length >= 2, got 2 and 1"),
    (
        ranking(ranks=[0], responses=["x"]),
        RANKING,
        "columns 'responses' and 'ranks' must be lists of one length >= 2, got 1 and 1",
    ),
    (
        ranking(ranks=[0, 1.5]),
        RANKING,
        "column 'ranks': number 2 must be a whole number (lower is better), got a number 1.5",
    ),
    (
        ranking(ranks=[True, 1]),
        RANKING,
        "column 'ranks': number 1 must be a whole number (lower is better), got true or false True",
    ),
    (ranking(ranks="01"), RANKING, "column 'ranks' must be a list, got text '01'"),
    (
        ranking(responses=["x", None]),
        RANKING,
        "column 'responses', number 2 must be text or a list of messages, got null",
    ),
    (ranking(margin=-1), RANKING, "column 'margin' must be a finite number >= 0, got a number -1"),
    (ranking(margin=float("nan")), RANKING, "column 'margin' must be a finite number >= 0, got a number nan"),
    (ranking(margin="1"), RANKING, "column 'margin' must be a number, got text '1'"),
    (
        ranking(margin=1, responses=["a", "b", "c"], ranks=[0, 1, 2]),
        RANKING,
        "column 'margin' is between two answers, and the row has 3",
    ),
    ({**PAIR, "annotator": 1.5}, {}, "column 'annotator' must be text or a number, got a number 1.5"),
    (
        {"chosen": "yes", "rejected": "no"},
        PLAIN,
        "columns 'chosen' and 'rejected' begin differently, and there is no column 'prompt', so there is no prompt with two answers",
    ),
    (
        {"chosen": "yes", "rejected": "yes"},
        PLAIN,
        "columns 'chosen' and 'rejected' are the same, so there is no prompt with two answers",
    ),
    ({"prompt": "x"}, RANKING, "there is no column 'responses' (data.format: ranking); the columns are 'prompt'"),
    (
        {"chosen": "x", "rejected": "y"},
        {"format": "hh-rlhf"},
        "column 'chosen': a dialogue must start with '\\n\\nHuman:', got 'x'",
    ),
]


@pytest.mark.parametrize(("row", "config", "message"), BAD_ROWS)
def test_a_bad_row_is_told_with_its_line(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    path = write_rows([row, row])
    with pytest.raises(UserError) as told:
        load(path, tokenizer, **config)
    assert str(told.value) == f"{path}:1: {message}"
