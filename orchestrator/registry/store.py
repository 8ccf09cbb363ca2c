"""The registry itself: runs in and out of a database. Safe for many writers; every wait has an end."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import Any, Self

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, literal_column, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from actors.errors import UserError
from orchestrator.registry.address import Address
from orchestrator.registry.migrate import check_version, upgrade, version_of
from orchestrator.registry.records import RunRecord, StepRecord, WholeRun
from orchestrator.registry.tables import Base, LockRow, RunRow, StepRow

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for the others."""
STATEMENT_TIMEOUT_S = 60.0
SERVER_SETTINGS: dict[str, str | int] = {
    "options": f"-c statement_timeout={round(STATEMENT_TIMEOUT_S * 1000)} -c lock_timeout={round(BUSY_TIMEOUT_S * 1000)}",
    # a machine that is gone says nothing: after some 40 s without a sign of it the connection fails, and not after hours
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
}
"""Of a connection to PostgreSQL, in libpq's words, where its address does not say otherwise."""
LOST_AFTER_S = 120.0
"""A running run whose driver has not written for so long is shown as lost."""
ROWS_AT_ONCE = 500
IMMEDIATE = "begin_immediate"
COLUMNS = tuple(one.name for one in fields(RunRecord))


class Registry:
    """An open registry. Use it from one thread at a time."""

    def __init__(self, address: Address, *, create: bool = True) -> None:
        """Opens it; brings it to this version's tables, or makes it. With `create=False` a SQLite file that is not there is no registry.

        Raises:
            UserError: not there, not reachable, no rights, or made by a newer version.
        """
        self.address = address
        file = address.file
        if file is not None and not file.exists():
            if not create:
                raise UserError(f"registry {address}: there is none yet; the first `preceptor run` makes it")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"registry {address}: {file.parent} can't be made ({error.strerror})") from error
        self._engine = _engine(address)
        with self._told():
            with self._engine.connect() as connection:
                current = check_version(version_of(connection), str(address))
            if not current:
                with self._writing() as connection:
                    upgrade(connection, str(address))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the connections go."""
        self._engine.dispose()

    # -- in

    def put(self, run: RunRecord, *, packages: Mapping[str, str] | None = None, alive: bool = False) -> None:
        """Adds a run, or brings what is known of it up to date. `alive`: its own driver says so."""
        with self._told(), self._writing() as connection:
            if packages:
                _upsert(connection, LockRow, [{"sha256": run.lock_sha256, "packages": dict(packages)}])
            row = {**asdict(run), "error": run.error.replace("\0", "")}
            if alive:
                row["heartbeat_at"] = _now(connection)
            _upsert(connection, RunRow, [row])

    def put_steps(self, run_id: str, steps: Iterable[StepRecord]) -> None:
        """Adds steps of a run that is there."""
        rows = [{"run_id": run_id, **asdict(step)} for step in steps]
        with self._told(), self._writing() as connection:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                _upsert(connection, StepRow, rows[start : start + ROWS_AT_ONCE])

    def advance(self, run_id: str, metrics: Mapping[str, float], num_steps: int, *, state: str = "running") -> None:
        """Says that a run's driver lives, and where it stands."""
        with self._told(), self._writing() as connection:
            connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id)
                .values(metrics=dict(metrics), num_steps=num_steps, state=state, heartbeat_at=_now(connection))
            )

    # -- out

    def runs(
        self, *, stages: bool, stage: str | None = None, under: str | None = None, part_of: str | None = None
    ) -> list[RunRecord]:
        """Runs, the newest first. `stages`: also those that are part of a pipeline."""
        query = select(RunRow).order_by(RunRow.started_at.desc(), RunRow.id)
        if part_of is not None:
            query = query.where(RunRow.part_of == part_of)
        elif not stages:
            query = query.where(RunRow.part_of.is_(None))
        if stage is not None:
            query = query.where(RunRow.stage == stage)
        if under is not None:
            below = under.rstrip("/") + "/"
            query = query.where(or_(RunRow.run_dir == under, RunRow.run_dir.startswith(below, autoescape=True)))
        with self._told(), self._engine.connect() as connection:
            now = connection.execute(select(_now(connection))).scalar_one()
            return [
                _record(dict(row._mapping), now)
                for row in connection.execute(query.with_only_columns(*RunRow.__table__.c))
            ]

    def find(self, prefix: str) -> WholeRun:
        """The run whose id begins so.

        Raises:
            UserError: none, or several.
        """
        with self._told(), self._engine.connect() as connection:
            now = connection.execute(select(_now(connection))).scalar_one()
            query = select(*RunRow.__table__.c).where(RunRow.id.startswith(prefix, autoescape=True)).limit(6)
            found = [_record(dict(row._mapping), now) for row in connection.execute(query)]
            if len(found) != 1:
                several = (
                    f"those of {', '.join(one.id[:12] for one in found[:5])} begin so" if found else "no run has it"
                )
                raise UserError(
                    f"RUN: got {prefix!r}, and {several}; allowed: the beginning of one run's id in {self.address} (`preceptor runs` lists "
                    "them), or a run directory"
                )
            (run,) = found
            steps = connection.execute(
                select(*StepRow.__table__.c).where(StepRow.run_id == run.id).order_by(StepRow.step, StepRow.kind)
            )
            lock = connection.execute(select(LockRow.packages).where(LockRow.sha256 == run.lock_sha256)).scalar()
            return WholeRun(
                run=run,
                steps=tuple(
                    StepRecord(step=row.step, kind=row.kind, metrics=row.metrics, digest=row.digest) for row in steps
                ),
                packages=lock or {},
            )

    def num_steps(self, run_id: str) -> int:
        """Steps of a run that are stored."""
        query = select(func.count()).where(StepRow.run_id == run_id, StepRow.kind == "step")
        with self._told(), self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    # -- how

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.execution_options(**{IMMEDIATE: True}).begin() as connection:
            yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What a database says against us, in one message without a password."""
        try:
            yield
        except SQLAlchemyError as error:
            said = str(error.orig) if isinstance(error, DBAPIError) else str(error)
            text = " ".join(self.address.without_password(said).split())
            raise RegistryError(f"registry {self.address} can't be used: {text}") from error


class RegistryError(UserError):
    """The database does not answer, or refuses."""


def _engine(address: Address) -> Engine:
    if address.file is None:
        given = {name: value for name, value in SERVER_SETTINGS.items() if name not in address.url.query}
        return create_engine(address.url, pool_pre_ping=True, connect_args=given)
    engine = create_engine(address.url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    """Readers do not wait for writers (WAL). Two that switch at once get "locked" from one another, whatever the timeout."""
    # we begin transactions ourselves: a reader that begins to write would be refused, and not wait
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(IMMEDIATE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _upsert(connection: Connection, row: type[Base], values: Sequence[dict[str, Any]]) -> None:
    """Rows in, whether they are there or not, also where another writer puts them in at the same moment."""
    table = row.__table__
    assert isinstance(table, Table)
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    keys = [column.name for column in table.primary_key]
    changed = {name: insert.excluded[name] for name in values[0] if name not in keys} if values else {}
    if values:
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed).values(list(values)))


def _now(connection: Connection) -> Any:
    """The database's clock, in seconds since 1970: those of several hosts may differ."""
    if connection.dialect.name == "postgresql":
        return literal_column("extract(epoch from clock_timestamp())::double precision")
    return literal_column("(julianday('now') - 2440587.5) * 86400.0")


def _record(row: Mapping[str, Any], now: float) -> RunRecord:
    run = RunRecord(**{name: row[name] for name in COLUMNS})
    beat = row["heartbeat_at"]
    return (
        replace(run, state="lost") if run.state == "running" and beat is not None and now - beat > LOST_AFTER_S else run
    )
