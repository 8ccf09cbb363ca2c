"""Rows of a data file or hub dataset, each knowing the line it came from."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, TypeVar, overload

import fsspec

from actors.errors import UserError
from configs.schema.data import DataConfig

Row = dict[str, Any]

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".ndjson.gz")
PARQUET_SUFFIXES = (".parquet",)
FILE_SUFFIXES = JSON_SUFFIXES + PARQUET_SUFFIXES

T = TypeVar("T")

JSON_NAMES = {str: "text", list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Sequence[Row]):
    """The selected rows of one source, in its order."""

    source: str
    """`data.path` as it was given."""
    unit: str
    """What a place counts: `line` of a text file (blank lines included), `row` of anything else. Both from 1."""
    rows: tuple[Row, ...]
    places: tuple[int, ...]
    """Line or row number of each row."""
    fingerprint: str
    """sha256 of the file's bytes (a hub dataset: of its rows) and the selection. Not of the path: a copy elsewhere is the same data."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows[index]

    def where(self, index: int) -> str:
        """`file:line`, or `dataset, row n`."""
        place = self.places[index]
        return f"{self.source}:{place}" if self.unit == "line" else f"{self.source}, row {place}"

    def value(self, index: int, column: str, kinds: type[T] | tuple[type[T], ...], *, key: str | None = None) -> T:
        """Row `index`'s value in `column`, which must be of one of `kinds`.

        Raises:
            UserError: for a missing column (naming `key`, the config's key that asked for it, and the columns that there are) or a
                value of another kind.
        """
        row = self.rows[index]
        if column not in row:
            asked = f" ({key})" if key else ""
            raise UserError(
                f"{self.where(index)}: there is no column {column!r}{asked}; the columns are {', '.join(map(repr, row)) or 'none'}"
            )
        value = row[column]
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        # True is an int in Python and never one in a data file
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(dict.fromkeys(JSON_NAMES[kind] for kind in allowed))
            raise UserError(f"{self.where(index)}: column {column!r} must be {names}, got {shown(value)}")
        return value


def shown(value: object) -> str:
    """A value as an error names it: short, with its kind."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{JSON_NAMES.get(type(value), type(value).__name__)} {text if len(text) <= 60 else text[:57] + '...'}"


def read_rows(config: DataConfig) -> Rows:
    """The rows that `config` selects.

    `data.path` is a local file, a file that fsspec can open (`s3://...`), or the name of a Hugging Face dataset.

    Raises:
        UserError: one message with file and line for anything that is wrong with them.
    """
    path = config.path
    if "://" in path or os.path.isfile(path) or (path.endswith(FILE_SUFFIXES) and not os.path.isdir(path)):
        return _read_file(config)
    if os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1:
        if os.path.isdir(path):
            return _read_hub(config)
        raise UserError(f"data.path: there is no file {path!r} (in {os.getcwd()!r})")
    return _read_hub(config)


def _read_file(config: DataConfig) -> Rows:
    path = config.path
    if not path.endswith(FILE_SUFFIXES):
        raise UserError(f"data.path: a file must end in {', '.join(FILE_SUFFIXES)}, got {path!r}")
    try:
        filesystem, name = fsspec.core.url_to_fs(path)
        with filesystem.open(name, "rb") as file:
            digest = _digest_of_bytes(file)
            file.seek(0)
            if path.endswith(PARQUET_SUFFIXES):
                found = list(_parquet_rows(file, config))
            else:
                found = list(_json_rows(file, config))
    except FileNotFoundError as error:
        raise UserError(f"data.path: there is no file {path!r} (in {os.getcwd()!r})") from error
    except (OSError, EOFError, zlib.error, ImportError, ValueError) as error:
        raise UserError(f"data.path: cannot read {path!r}: {type(error).__name__}: {error}") from error
    return _select(config, "row" if path.endswith(PARQUET_SUFFIXES) else "line", found, digest)


def _digest_of_bytes(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _json_rows(file: IO[bytes], config: DataConfig) -> Iterator[tuple[int, Row]]:
    """(line, row) of the selected rows. A JSON array is not JSONL, and the first line of one says so."""
    stream = gzip.GzipFile(fileobj=file) if config.path.endswith(".gz") else file
    lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    for number, line in islice(lines, config.skip_rows, _stop(config)):
        yield number, _parse_line(line, f"{config.path}:{number}")


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


def _parquet_rows(file: IO[bytes], config: DataConfig) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise UserError(f"data.path: {config.path!r} is not a Parquet file: {error}") from error
    rows = table.slice(config.skip_rows, config.max_rows).to_pylist()
    yield from enumerate(rows, config.skip_rows + 1)


def _read_hub(config: DataConfig) -> Rows:
    """Through the `datasets` library: a hub dataset, or a folder that it can load."""
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UserError(
            f"data.path: {config.path!r} is not a file ({', '.join(FILE_SUFFIXES)}). To read it as a Hugging Face dataset, "
            "install the library: pip install datasets"
        ) from error
    try:
        dataset = datasets.load_dataset(config.path, split=config.split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"data.path: cannot load dataset {config.path!r}, data.split {config.split!r}: {type(error).__name__}: {error}"
        ) from error
    stop = len(dataset) if config.max_rows is None else min(len(dataset), config.skip_rows + config.max_rows)
    found = [(i + 1, dict(dataset[i])) for i in range(config.skip_rows, stop)]
    digest = hashlib.sha256(json.dumps([row for _, row in found], sort_keys=True, default=str).encode()).hexdigest()
    return _select(config, "row", found, digest)


def _stop(config: DataConfig) -> int | None:
    return None if config.max_rows is None else config.skip_rows + config.max_rows


def _select(config: DataConfig, unit: str, found: Sequence[tuple[int, Row]], digest: str) -> Rows:
    if not found:
        if config.skip_rows:
            raise UserError(f"data.skip_rows: {config.skip_rows} leaves no row of {config.path!r}")
        raise UserError(f"data.path: {config.path!r} has no rows")
    selection = f"{digest} {config.skip_rows} {config.max_rows}"
    return Rows(
        source=config.path,
        unit=unit,
        rows=tuple(row for _, row in found),
        places=tuple(place for place, _ in found),
        fingerprint=hashlib.sha256(selection.encode()).hexdigest(),
    )
