"""Records out of rows and into rows. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, and_, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.core.records import (
    Inspection,
    Isolation,
    Key,
    KeyRole,
    Model,
    NamedSlo,
    Quota,
    Slo,
    Tenant,
    TrafficClass,
    Version,
)
from services.registry.tables import (
    api_keys,
    artefact_owners,
    artefacts,
    model_grants,
    model_slos,
    models,
    profiles,
    quotas,
    tenant_signers,
    tenants,
    traffic_splits,
    versions,
)

# Objects read at once: bounds the memory of a listing.
STRIDE = 100


async def tenant(connection: AsyncConnection, name: str) -> Tenant | None:
    """One tenant."""
    found = await _tenants(connection, tenants.c.name == name)
    return found[0] if found else None


async def tenants_after(connection: AsyncConnection, after: str | None) -> AsyncIterator[Tenant]:
    """Tenants by name, those beyond `after`."""
    while True:
        found = await _tenants(connection, tenants.c.name > (after or ""), limit=STRIDE)
        for record in found:
            yield record
        if len(found) < STRIDE:
            return
        after = found[-1].name


async def _tenants(connection: AsyncConnection, where: ColumnElement[bool], limit: int = 1) -> list[Tenant]:
    rows = (await connection.execute(select(tenants).where(where).order_by(tenants.c.name).limit(limit))).all()
    if not rows:
        return []
    between = api_keys.c.tenant.between(rows[0].name, rows[-1].name)
    keys: dict[str, list[Key]] = defaultdict(list)
    ordered = select(api_keys).where(between).order_by(api_keys.c.created_at_us, api_keys.c.id)
    for row in await connection.execute(ordered):
        keys[row.tenant].append(_api_key(row))
    limits = select(quotas).where(quotas.c.tenant.between(rows[0].name, rows[-1].name))
    held = {row.tenant: _quota(row) for row in await connection.execute(limits)}
    signers: dict[str, list[tuple[str, str]]] = defaultdict(list)
    within = tenant_signers.c.tenant.between(rows[0].name, rows[-1].name)
    for row in await connection.execute(select(tenant_signers).where(within).order_by(tenant_signers.c.signer)):
        signers[row.tenant].append((row.signer, row.pem))
    return [
        Tenant(
            row.name,
            row.reservation_millidevices,
            row.weight,
            row.created_at_us,
            tuple(keys[row.name]),
            row.revision,
            held.get(row.name, Quota()),
            tuple(signers[row.name]),
        )
        for row in rows
    ]


def _api_key(row: Row[Any]) -> Key:
    return Key(row.id, bytes(row.sha256), row.created_at_us, KeyRole(row.role), row.expires_at_us)


def _quota(row: Row[Any]) -> Quota:
    return Quota(
        row.millirequests_per_s,
        row.burst,
        row.concurrent_requests,
        row.device_ms,
        row.device_interval_s,
        row.memory_bytes,
        row.stored_bytes,
    )


async def stored_bytes(connection: AsyncConnection, name: str) -> int:
    """What the artefacts that a tenant has uploaded take, each counted once."""
    query = (
        select(func.coalesce(func.sum(artefacts.c.size_bytes), 0))
        .join(artefact_owners, artefact_owners.c.digest == artefacts.c.digest)
        .where(artefact_owners.c.tenant == name)
    )
    return int((await connection.execute(query)).scalar_one())


async def model(connection: AsyncConnection, tenant_name: str, name: str) -> Model | None:
    """One model with its versions."""
    found = await _models(connection, and_(models.c.tenant == tenant_name, models.c.name == name))
    return found[0] if found else None


async def granted(connection: AsyncConnection, tenant_name: str, name: str, grantee: str | None) -> bool:
    """Whether a model is shared with another tenant."""
    place = and_(_key(model_grants) == tuple_(tenant_name, name), model_grants.c.grantee == grantee)
    return (await connection.execute(select(model_grants.c.grantee).where(place))).first() is not None


async def models_after(
    connection: AsyncConnection, after: tuple[str, ...] | None, tenant_name: str | None = None
) -> AsyncIterator[Model]:
    """Models by (tenant, name), those beyond `after`; of one tenant where it is named."""
    while True:
        where = _key(models) > tuple_(*(after or ("", "")))
        if tenant_name is not None:
            where = and_(where, models.c.tenant == tenant_name)
        found = await _models(connection, where, limit=STRIDE)
        for record in found:
            yield record
        if len(found) < STRIDE:
            return
        after = (found[-1].tenant, found[-1].name)


async def has_models(connection: AsyncConnection, tenant_name: str) -> bool:
    """Whether the tenant has any model."""
    query = select(models.c.name).where(models.c.tenant == tenant_name).limit(1)
    return (await connection.execute(query)).first() is not None


async def _models(connection: AsyncConnection, where: ColumnElement[bool], limit: int = 1) -> list[Model]:
    order = select(models).where(where).order_by(models.c.tenant, models.c.name).limit(limit)
    rows = (await connection.execute(order)).all()
    if not rows:
        return []
    first, last = (rows[0].tenant, rows[0].name), (rows[-1].tenant, rows[-1].name)
    held = await _versions(connection, first, last)
    splits: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for row in await connection.execute(_between(traffic_splits, first, last)):
        splits[row.tenant, row.name].append((row.version, row.ppm))
    grants: dict[tuple[str, str], list[str]] = defaultdict(list)
    within = and_(_key(model_grants) >= tuple_(*first), _key(model_grants) <= tuple_(*last))
    for row in await connection.execute(select(model_grants).where(within).order_by(model_grants.c.grantee)):
        grants[row.tenant, row.name].append(row.grantee)
    slos = await _slos(connection, first, last)
    places = [(row, (row.tenant, row.name)) for row in rows]
    return [_model(row, held[place], splits[place], slos[place], grants[place]) for row, place in places]


async def _slos(
    connection: AsyncConnection, first: tuple[str, str], last: tuple[str, str]
) -> dict[tuple[str, str], list[NamedSlo]]:
    held: dict[tuple[str, str], list[NamedSlo]] = defaultdict(list)
    for row in await connection.execute(_between(model_slos, first, last).order_by(model_slos.c.slo)):
        slo = Slo(row.objective_us, row.ratio_ppm, row.window_s)
        held[row.tenant, row.name].append(NamedSlo(row.slo, slo))
    return held


async def _versions(
    connection: AsyncConnection, first: tuple[str, str], last: tuple[str, str]
) -> dict[tuple[str, str], list[Version]]:
    bodies: dict[tuple[str, str, int], list[tuple[str, bytes]]] = defaultdict(list)
    for row in await connection.execute(_between(profiles, first, last).order_by(profiles.c.device_kind)):
        bodies[row.tenant, row.name, row.version].append((row.device_kind, bytes(row.body)))
    query = _between(versions, first, last).add_columns(artefacts.c.size_bytes)
    held: dict[tuple[str, str], list[Version]] = defaultdict(list)
    for row in await connection.execute(query.join(artefacts, artefacts.c.digest == versions.c.digest)):
        held[row.tenant, row.name].append(_version(row, bodies[row.tenant, row.name, row.version]))
    return held


def _key(table: Table) -> Any:
    return tuple_(table.c.tenant, table.c.name)


def _between(table: Table, first: tuple[str, str], last: tuple[str, str]) -> Any:
    """Rows of the models from `first` to `last`, by version where they have one."""
    within = and_(_key(table) >= tuple_(*first), _key(table) <= tuple_(*last))
    version = [table.c.version] if "version" in table.c else []
    return select(table).where(within).order_by(table.c.tenant, table.c.name, *version)


def _model(
    row: Row[Any],
    held: Sequence[Version],
    splits: Sequence[tuple[int, int]],
    slos: Sequence[NamedSlo],
    grants: Sequence[str],
) -> Model:
    return Model(
        row.tenant,
        row.name,
        Slo(row.objective_us, row.ratio_ppm, row.window_s),
        TrafficClass(row.traffic_class),
        Isolation(row.isolation),
        row.replicas,
        row.last_version,
        tuple(held),
        tuple(splits),
        row.revision,
        row.unloaded,
        tuple(slos),
        tuple(sorted(grants)),
    )


def _version(row: Row[Any], bodies: Sequence[tuple[str, bytes]]) -> Version:
    return Version(
        row.version,
        row.digest,
        row.size_bytes,
        bytes(row.config),
        row.created_at_us,
        Inspection(row.inspection),
        row.inspection_message,
        None if row.signature is None else bytes(row.signature),
        tuple(bodies),
        bytes(row.artefact_signature or b""),
    )


async def save_tenant(connection: AsyncConnection, before: Tenant | None, after: Tenant) -> None:
    """Writes what differs between two states of a tenant."""
    columns = {
        "reservation_millidevices": after.reservation_millidevices,
        "weight": after.weight,
        "created_at_us": after.created_at_us,
        "revision": after.revision,
    }
    if before is None:
        await connection.execute(insert(tenants).values(name=after.name, **columns))
    else:
        await connection.execute(update(tenants).where(tenants.c.name == after.name).values(**columns))
    held = set(before.keys) if before else set()
    changed = held - set(after.keys)
    if changed:
        await connection.execute(delete(api_keys).where(api_keys.c.id.in_({key.id for key in changed})))
    for key in after.keys:
        if key not in held:
            row = {"id": key.id, "tenant": after.name, "sha256": key.sha256, "created_at_us": key.created_at_us}
            row |= {"role": int(key.role), "expires_at_us": key.expires_at_us}
            await connection.execute(insert(api_keys).values(row))
    if (before.quota if before else Quota()) != after.quota:
        await connection.execute(delete(quotas).where(quotas.c.tenant == after.name))
        if after.quota.limits:
            await connection.execute(insert(quotas).values(tenant=after.name, **asdict(after.quota)))
    if (before.signers if before else ()) != after.signers:
        await connection.execute(delete(tenant_signers).where(tenant_signers.c.tenant == after.name))
        for signer, pem in after.signers:
            row = {"tenant": after.name, "signer": signer, "pem": pem}
            await connection.execute(insert(tenant_signers).values(row))


async def remove_tenant(connection: AsyncConnection, name: str) -> None:
    """Removes a tenant with its keys and its claims to artefacts."""
    await connection.execute(delete(tenants).where(tenants.c.name == name))


async def save_model(connection: AsyncConnection, before: Model | None, after: Model) -> None:
    """Writes what differs between two states of a model."""
    columns = {
        "objective_us": after.slo.objective_us,
        "ratio_ppm": after.slo.ratio_ppm,
        "window_s": after.slo.window_s,
        "traffic_class": int(after.traffic_class),
        "isolation": int(after.isolation),
        "replicas": after.replicas,
        "last_version": after.last_version,
        "revision": after.revision,
        "unloaded": after.unloaded,
    }
    if before is None:
        await connection.execute(insert(models).values(tenant=after.tenant, name=after.name, **columns))
    else:
        await connection.execute(
            update(models).where(_key(models) == tuple_(after.tenant, after.name)).values(**columns)
        )
    await _save_versions(connection, before, after)
    if (before.shared_with if before else ()) != after.shared_with:
        await connection.execute(delete(model_grants).where(_key(model_grants) == tuple_(after.tenant, after.name)))
        for grantee in after.shared_with:
            row = {"tenant": after.tenant, "name": after.name, "grantee": grantee}
            await connection.execute(insert(model_grants).values(row))
    if (before.traffic if before else ()) != after.traffic:
        await connection.execute(delete(traffic_splits).where(_key(traffic_splits) == tuple_(after.tenant, after.name)))
        for number, ppm in after.traffic:
            await connection.execute(insert(traffic_splits).values(**_number(after, number), ppm=ppm))
    if (before.slos if before else ()) != after.slos:
        await _save_slos(connection, after)


async def _save_slos(connection: AsyncConnection, after: Model) -> None:
    await connection.execute(delete(model_slos).where(_key(model_slos) == tuple_(after.tenant, after.name)))
    for each in after.slos:
        row = {
            "tenant": after.tenant,
            "name": after.name,
            "slo": each.name,
            "objective_us": each.slo.objective_us,
            "ratio_ppm": each.slo.ratio_ppm,
            "window_s": each.slo.window_s,
        }
        await connection.execute(insert(model_slos).values(row))


async def remove_model(connection: AsyncConnection, tenant_name: str, name: str) -> None:
    """Removes a model with its versions."""
    await connection.execute(delete(models).where(_key(models) == tuple_(tenant_name, name)))


async def _save_versions(connection: AsyncConnection, before: Model | None, after: Model) -> None:
    held = {version.version: version for version in before.versions} if before else {}
    kept = {version.version: version for version in after.versions}
    for number in held.keys() - kept.keys():
        await connection.execute(delete(versions).where(_matches(versions, after, number)))
    for number, version in kept.items():
        if held.get(number) != version:
            await _save_version(connection, after, held.get(number), version)


async def _save_version(connection: AsyncConnection, of: Model, before: Version | None, after: Version) -> None:
    found = {
        "inspection": int(after.inspection),
        "inspection_message": after.inspection_message,
        "signature": after.signature,
        "artefact_signature": after.artefact_signature or None,
    }
    if before is None:
        made = {"digest": after.digest, "config": after.config, "created_at_us": after.created_at_us}
        await connection.execute(insert(versions).values(**_number(of, after.version), **made, **found))
    else:
        await connection.execute(update(versions).where(_matches(versions, of, after.version)).values(**found))
    if (before.profiles if before else ()) != after.profiles:
        await connection.execute(delete(profiles).where(_matches(profiles, of, after.version)))
        for kind, body in after.profiles:
            row = {**_number(of, after.version), "device_kind": kind, "body": body}
            await connection.execute(insert(profiles).values(row))


def _number(of: Model, version: int) -> dict[str, Any]:
    return {"tenant": of.tenant, "name": of.name, "version": version}


def _matches(table: Table, of: Model, version: int) -> ColumnElement[bool]:
    return and_(table.c.tenant == of.tenant, table.c.name == of.name, table.c.version == version)
