"""Models that were unloaded by request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every model that is there is to be served, as before."""
    op.add_column("models", sa.Column("unloaded", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Forgets what was unloaded."""
    op.drop_column("models", "unloaded")
