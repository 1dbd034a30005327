"""Who signs a tenant's artefacts, and the signature of a version's artefact."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def text(length: int) -> sa.types.TypeEngine[str]:
    """Bounded text in byte order."""
    return sa.String(length).with_variant(VARCHAR(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Nobody's artefacts need a signature until an operator says so."""
    op.add_column("versions", sa.Column("artefact_signature", sa.LargeBinary))
    op.create_table(
        "tenant_signers",
        sa.Column(
            "tenant",
            text(63),
            sa.ForeignKey("tenants.name", ondelete="CASCADE", name="fk_tenant_signers_tenant"),
            primary_key=True,
        ),
        sa.Column("signer", text(71), primary_key=True),
        sa.Column("pem", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Forgets them."""
    op.drop_table("tenant_signers")
    with op.batch_alter_table("versions") as batch:
        batch.drop_column("artefact_signature")
