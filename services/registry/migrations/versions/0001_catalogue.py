"""Tenants, keys, artefacts, models, versions, and the changes that watchers follow."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def text(length: int) -> sa.types.TypeEngine[str]:
    """Bounded text in byte order."""
    return sa.String(length).with_variant(VARCHAR(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Makes everything."""
    revisions_and_changes()
    tenants_and_keys()
    artefacts()
    models_and_versions()
    profiles_and_traffic()


def revisions_and_changes() -> None:
    """The counter, at 0, and the changes."""
    counter = op.create_table(
        "revisions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("compacted", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_revisions_one_row"),
    )
    op.bulk_insert(counter, [{"id": 1, "revision": 0, "compacted": 0}])
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", text(63), nullable=False),
        sa.Column("name", text(63)),
        sa.Column("tombstone", sa.Boolean, nullable=False),
        sa.Column("body", sa.LargeBinary),
    )


def tenants_and_keys() -> None:
    """Who there is."""
    op.create_table(
        "tenants",
        sa.Column("name", text(63), primary_key=True),
        sa.Column("reservation_millidevices", sa.Integer, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", text(14), primary_key=True),
        sa.Column(
            "tenant",
            text(63),
            sa.ForeignKey("tenants.name", ondelete="CASCADE", name="fk_api_keys_tenant"),
            nullable=False,
        ),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"])


def artefacts() -> None:
    """What is stored, and who has it."""
    op.create_table(
        "artefacts",
        sa.Column("digest", text(71), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "artefact_owners",
        sa.Column(
            "tenant",
            text(63),
            sa.ForeignKey("tenants.name", ondelete="CASCADE", name="fk_artefact_owners_tenant"),
            primary_key=True,
        ),
        sa.Column(
            "digest", text(71), sa.ForeignKey("artefacts.digest", name="fk_artefact_owners_digest"), primary_key=True
        ),
        sa.Column("uploaded_at_us", sa.BigInteger, nullable=False),
    )


def models_and_versions() -> None:
    """What is served."""
    op.create_table(
        "models",
        sa.Column("tenant", text(63), sa.ForeignKey("tenants.name", name="fk_models_tenant"), primary_key=True),
        sa.Column("name", text(63), primary_key=True),
        sa.Column("objective_us", sa.BigInteger),
        sa.Column("ratio_ppm", sa.Integer, nullable=False),
        sa.Column("window_s", sa.BigInteger, nullable=False),
        sa.Column("traffic_class", sa.SmallInteger, nullable=False),
        sa.Column("isolation", sa.SmallInteger, nullable=False),
        sa.Column("replicas", sa.Integer, nullable=False),
        sa.Column("last_version", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("tenant", text(63), primary_key=True),
        sa.Column("name", text(63), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", text(71), sa.ForeignKey("artefacts.digest", name="fk_versions_digest"), nullable=False),
        sa.Column("config", sa.LargeBinary, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("inspection", sa.SmallInteger, nullable=False),
        sa.Column("inspection_message", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary),
        sa.ForeignKeyConstraint(
            ["tenant", "name"], ["models.tenant", "models.name"], ondelete="CASCADE", name="fk_versions_tenant"
        ),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])


def profiles_and_traffic() -> None:
    """What hangs on a version."""
    for table, *columns in (
        (
            "profiles",
            sa.Column("device_kind", text(255), primary_key=True),
            sa.Column("body", sa.LargeBinary, nullable=False),
        ),
        ("traffic_splits", sa.Column("ppm", sa.Integer, nullable=False)),
    ):
        op.create_table(
            table,
            sa.Column("tenant", text(63), primary_key=True),
            sa.Column("name", text(63), primary_key=True),
            sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
            *columns,
            sa.ForeignKeyConstraint(
                ["tenant", "name", "version"],
                ["versions.tenant", "versions.name", "versions.version"],
                ondelete="CASCADE",
                name=f"fk_{table}_tenant",
            ),
        )


def downgrade() -> None:
    """Removes everything."""
    for table in (
        "traffic_splits",
        "profiles",
        "versions",
        "models",
        "artefact_owners",
        "artefacts",
        "api_keys",
        "tenants",
        "changes",
        "revisions",
    ):
        op.drop_table(table)
