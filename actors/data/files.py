"""Reads the rows of data files and hub datasets."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import IO, Any, Literal

import fsspec

from actors.data.mixing import mixed
from actors.data.rows import Indexed, Row, Rows, Source, only, place_name, renamed, shown
from actors.errors import UserError
from configs.schema.data import DataConfig, SourceConfig

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".ndjson.gz")
PARQUET_SUFFIXES = (".parquet",)
FILE_SUFFIXES = JSON_SUFFIXES + PARQUET_SUFFIXES

BLOCK = 1024
"""Rows of a column store that become Python objects at once."""


def read_rows(config: DataConfig) -> Rows:
    """The rows that `config` selects, its columns under our names; of a mixture, interleaved by weight (`actors.data.mixing`).

    A path is a local file, a file that fsspec can open (`s3://...`), or the name of a Hugging Face dataset.

    Raises:
        UserError: one message with file and line for anything that is wrong with them.
    """
    source = read_source(config, "data")
    if not config.mix:
        return only(source)
    others = [read_source(other, f"data.mix.{number}") for number, other in enumerate(config.mix)]
    return mixed([source, *others], [config.weight, *(other.weight for other in config.mix)])


def read_source(config: SourceConfig, key: str) -> Source:
    """The selected rows of one file or dataset. `key` is the path of `config` in the config, for errors."""
    path = config.path
    if "://" in path or os.path.isfile(path) or (path.endswith(FILE_SUFFIXES) and not os.path.isdir(path)):
        return _read_file(config, key)
    named_as_file = os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1
    if named_as_file and not os.path.isdir(path):
        raise UserError(f"{key}.path: there is no file {path!r} (in {os.getcwd()!r})")
    return _read_hub(config, key)


def _read_file(config: SourceConfig, key: str) -> Source:
    path = config.path
    if not path.endswith(FILE_SUFFIXES):
        raise UserError(f"{key}.path: a file must end in {', '.join(FILE_SUFFIXES)}, got {path!r}")
    if config.streaming:
        raise UserError(f"{key}.streaming: is for Hugging Face datasets, got the file {path!r}; set it to false")
    try:
        filesystem, name = fsspec.core.url_to_fs(path)
        with filesystem.open(name, "rb") as file:
            digest = _digest_of_bytes(file)
            file.seek(0)
            if path.endswith(PARQUET_SUFFIXES):
                return _parquet_source(file, config, key, digest)
            places, rows = [], []
            for number, row in _json_rows(file, config, key):
                places.append(number)
                rows.append(row)
    except FileNotFoundError as error:
        raise UserError(f"{key}.path: there is no file {path!r} (in {os.getcwd()!r})") from error
    except (OSError, EOFError, zlib.error, ImportError, ValueError) as error:
        raise UserError(f"{key}.path: cannot read {path!r}: {type(error).__name__}: {error}") from error
    return _source(config, key, "line", rows, places, digest)


def _digest_of_bytes(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------------- JSON


def _json_rows(file: IO[bytes], config: SourceConfig, key: str) -> Iterator[tuple[int, Row]]:
    """(line, row) of the selected rows. A JSON array is not JSONL, and the first line of one says so."""
    stream = gzip.GzipFile(fileobj=file) if config.path.endswith(".gz") else file
    lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    for number, line in islice(lines, config.skip_rows, _stop(config)):
        where = place_name(config.path, "line", number)
        yield number, renamed(_parse_line(line, where), config.columns, where=where, key=f"{key}.columns")


def _parse_line(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        text = line.decode("utf-8", "replace").strip()
        raise UserError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; the line starts with {text[:40]!r}. "
            "Every line must be one JSON object"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be a JSON object with columns, got {shown(row)}")
    return row


# -------------------------------------------------------------------------------------------------- Parquet and hub datasets


class ColumnRows:
    """The selected rows of a column store, in memory or mapped from disk; Python objects are made of one block of them at a time.

    The block is a cache: what a row is does not depend on what was read before it.
    """

    def __init__(self, read: Callable[[int, int], list[Row]], rows: range, config: SourceConfig, key: str) -> None:
        """`read` gives the store's rows from one number (from 0) up to another; `rows` are those selected."""
        self._read = read
        self._rows = rows
        self._config = config
        self._key = key
        self._block = range(0)
        self._found: list[Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = self._rows[index]
        if number not in self._block:
            self._block = range(number, min(number + BLOCK, self._rows.stop))
            self._found = self._read_block(self._block)
        return self._found[number - self._block.start]

    def _read_block(self, block: range) -> list[Row]:
        path = self._config.path
        try:
            found = self._read(block.start, block.stop)
        except (OSError, ValueError) as error:  # such as text that is not UTF-8
            raise UserError(
                f"{path}, rows {block.start + 1} to {block.stop}: cannot read them: {type(error).__name__}: {error}"
            ) from error
        return [
            renamed(row, self._config.columns, where=place_name(path, "row", number + 1), key=f"{self._key}.columns")
            for number, row in zip(block, found, strict=True)
        ]


def _parquet_source(file: IO[bytes], config: SourceConfig, key: str, digest: str) -> Source:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise UserError(f"{key}.path: {config.path!r} is not a Parquet file: {error}") from error

    def read(start: int, stop: int) -> list[Row]:
        found: list[Row] = table.slice(start, stop - start).to_pylist()
        return found

    selected = _selected(config, table.num_rows)
    return _source(config, key, "row", ColumnRows(read, selected, config, key), _numbers(selected), digest)


def _read_hub(config: SourceConfig, key: str) -> Source:
    """Through the `datasets` library: a hub dataset, or a folder that it can load. It stays on disk, mapped into memory."""
    import datasets  # type: ignore[import-untyped]  # here: it takes a second, which files need not wait for

    try:
        dataset = datasets.load_dataset(config.path, split=config.split, streaming=config.streaming)
        if config.streaming:
            return _streamed_source(dataset, config, key)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{key}.path: {config.path!r} is no file ({', '.join(FILE_SUFFIXES)}), and cannot be loaded as a Hugging Face dataset, "
            f"{key}.split {config.split!r}: {type(error).__name__}: {error}"
        ) from error
    table = dataset.with_format("arrow")

    def read(start: int, stop: int) -> list[Row]:
        found: list[Row] = table[start:stop].to_pylist()
        return found

    selected = _selected(config, len(dataset))
    rows = ColumnRows(read, selected, config, key)
    return _source(config, key, "row", rows, _numbers(selected), _digest_of_rows(rows[i] for i in range(len(rows))))


def _streamed_source(dataset: Iterable[Any], config: SourceConfig, key: str) -> Source:
    """The rows that are used, in memory; nothing behind them is fetched."""
    selected = range(config.skip_rows, _stop(config) or 0)
    rows = [
        renamed(dict(row), config.columns, where=place_name(config.path, "row", number + 1), key=f"{key}.columns")
        for number, row in zip(selected, islice(dataset, selected.start, selected.stop), strict=False)
    ]
    return _source(config, key, "row", rows, _numbers(selected)[: len(rows)], _digest_of_rows(rows))


def _digest_of_rows(rows: Iterable[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------- selection


def _stop(config: SourceConfig) -> int | None:
    return None if config.max_rows is None else config.skip_rows + config.max_rows


def _selected(config: SourceConfig, num_rows: int) -> range:
    """Numbers, from 0, of the selected rows of a store that knows how many it has."""
    return range(num_rows)[config.skip_rows : _stop(config)]


def _numbers(selected: range) -> range:
    """Numbers from 1, as people count."""
    return range(selected.start + 1, selected.stop + 1)


def _source(
    config: SourceConfig, key: str, unit: Literal["line", "row"], rows: Indexed, places: Sequence[int], digest: str
) -> Source:
    if not len(rows):
        if config.skip_rows:
            raise UserError(f"{key}.skip_rows: {config.skip_rows} leaves no row of {config.path!r}")
        raise UserError(f"{key}.path: {config.path!r} has no rows")
    selection = f"{digest} {config.skip_rows} {config.max_rows}"
    if config.columns:
        selection += f" {sorted(config.columns.items())}"
    return Source(
        path=config.path,
        unit=unit,
        rows=rows,
        places=places,
        num_skipped=config.skip_rows,
        fingerprint=hashlib.sha256(selection.encode()).hexdigest(),
    )
