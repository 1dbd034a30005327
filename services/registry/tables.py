"""The schema, for SQLite and PostgreSQL alike. Migrations make it; a test holds the two against each other."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
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
    # As on the wire: apportion.v1.KeyRole.
    Column("role", SmallInteger, nullable=False, server_default="2"),
    Column("expires_at_us", BigInteger),
)

# Who signs a tenant's artefacts; none: they need no signature.
tenant_signers = Table(
    "tenant_signers",
    metadata,
    Column("tenant", Name, ForeignKey("tenants.name", ondelete="CASCADE"), primary_key=True),
    Column("signer", Digest, primary_key=True),
    Column("pem", Text, nullable=False),
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
    # Who made the artefact, as pushed; null: nobody says.
    Column("artefact_signature", LargeBinary),
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

# Tenants that may read and run a model beside its owner. By name: there need not be such a tenant.
model_grants = Table(
    "model_grants",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("grantee", Name, primary_key=True),
    ForeignKeyConstraint(["tenant", "name"], ["models.tenant", "models.name"], ondelete="CASCADE"),
)

# One row a change, written with it: see AuditEntry. No foreign keys: it outlives what it tells of.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("actor_tenant", Name, nullable=False),
    Column("action", Text, nullable=False),
    Column("tenant", Name, nullable=False),
    Column("object", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Index("ix_audit_tenant", "tenant", "id"),
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

# What a tenant may use; null: not limited. A tenant without a row is not limited at all.
quotas = Table(
    "quotas",
    metadata,
    Column("tenant", Name, ForeignKey("tenants.name", ondelete="CASCADE"), primary_key=True),
    Column("millirequests_per_s", BigInteger),
    Column("burst", Integer, nullable=False),
    Column("concurrent_requests", Integer),
    Column("device_ms", BigInteger),
    Column("device_interval_s", Integer, nullable=False),
    Column("memory_bytes", BigInteger),
    Column("stored_bytes", BigInteger),
)


def _counts() -> list[Column[int]]:
    names = ("device_ns", "compute_unit_ns", "requests", "batches", "bytes_in", "bytes_out")
    return [Column(name, BigInteger, nullable=False) for name in names]


# The most that was told under each name of counts, of a tenant in all. No tenant's removal takes what it used away.
usage_books = Table(
    "usage_books",
    metadata,
    Column("executor_id", String(255), primary_key=True),
    Column("book", String(255), primary_key=True),
    Column("tenant", Name, primary_key=True),
    *_counts(),
    Column("told_at_us", BigInteger, nullable=False),
)

# The same by model, as far as models are told apart.
usage_models = Table(
    "usage_models",
    metadata,
    Column("executor_id", String(255), primary_key=True),
    Column("book", String(255), primary_key=True),
    Column("tenant", Name, primary_key=True),
    Column("model", Name, primary_key=True),
    Column("life", BigInteger, primary_key=True, autoincrement=False),
    *_counts(),
)

# What was used, by the hour in which it was told. hour: hours since 1970 UTC. model "": not told apart any more.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("model", Name, primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("device_kind", DeviceKind, primary_key=True),
    Column("device_units", Integer, primary_key=True, autoincrement=False),
    *_counts(),
)

# What a device-second costs from an hour on. device_kind "": kinds without a price of their own.
prices = Table(
    "prices",
    metadata,
    Column("device_kind", DeviceKind, primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("price_nanos", BigInteger, nullable=False),
)
