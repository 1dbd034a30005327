"""Roles and ends of keys, models shared with other tenants, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def text(length: int) -> sa.types.TypeEngine[str]:
    """Bounded text in byte order."""
    return sa.String(length).with_variant(VARCHAR(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Keys that are there may go on doing all that they could: they are administrators'."""
    op.add_column("api_keys", sa.Column("role", sa.SmallInteger, nullable=False, server_default="2"))
    op.add_column("api_keys", sa.Column("expires_at_us", sa.BigInteger))
    op.create_table(
        "model_grants",
        sa.Column("tenant", text(63), primary_key=True),
        sa.Column("name", text(63), primary_key=True),
        sa.Column("grantee", text(63), primary_key=True),
        sa.ForeignKeyConstraint(
            ["tenant", "name"], ["models.tenant", "models.name"], ondelete="CASCADE", name="fk_model_grants_tenant"
        ),
    )
    op.create_table(
        "audit",
        # SQLite numbers rows by itself where the column is its own INTEGER alone.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("actor_tenant", text(63), nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("tenant", text(63), nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_audit_tenant", "audit", ["tenant", "id"])


def downgrade() -> None:
    """Forgets them."""
    op.drop_table("audit")
    op.drop_table("model_grants")
    with op.batch_alter_table("api_keys") as batch:
        batch.drop_column("expires_at_us")
        batch.drop_column("role")
