"""Every test of the registry runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from orchestrator.registry.address import Address, address_of
from tests.orchestrator.registry.postgres import running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    # pytest's own folders are closed to other users
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        with running_postgres(folder) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """URL of a database of its own."""
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.removesuffix("/postgres") + f"/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty registry."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def address(url: str, monkeypatch: pytest.MonkeyPatch) -> Address:
    """As the environment names it."""
    monkeypatch.setenv("PRECEPTOR_REGISTRY", url)
    found = address_of()
    assert found is not None
    return found
