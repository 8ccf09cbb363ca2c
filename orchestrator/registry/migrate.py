"""A registry brought to this version's tables, by Alembic, whoever else starts at the same moment."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from actors.errors import UserError
from orchestrator.registry.tables import REVISION

FOLDER = Path(__file__).resolve().parent
LOCK_KEY = 0x9D7E_C3B0
"""Of PostgreSQL's advisory lock that migrations take: any number that nobody else uses."""


def version_of(connection: Connection) -> str | None:
    """The newest migration that a registry has; None where it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return str(found) if found is not None else None


def check_version(version: str | None, where: str) -> bool:
    """True where the registry is as this version has it, False where it is older or empty.

    Raises:
        UserError: where a newer Preceptor made it.
    """
    known = [path.name[1:5] for path in (FOLDER / "versions").glob("v*.py")]
    if version is not None and version not in known:
        raise UserError(
            f"registry {where}: got version {version}, which a newer Preceptor made; allowed: versions up to {REVISION}. Upgrade "
            "Preceptor, or use another registry"
        )
    return version == REVISION


def upgrade(connection: Connection, where: str) -> None:
    """Applies what is missing, within the connection's transaction: all of it or nothing.

    The transaction keeps others out: SQLite's has the write lock from its beginning, PostgreSQL's takes an advisory lock here.

    Raises:
        UserError: where a newer Preceptor made the registry.
    """
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    if check_version(version_of(connection), where):
        return  # another one was faster
    script = ScriptDirectory(str(FOLDER))
    # as Alembic's own `upgrade` command does it, without the `env.py` that a command line needs
    steps = EnvironmentContext(Config(), script, fn=lambda version, _: script._upgrade_revs("head", version))
    with steps:
        steps.configure(connection=connection, target_metadata=None)
        steps.run_migrations()
