"""The tables. A change here needs a migration in `versions`; a test compares the two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

REVISION = "0001"
"""The newest migration: what a registry must be at."""


class Base(DeclarativeBase):
    """Of all tables."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own name for it
        dict[str, Any]: JSON(),
        list[dict[str, Any]]: JSON(),
        list[str]: JSON(),
        dict[str, str]: JSON(),
        dict[str, float]: JSON(),
        float: Float(53),
    }


class LockRow(Base):
    """A set of installed packages, kept once."""

    __tablename__ = "locks"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    packages: Mapped[dict[str, str]]


class RunRow(Base):
    """A run; the fields are those of `RunRecord`."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    part_of: Mapped[str | None] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    error: Mapped[str] = mapped_column(Text)
    run_dir: Mapped[str] = mapped_column(Text, index=True)
    config_sha256: Mapped[str] = mapped_column(String(64), index=True)
    config: Mapped[dict[str, Any]]
    overrides: Mapped[list[str]]
    code: Mapped[dict[str, str]]
    lock_sha256: Mapped[str] = mapped_column(String(64))
    machine: Mapped[dict[str, Any]]
    plan: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    data: Mapped[dict[str, str]]
    models: Mapped[dict[str, Any]]
    parents: Mapped[list[dict[str, Any]]]
    artefacts: Mapped[list[dict[str, Any]]]
    metrics: Mapped[dict[str, float]]
    num_steps: Mapped[int] = mapped_column(Integer)
    sessions: Mapped[list[dict[str, Any]]]
    started_at: Mapped[float | None] = mapped_column(Float(53), index=True)
    ended_at: Mapped[float | None] = mapped_column(Float(53))
    active_s: Mapped[float]
    gpu_s: Mapped[float]
    heartbeat_at: Mapped[float | None] = mapped_column(Float(53))
    """The database's own clock when its driver last wrote; a running run without one for long is lost."""


class StepRow(Base):
    """A step of a run, or an evaluation after it."""

    __tablename__ = "steps"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    metrics: Mapped[dict[str, float]]
    digest: Mapped[str] = mapped_column(String(64))
