"""Rows of files, and what a user is told of bad ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from actors.data import files as module
from actors.data.files import read_rows
from actors.data.rows import Rows
from actors.errors import UserError
from configs.schema.data import DataConfig

ROWS = [{"prompt": f"question {i}", "n": i} for i in range(5)]


def write(path: Path, lines: list[Any] | str) -> str:
    text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8")
    return str(path)


def read(path: str, **config: Any) -> Rows:
    return read_rows(DataConfig(path=path, **config))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.ndjson"])
def test_all_rows_in_order_with_their_lines(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    rows = read(path)
    assert list(rows) == ROWS
    assert rows.where(3) == f"{path}:4"


def test_skip_and_max_select_and_keep_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    rows = read(path, skip_rows=1, max_rows=2)
    assert [row["n"] for row in rows] == [1, 2]
    assert rows.where(0) == f"{path}:2"


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"n": 1}\n\n  \n{"n": 2}\n\n')
    rows = read(path)
    assert [row["n"] for row in rows] == [1, 2]
    assert rows.where(1) == f"{path}:4"


def test_a_byte_order_mark_and_missing_last_newline_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"n": "ü"}')
    assert read(path)[0] == {"n": "ü"}


def test_parquet(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    rows = read(path, skip_rows=2, max_rows=2)
    assert list(rows) == ROWS[2:4]
    assert rows.where(0) == f"{path}, row 3"


def test_parquet_is_the_same_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 2)
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    rows = read(path)
    assert list(rows) == ROWS
    assert [rows[i] for i in (4, 0, 3, 1, 2)] == [ROWS[i] for i in (4, 0, 3, 1, 2)]


def test_parquet_text_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    text = pyarrow.array([b"fine", b"\xff"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": text}), path)
    with pytest.raises(UserError, match=r"a\.parquet, rows 1 to 2: cannot read them: UnicodeDecodeError"):
        read(path)[0]


def test_columns_are_read_under_our_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "why", "prompt": "old", "n": 1}])
    assert read(path, columns={"prompt": "question"})[0] == {"prompt": "why", "n": 1}
    swapped = read(path, columns={"prompt": "question", "question": "prompt"})
    assert swapped[0] == {"prompt": "why", "question": "old", "n": 1}
    assert read(path, columns={"a": "n", "b": "n"})[0] == {"a": 1, "b": 1, "question": "why", "prompt": "old"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_column_that_a_row_lacks_is_told(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"a.{suffix}")
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        write(Path(path), ROWS)
    with pytest.raises(UserError) as told:
        read(path, columns={"prompt": "question"}, skip_rows=1)[0]
    where = f"{path}:2" if suffix == "jsonl" else f"{path}, row 2"
    assert (
        str(told.value)
        == f"{where}: there is no column 'question' (data.columns.prompt); the columns are 'prompt', 'n'"
    )


def test_a_file_of_another_file_system() -> None:
    with fsspec.open("memory://data/a.jsonl", "wt") as file:
        file.write(json.dumps(ROWS[0]))
    assert list(read("memory://data/a.jsonl")) == ROWS[:1]


def test_the_fingerprint_knows_bytes_and_selection_but_not_the_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    copy = write(tmp_path / "b.jsonl", ROWS)
    changed = write(tmp_path / "c.jsonl", [*ROWS[:-1], {"prompt": "question 4", "n": 40}])
    assert read(path).fingerprint == read(copy).fingerprint
    others = [
        read(changed),
        read(path, skip_rows=1),
        read(path, max_rows=4),
        read(path, skip_rows=1, max_rows=4),
        read(path, columns={"text": "prompt"}),
    ]
    assert len({rows.fingerprint for rows in [read(path), *others]}) == 6


BAD_FILES: list[tuple[str, str, str]] = [
    ("empty.jsonl", "", "data.path: '{path}' has no rows"),
    ("blank.jsonl", "\n\n", "data.path: '{path}' has no rows"),
    (
        "broken.jsonl",
        '{"n": 1}\n{"n": 2,,}\n',
        "{path}:2: not JSON: Expecting property name enclosed in double quotes at column 9; the line starts with '{\"n\": 2,,}'. "
        "Every line must be one JSON object",
    ),
    ("list.jsonl", '{"n": 1}\n[1, 2]\n', "{path}:2: a row must be a JSON object with columns, got a list [1, 2]"),
    ("text.jsonl", '"hello"\n', "{path}:1: a row must be a JSON object with columns, got text 'hello'"),
    ("null.jsonl", "null\n", "{path}:1: a row must be a JSON object with columns, got null"),
    (
        "pretty.json",
        '[\n{"n": 1}\n]\n',
        "{path}:1: not JSON: Expecting value at column 2; the line starts with '['. Every line must be one JSON object",
    ),
    (
        "a.txt",
        "hello",
        "data.path: a file must end in .jsonl, .jsonl.gz, .json, .json.gz, .ndjson, .ndjson.gz, .parquet, got '{path}'",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(UserError) as told:
        read(path)
    assert str(told.value) == message.replace("{path}", path)


def test_bytes_that_are_no_text_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not UTF-8: invalid start byte at byte 7"):
        read(str(path))


def test_a_line_left_out_is_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 'broken\n{"n": 1}\nbroken\n')
    assert read(path, skip_rows=1, max_rows=1)[0] == {"n": 1}


@pytest.mark.parametrize("cut", [30, 5])
def test_a_torn_gzip_file_is_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 50)[:cut])
    with pytest.raises(UserError, match=r"data\.path: cannot read '.*a\.jsonl\.gz': EOFError"):
        read(str(path))


def test_a_file_that_is_not_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b'{"n": 1}\n')
    with pytest.raises(UserError, match="Not a gzipped file"):
        read(str(path))


def test_a_file_that_is_not_parquet_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "nothing like it")
    with pytest.raises(UserError, match=r"a\.parquet' is not a Parquet file"):
        read(path)


@pytest.mark.parametrize(
    "path", ["missing.jsonl", "/nowhere/missing.jsonl.gz", "/nowhere/folder", "memory://none.jsonl"]
)
def test_a_missing_file_is_told(path: str) -> None:
    with pytest.raises(UserError, match=f"data.path: there is no file '{path}'"):
        read(path)


def test_a_selection_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match=r"data\.skip_rows: 5 leaves no row of "):
        read(path, skip_rows=5)


@pytest.mark.parametrize("name", ["squad", "someone/something"])
def test_a_dataset_that_the_hub_does_not_give_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str, **_: object) -> None:
        raise ConnectionError(f"couldn't reach {path!r} on the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=rf"data\.path: '{name}' is no file .*, data\.split 'train': ConnectionError: couldn't"
    ):
        read(name)


def test_a_split_that_a_dataset_has_not_is_told(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"cannot be loaded as a Hugging Face dataset, data\.split 'dev'"):
        read(str(tmp_path), split="dev")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_folder_is_read_by_the_library(tmp_path: Path, streaming: bool) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    rows = read(str(tmp_path), skip_rows=1, max_rows=2, streaming=streaming, columns={"prompt": "n"})
    assert list(rows) == [{"prompt": 1}, {"prompt": 2}]
    assert rows.where(0) == f"{tmp_path}, row 2"
    assert len(read(str(tmp_path), skip_rows=3, max_rows=9, streaming=streaming)) == 2
    with pytest.raises(UserError, match=r"data\.skip_rows: 5 leaves no row of "):
        read(str(tmp_path), skip_rows=5, max_rows=2, streaming=streaming)


def test_a_streamed_dataset_is_the_same_data(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    whole, streamed = (read(str(tmp_path), max_rows=3, streaming=streaming) for streaming in (False, True))
    assert list(streamed) == list(whole)
    assert streamed.fingerprint == whole.fingerprint


def test_a_file_is_not_streamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError) as told:
        read(path, streaming=True, max_rows=1)
    assert str(told.value) == f"data.streaming: is for Hugging Face datasets, got the file {path!r}; set it to false"


def test_a_value_of_the_right_kind(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.jsonl", ROWS))
    assert rows.value(2, "prompt", str) == "question 2"
    assert rows.value(2, "n", (str, int)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "x", "n": 1},
            "there is no column 'prompt' (data.prompt_column); the columns are 'question', 'n'",
        ),
        ({}, "there is no column 'prompt' (data.prompt_column); the columns are none"),
        ({"prompt": None}, "column 'prompt' must be text or a list, got null"),
        ({"prompt": 3.5}, "column 'prompt' must be text or a list, got a number 3.5"),
        ({"prompt": {"a": 1}}, "column 'prompt' must be text or a list, got an object {'a': 1}"),
        ({"prompt": {"a": "b" * 99}}, f"column 'prompt' must be text or a list, got an object {{'a': '{'b' * 50}..."),
    ],
)
def test_a_bad_column_is_told(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError) as told:
        read(path).value(0, "prompt", (str, list), key="data.prompt_column")
    assert str(told.value) == f"{path}:1: {message}"


def test_true_is_no_number(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.jsonl", [{"n": True}]))
    with pytest.raises(UserError, match="column 'n' must be a number, got true or false True"):
        rows.value(0, "n", int)
