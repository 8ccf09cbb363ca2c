"""Which registry: `--registry URL`, else `PRECEPTOR_REGISTRY`, else a SQLite file of the user's. `off` is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.errors import UserError
from orchestrator.surroundings import home_is_lost

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

VARIABLE = "PRECEPTOR_REGISTRY"
OPTION = "--registry"
OFF = "off"
ALLOWED = "allowed: sqlite:////folder/file.db, postgresql://user@host/database, or off"
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "sqlite": "sqlite"}
CONNECT_TIMEOUT_S = 10
SECRET_PARAMETERS = ("password", "sslpassword")
"""Of an address's query, in libpq's words."""
HIDDEN = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Of a registry. Its text has no password."""

    url: URL

    def __str__(self) -> str:
        hidden = {name: "hidden" for name in SECRET_PARAMETERS if name in self.url.query}
        shown = self.url.set(drivername=self.url.get_backend_name()).update_query_dict(hidden)
        return shown.render_as_string(hide_password=True)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What nobody may read."""
        texts = [self.url.password, *(self.url.normalized_query.get(name, ()) for name in SECRET_PARAMETERS)]
        return tuple(
            str(one) for text in texts if text for one in (text if isinstance(text, tuple | list) else (text,))
        )

    @property
    def file(self) -> Path | None:
        """Of SQLite."""
        return Path(self.url.database or "") if self.url.get_backend_name() == "sqlite" else None

    def without_password(self, text: str) -> str:
        """A library's message, for people."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text


def address_of(option: str | None = None) -> Address | None:
    """The registry to use; None where there shall be none.

    Raises:
        UserError: no such kind of database, or a password on the command line.
    """
    if option is not None:
        address = _parse(option, OPTION)
        if address is not None and address.secrets:
            raise UserError(
                f"{OPTION}: got an address with a password, which the shell's history and the process list would show; allowed: one "
                f"without, and the password in {VARIABLE}=postgresql://user:password@host/database, PGPASSWORD or ~/.pgpass"
            )
        return address
    return _parse(os.environ.get(VARIABLE) or f"sqlite:///{default_file()}", VARIABLE)


def address_for_run(option: str | None, note: Callable[[str], None]) -> Address | None:
    """The registry that a run notes itself in. Where nothing names one, and a file of the home folder would be lost, there is none, which
    `note` is told.

    Raises:
        UserError: as `address_of` does.
    """
    if option is None and not os.environ.get(VARIABLE) and home_is_lost():
        note(
            f"registry: none, for {VARIABLE} is not set on this node, whose home folder nobody looks in; afterwards `preceptor runs --sync "
            "RUN_DIR` reads the run into yours"
        )
        return None
    return address_of(option)


def default_file() -> Path:
    """Where the user's own registry is."""
    data = os.environ.get("XDG_DATA_HOME", "")
    folder = Path(data) if os.path.isabs(data) else Path.home() / ".local" / "share"
    return folder / "preceptor" / "registry.db"


def _parse(text: str, source: str) -> Address | None:
    if text == OFF:
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise UserError(f"{source}: what was got is no address of a database; {ALLOWED}") from None
    driver = DRIVERS.get(url.drivername, url.drivername)
    if driver not in DRIVERS.values():
        raise UserError(f"{source}: got a database of kind {url.drivername!r}; {ALLOWED}")
    if driver == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UserError(f"{source}: got {text!r}, which names no file; {ALLOWED}")
        return Address(url=url.set(drivername=driver, database=str(Path(url.database).absolute())))
    if not url.database:
        raise UserError(f"{source}: got an address without a database's name; {ALLOWED}")
    timeout = {} if "connect_timeout" in url.query else {"connect_timeout": str(CONNECT_TIMEOUT_S)}
    return Address(url=url.set(drivername=driver).update_query_dict(timeout))
