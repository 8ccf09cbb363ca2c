"""Documents to token sequences, and the dataset that holds sequences."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data import sequences as module
from actors.data.sequences import SequenceDataset, TokenSequence, load_texts, split_document
from actors.data.tokenizer import Tokenizer, load_tokenizer
from actors.errors import UserError
from configs.schema.data import TextDataConfig

Write = Callable[[list[dict[str, Any]]], str]


def load(path: str, tokenizer: Tokenizer, **config: Any) -> SequenceDataset:
    return load_texts(TextDataConfig(path=path, **{"held_out_rows": 0, **config}), tokenizer)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token by token, as one writes it down: words and special tokens apart by spaces."""
    return [tokenizer.convert_tokens_to_ids(word) for word in text.split()]


def texts(*documents: str) -> list[dict[str, Any]]:
    return [{"text": document} for document in documents]


def test_a_document_ends_with_the_end_token_and_is_learned_from_its_second(
    write_rows: Write, tokenizer: Tokenizer
) -> None:
    path = write_rows(texts("red cat", "sun"))
    dataset = load(path, tokenizer)
    assert dataset.sequence(0) == TokenSequence(
        token_ids=ids(tokenizer, "red cat <eos>"), loss_mask=[False, True, True], where=f"{path}:1"
    )
    assert (dataset.lengths, dataset.num_loss_tokens, dataset.num_rows) == ([3, 2], [2, 1], 2)


def test_the_tokenizers_start_token_leads(write_rows: Write, tokenizer_folder: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    path = write_rows(texts("red cat"))
    assert load(path, tokenizer).sequence(0).token_ids == ids(tokenizer, "<bos> red cat <eos>")


def test_the_text_may_stand_in_another_column(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"body": "red cat"}])
    expected = ids(tokenizer, "red cat <eos>")
    assert load(path, tokenizer, text_column="body").sequence(0).token_ids == expected
    assert load(path, tokenizer, columns={"text": "body"}).sequence(0).token_ids == expected


def test_a_long_document_becomes_consecutive_sequences(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows(texts("one two three four five six seven", "red"))
    dataset = load(path, tokenizer, max_tokens=3)
    sequences = [dataset.sequence(i) for i in range(len(dataset))]
    assert [sequence.token_ids for sequence in sequences] == [
        ids(tokenizer, "one two three"),
        ids(tokenizer, "four five six"),
        ids(tokenizer, "seven <eos>"),
        ids(tokenizer, "red <eos>"),
    ]
    assert [sequence.loss_mask[0] for sequence in sequences] == [False] * 4
    assert dataset.num_loss_tokens == [2, 2, 1, 1]
    assert [sequence.where for sequence in sequences] == [
        f"{path}:1, piece 1 of 3",
        f"{path}:1, piece 2 of 3",
        f"{path}:1, piece 3 of 3",
        f"{path}:2",
    ]
    assert (dataset.num_rows, dataset.num_dropped, dataset.num_cut_tokens) == (2, 0, 0)


def test_no_end_token_is_left_alone() -> None:
    assert split_document([1, 2, 3, 4, 5, 6, 7], 3) == [[1, 2, 3], [4, 5], [6, 7]]
    assert split_document([1, 2, 3], 2) == [[1, 2], [3]]  # no other way
    assert split_document([1], 3) == [[1]]


@given(length=st.integers(1, 50), max_tokens=st.integers(2, 12))
def test_pieces_joined_are_the_document(length: int, max_tokens: int) -> None:
    document = list(range(length))
    pieces = split_document(document, max_tokens)
    assert [token for piece in pieces for token in piece] == document
    assert all(len(piece) <= max_tokens for piece in pieces)
    assert len(pieces) == -(-length // max_tokens)
    if length > 1 and max_tokens > 2:
        assert min(map(len, pieces)) > 1


def test_long_documents_are_left_out_or_stop_the_run(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows(texts("red", "one two three four", "blue cat dog"))
    dataset = load(path, tokenizer, max_tokens=4, overlong="drop")
    assert (dataset.lengths, dataset.num_dropped, dataset.num_rows) == ([2, 4], 1, 3)
    with pytest.raises(UserError) as told:
        load(path, tokenizer, max_tokens=4, overlong="error")
    assert str(told.value) == (
        f"{path}:2: the document has 5 tokens, allowed are data.max_tokens: 4. "
        "Raise it, or set data.overlong to split or drop"
    )


def test_the_last_rows_are_held_out_with_all_their_pieces(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows(texts("red", "one two three four five", "one two three four", "blue"))
    dataset = load(path, tokenizer, max_tokens=3, held_out_rows=2)
    assert dataset.lengths == [2, 3, 3, 3, 2, 2]
    assert (dataset.train, dataset.held_out) == (range(3), range(3, 6))
    assert load(path, tokenizer, max_tokens=3).held_out == range(6, 6)


def test_held_out_rows_are_rows_also_where_some_are_left_out(write_rows: Write, tokenizer: Tokenizer) -> None:
    long = "one two three four"
    path = write_rows(texts("red", long, "blue", long, "green"))
    dataset = load(path, tokenizer, max_tokens=3, overlong="drop", held_out_rows=2)
    assert (dataset.train, dataset.held_out, dataset.num_dropped) == (range(2), range(2, 3), 2)


@pytest.mark.parametrize(
    ("rows", "held_out_rows", "message"),
    [
        (["red"], 1, "data.held_out_rows: 1 of the 1 rows of '{path}' leaves none to train on"),
        (
            ["red cat", "red"],
            1,
            "data.path: no row to train on is left of '{path}': 1 rows are longer than data.max_tokens 2",
        ),
        (
            ["red", "red cat"],
            1,
            "data.path: no row held out is left of '{path}': 1 rows are longer than data.max_tokens 2",
        ),
        (["red cat"], 0, "data.path: no row to train on is left of '{path}': 1 rows are longer than data.max_tokens 2"),
    ],
)
def test_nothing_left_is_told(
    write_rows: Write, tokenizer: Tokenizer, rows: list[str], held_out_rows: int, message: str
) -> None:
    path = write_rows(texts(*rows))
    with pytest.raises(UserError) as told:
        load(path, tokenizer, max_tokens=2, overlong="drop", held_out_rows=held_out_rows)
    assert str(told.value) == message.replace("{path}", path)


def test_batches_change_nothing(write_rows: Write, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(texts(*("cat " * (1 + i % 4) for i in range(7))))
    whole = load(path, tokenizer, max_tokens=3)
    monkeypatch.setattr(module, "BATCH", 2)
    split = load(path, tokenizer, max_tokens=3)
    assert [split.sequence(i) for i in range(len(whole))] == [whole.sequence(i) for i in range(len(whole))]
    assert split.fingerprint == whole.fingerprint


def test_the_fingerprint_knows_what_is_learned_and_not_the_path(
    write_file: Callable[[str, list[dict[str, Any]]], str], tokenizer: Tokenizer, tokenizer_folder: str
) -> None:
    rows = texts("red cat dog bird", "sun", "moon")
    path, copy = write_file("a.jsonl", rows), write_file("b.jsonl", rows)
    other = load_tokenizer(tokenizer_folder)
    other.eos_token = "<pad>"
    first = load(path, tokenizer).fingerprint
    assert load(copy, tokenizer).fingerprint == first
    changed = [
        load(path, other),
        load(path, tokenizer, skip_rows=1),
        load(path, tokenizer, held_out_rows=1),
        load(path, tokenizer, max_tokens=3),  # the same tokens, in other sequences
        load(write_file("c.jsonl", [rows[1], rows[0], rows[2]]), tokenizer),
    ]
    assert len({first, *(dataset.fingerprint for dataset in changed)}) == 6


def test_the_fingerprint_knows_where_sequences_end() -> None:
    def dataset(*sequences: list[int]) -> SequenceDataset:
        rows = [[TokenSequence(token_ids=ids, loss_mask=[False] * len(ids), where="x")] for ids in sequences]
        return SequenceDataset(rows, first_held_out=2, fingerprint="rows")

    assert dataset([5], [6, 7]).fingerprint != dataset([5, 6], [7]).fingerprint


def test_the_fingerprint_knows_the_loss_mask() -> None:
    def dataset(*mask: bool) -> SequenceDataset:
        sequence = TokenSequence(token_ids=[5, 6, 7], loss_mask=list(mask), where="x")
        return SequenceDataset([[sequence]], first_held_out=1, fingerprint="rows")

    assert dataset(False, True, True).fingerprint != dataset(False, False, True).fingerprint
    assert dataset(False, True, True).fingerprint == dataset(False, True, True).fingerprint


BAD_ROWS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"body": "x"}, {}, "there is no column 'text' (data.text_column); the columns are 'body'"),
    ({"text": None}, {}, "column 'text' must be text, got null"),
    ({"text": ["x"]}, {}, "column 'text' must be text, got a list ['x']"),
    ({"text": ""}, {}, "column 'text' has no token"),
    ({"text": " \n"}, {}, "column 'text' has no token"),
    ({"text": "x"}, {"text_column": "body"}, "there is no column 'body' (data.text_column); the columns are 'text'"),
]


@pytest.mark.parametrize(("row", "config", "message"), BAD_ROWS)
def test_a_bad_row_is_told_with_its_line(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    path = write_rows([{"text": "red", "body": "red"}, row])
    with pytest.raises(UserError) as told:
        load(path, tokenizer, **config)
    assert str(told.value) == f"{path}:2: {message}"
