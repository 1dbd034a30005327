"""The schema, for SQLite and PostgreSQL alike. Migrations make it; a test holds the two against each other."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    false,
)
from sqlalchemy.dialects.postgresql import VARCHAR

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# Byte order on both, so that pages and snapshots come in the same order everywhere.
Name = String(63).with_variant(VARCHAR(63, collation="C"), "postgresql")
Digest = String(71).with_variant(VARCHAR(71, collation="C"), "postgresql")
KeyId = String(14).with_variant(VARCHAR(14, collation="C"), "postgresql")
DeviceKind = String(255).with_variant(VARCHAR(255, collation="C"), "postgresql")

# One row. Who writes locks it first, so that commits happen in the order of their revisions.
revisions = Table(
    "revisions",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="one_row"), primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    # Changes up to this revision are no longer held.
    Column("compacted", BigInteger, nullable=False),
)

# One row a commit: what it changed, as watchers are told. body: the object, compressed; null: a tombstone.
changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant", Name, nullable=False),
    # Null: the tenant itself.
    Column("name", Name),
    Column("tombstone", Boolean, nullable=False),
    Column("body", LargeBinary),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Name, primary_key=True),
    Column("reservation_millidevices", Integer, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", KeyId, primary_key=True),
    Column("tenant", Name, ForeignKey("tenants.name", ondelete="CASCADE"), nullable=False, index=True),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("created_at_us", BigInteger, nullable=False),
)

artefacts = Table(
    "artefacts",
    metadata,
    Column("digest", Digest, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
)

# Who has shown that it has an artefact's bytes. Nobody else learns whether the artefact is here.
artefact_owners = Table(
    "artefact_owners",
    metadata,
    Column("tenant", Name, ForeignKey("tenants.name", ondelete="CASCADE"), primary_key=True),
    Column("digest", Digest, ForeignKey("artefacts.digest"), primary_key=True),
    Column("uploaded_at_us", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("tenant", Name, ForeignKey("tenants.name"), primary_key=True),
    Column("name", Name, primary_key=True),
    Column("objective_us", BigInteger),
    Column("ratio_ppm", Integer, nullable=False),
    Column("window_s", BigInteger, nullable=False),
    Column("traffic_class", SmallInteger, nullable=False),
    Column("isolation", SmallInteger, nullable=False),
    Column("replicas", Integer, nullable=False),
    Column("last_version", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("unloaded", Boolean, nullable=False, server_default=false()),
)

versions = Table(
    "versions",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", Digest, ForeignKey("artefacts.digest"), nullable=False, index=True),
    Column("config", LargeBinary, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("inspection", SmallInteger, nullable=False),
    Column("inspection_message", Text, nullable=False),
    Column("signature", LargeBinary),
    ForeignKeyConstraint(["tenant", "name"], ["models.tenant", "models.name"], ondelete="CASCADE"),
)

profiles = Table(
    "profiles",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("device_kind", DeviceKind, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    ForeignKeyConstraint(
        ["tenant", "name", "version"],
        ["versions.tenant", "versions.name", "versions.version"],
        ondelete="CASCADE",
    ),
)

traffic_splits = Table(
    "traffic_splits",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("ppm", Integer, nullable=False),
    ForeignKeyConstraint(
        ["tenant", "name", "version"],
        ["versions.tenant", "versions.name", "versions.version"],
        ondelete="CASCADE",
    ),
)

# What a model is judged by.
model_slos = Table(
    "model_slos",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("slo", Name, primary_key=True),
    Column("objective_us", BigInteger),
    Column("ratio_ppm", Integer, nullable=False),
    Column("window_s", BigInteger, nullable=False),
    ForeignKeyConstraint(["tenant", "name"], ["models.tenant", "models.name"], ondelete="CASCADE"),
)
