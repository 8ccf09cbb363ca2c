"""Runs, their steps and the packages that they ran with."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the first tables."""
    op.create_table(
        "locks",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("packages", sa.JSON(), nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("part_of", sa.String(64), index=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("stage", sa.String(32), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("run_dir", sa.Text(), nullable=False, index=True),
        sa.Column("config_sha256", sa.String(64), nullable=False, index=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("overrides", sa.JSON(), nullable=False),
        sa.Column("code", sa.JSON(), nullable=False),
        sa.Column("lock_sha256", sa.String(64), nullable=False),
        sa.Column("machine", sa.JSON(), nullable=False),
        sa.Column("plan", sa.JSON(none_as_null=True)),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("parents", sa.JSON(), nullable=False),
        sa.Column("artefacts", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=False),
        sa.Column("sessions", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Float(53), index=True),
        sa.Column("ended_at", sa.Float(53)),
        sa.Column("active_s", sa.Float(53), nullable=False),
        sa.Column("gpu_s", sa.Float(53), nullable=False),
        sa.Column("heartbeat_at", sa.Float(53)),
    )
    op.create_table(
        "steps",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("step", sa.Integer(), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )
