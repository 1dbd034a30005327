"""Quotas, usage and prices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Name = sa.String(63).with_variant(VARCHAR(63, collation="C"), "postgresql")
DeviceKind = sa.String(255).with_variant(VARCHAR(255, collation="C"), "postgresql")
COUNTS = ("device_ns", "compute_unit_ns", "requests", "batches", "bytes_in", "bytes_out")


def counts() -> list[sa.Column[int]]:
    """One column a count."""
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS]


def upgrade() -> None:
    """Nobody is limited, as before; what was used before is not known here, and is told by executors' books."""
    op.create_table(
        "quotas",
        sa.Column("tenant", Name, nullable=False),
        sa.Column("millirequests_per_s", sa.BigInteger),
        sa.Column("burst", sa.Integer, nullable=False),
        sa.Column("concurrent_requests", sa.Integer),
        sa.Column("device_ms", sa.BigInteger),
        sa.Column("device_interval_s", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger),
        sa.Column("stored_bytes", sa.BigInteger),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_quotas")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_quotas_tenant"), ondelete="CASCADE"),
    )
    op.create_table(
        "usage_books",
        sa.Column("executor_id", sa.String(255), nullable=False),
        sa.Column("book", sa.String(255), nullable=False),
        sa.Column("tenant", Name, nullable=False),
        *counts(),
        sa.Column("told_at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("executor_id", "book", "tenant", name=op.f("pk_usage_books")),
    )
    op.create_table(
        "usage_models",
        sa.Column("executor_id", sa.String(255), nullable=False),
        sa.Column("book", sa.String(255), nullable=False),
        sa.Column("tenant", Name, nullable=False),
        sa.Column("model", Name, nullable=False),
        sa.Column("life", sa.BigInteger, autoincrement=False, nullable=False),
        *counts(),
        sa.PrimaryKeyConstraint("executor_id", "book", "tenant", "model", "life", name=op.f("pk_usage_models")),
    )
    op.create_table(
        "usage_hours",
        sa.Column("tenant", Name, nullable=False),
        sa.Column("model", Name, nullable=False),
        sa.Column("hour", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("device_kind", DeviceKind, nullable=False),
        sa.Column("device_units", sa.Integer, autoincrement=False, nullable=False),
        *counts(),
        sa.PrimaryKeyConstraint("tenant", "model", "hour", "device_kind", "device_units", name=op.f("pk_usage_hours")),
    )
    op.create_table(
        "prices",
        sa.Column("device_kind", DeviceKind, nullable=False),
        sa.Column("hour", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("price_nanos", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("device_kind", "hour", name=op.f("pk_prices")),
    )


def downgrade() -> None:
    """Forgets quotas, prices, and what was used."""
    for table in ("prices", "usage_hours", "usage_models", "usage_books", "quotas"):
        op.drop_table(table)
