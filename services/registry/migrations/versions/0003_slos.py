"""Objectives that models are judged by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No model has any yet: it is judged by what it promises."""
    name = sa.String(63).with_variant(VARCHAR(63, collation="C"), "postgresql")
    op.create_table(
        "model_slos",
        sa.Column("tenant", name, primary_key=True),
        sa.Column("name", name, primary_key=True),
        sa.Column("slo", name, primary_key=True),
        sa.Column("objective_us", sa.BigInteger),
        sa.Column("ratio_ppm", sa.Integer, nullable=False),
        sa.Column("window_s", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "name"], ["models.tenant", "models.name"], ondelete="CASCADE", name="fk_model_slos_tenant"
        ),
    )


def downgrade() -> None:
    """Forgets them."""
    op.drop_table("model_slos")
