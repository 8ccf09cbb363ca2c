"""Rows of data, each knowing the file and line that it came from.

Neither these nor the datasets made of them have a position that moves: a row is a function of its index, an epoch's order one of seed
and epoch (`actors.data.order`, `orchestrator.batching`). So the step's number, which the ledger has, is the whole cursor of a resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, overload

from actors.errors import UserError

Row = dict[str, Any]

T = TypeVar("T")

JSON_NAMES = {str: "text", list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}


class Indexed(Protocol):
    """Rows by number: all in memory, or read when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The selected rows of one file or dataset, in its order."""

    path: str
    """As it was given."""
    unit: Literal["line", "row"]
    """What a place counts: `line` of a text file (blank lines included), `row` of anything else. Both from 1."""
    rows: Indexed
    places: Sequence[int]
    """Line or row number of each row."""
    num_skipped: int
    """Rows before the first of these."""
    fingerprint: str
    """sha256 of the file's bytes (a hub dataset: of its rows) and the selection. Not of the path: a copy elsewhere is the same data."""

    def where(self, index: int) -> str:
        """`file:line`, or `dataset, row n`."""
        return place_name(self.path, self.unit, self.places[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Sequence[Row]):
    """The rows of one source in its order, or of several interleaved."""

    sources: tuple[Source, ...]
    picks: Sequence[tuple[int, int]]
    """Of each row, which source it is from and which of its rows."""
    fingerprint: str
    """sha256 of all sources' fingerprints and weights."""

    def __len__(self) -> int:
        return len(self.picks)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source, row = self.picks[index]
        return self.sources[source].rows[row]

    @property
    def paths(self) -> str:
        """All sources, as an error names them."""
        return ", ".join(repr(source.path) for source in self.sources)

    def where(self, index: int) -> str:
        """`file:line`, or `dataset, row n`."""
        source, row = self.picks[index]
        return self.sources[source].where(row)

    def row_id(self, index: int) -> str:
        """The row's number in its file, from 0: the same whatever is skipped. A mixture's further sources put theirs first: `1:17`."""
        source, row = self.picks[index]
        number = self.sources[source].num_skipped + row
        return f"{source}:{number}" if source else str(number)

    def value(self, index: int, column: str, kinds: type[T] | tuple[type[T], ...], *, key: str | None = None) -> T:
        """Row `index`'s value in `column`, which must be of one of `kinds`.

        Raises:
            UserError: for a missing column (naming `key`, the config's key that asked for it, and the columns that there are) or a
                value of another kind.
        """
        row = self[index]
        if column not in row:
            raise UserError(missing_column(self.where(index), column, key, row))
        value = row[column]
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        # True is an int in Python and never one in a data file
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(dict.fromkeys(JSON_NAMES[kind] for kind in allowed))
            raise UserError(f"{self.where(index)}: column {column!r} must be {names}, got {shown(value)}")
        return value


def place_name(path: str, unit: str, place: int) -> str:
    """`file:line`, or `dataset, row n`."""
    return f"{path}:{place}" if unit == "line" else f"{path}, row {place}"


def shown(value: object) -> str:
    """A value as an error names it: short, with its kind."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{JSON_NAMES.get(type(value), type(value).__name__)} {text if len(text) <= 60 else text[:57] + '...'}"


def missing_column(where: str, column: str, key: str | None, row: Row) -> str:
    """What a user is told of a row without a column that `key` asks for."""
    asked = f" ({key})" if key else ""
    return f"{where}: there is no column {column!r}{asked}; the columns are {', '.join(map(repr, row)) or 'none'}"


def renamed(row: Row, columns: Mapping[str, str], *, where: str, key: str) -> Row:
    """The row with our names for its columns; a column of its own that has one of our names gives way.

    Args:
        columns: Our name to the row's.
        key: The config's key of `columns`, for errors.

    Raises:
        UserError: naming `where`, for a column that the row does not have.
    """
    for ours, theirs in columns.items():
        if theirs not in row:
            raise UserError(missing_column(where, theirs, f"{key}.{ours}", row))
    taken = set(columns.values())
    others = {name: value for name, value in row.items() if name not in taken and name not in columns}
    return {**{ours: row[theirs] for ours, theirs in columns.items()}, **others}


def only(source: Source) -> Rows:
    """One source's rows, in its order."""
    return Rows(
        sources=(source,), picks=tuple((0, row) for row in range(len(source.rows))), fingerprint=source.fingerprint
    )
