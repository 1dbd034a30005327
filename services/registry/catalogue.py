"""The operations on tenants and models: read the record, let the core decide what it becomes, save it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from services._proto.apportion.v1 import common_pb2
from services.common.errors import Reason, Refusal
from services.common.signing import Signer, check
from services.registry import rows
from services.registry.core import keys, rules, slos, versions
from services.registry.core.records import Key, KeyRole, Model, NamedSlo, Quota, Tenant
from services.registry.core.versions import Outcome, Push, Wish
from services.registry.store import Store, Writing, found
from services.registry.uploads import Uploads, missing, owned_size
from services.registry.wire import joined, model_message, same_digest

SECOND_US = 1_000_000
MOST_US = (1 << 63) - 1


class Tenants:
    """Tenants and their keys. Keys' texts are returned and kept nowhere."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(
        self, name: str, reservation_millidevices: int, weight: int, quota: Quota | None = None
    ) -> tuple[Tenant, str]:
        """The tenant and its first key's text; TENANT_EXISTS where the name is taken."""

        async def operation(writing: Writing) -> tuple[Tenant, str]:
            if await rows.tenant(writing.connection, name) is not None:
                raise Refusal(Reason.TENANT_EXISTS, f"name: there is a tenant {name!r} already", field="name")
            key, text = new_key(writing.now_us, KeyRole.TENANT_ADMIN)
            held = quota or Quota()
            tenant = Tenant(name, reservation_millidevices, weight, writing.now_us, (key,), quota=held)
            return await writing.save_tenant(None, tenant), text

        return await self._store.write(operation)

    async def get(self, name: str) -> Tenant:
        """One tenant; TENANT_NOT_FOUND."""
        return found(await self._store.read(lambda connection: rows.tenant(connection, name)), name, "name")

    async def stored_bytes(self, name: str) -> int:
        """What a tenant's artefacts take."""
        return await self._store.read(lambda connection: rows.stored_bytes(connection, name))

    async def update(
        self,
        name: str,
        reservation_millidevices: int | None,
        weight: int | None,
        quota: Quota | None = None,
        signers: tuple[tuple[str, str], ...] | None = None,
    ) -> Tenant:
        """The tenant with what is not None changed."""

        async def operation(writing: Writing) -> Tenant:
            before = await writing.tenant(name, "name")
            reservation = (
                before.reservation_millidevices if reservation_millidevices is None else reservation_millidevices
            )
            held = before.quota if quota is None else quota
            after = replace(before, reservation_millidevices=reservation, weight=weight or before.weight, quota=held)
            if signers is not None:
                after = replace(after, signers=signers)
            saved = await writing.save_tenant(before, after)
            if before.signers != after.signers:
                writing.tell(name, f"signers {' '.join(signer for signer, _ in after.signers) or 'none'}")
            return saved

        return await self._store.write(operation)

    async def delete(self, name: str) -> None:
        """Removes a tenant; TENANT_NOT_EMPTY while it has models."""

        async def operation(writing: Writing) -> None:
            await writing.tenant(name, "name")
            if await rows.has_models(writing.connection, name):
                raise Refusal(Reason.TENANT_NOT_EMPTY, f"name: tenant {name!r} still has models; remove them first")
            await writing.remove_tenant(name)

        await self._store.write(operation)

    async def add_key(self, name: str, role: KeyRole = KeyRole.TENANT, lifetime_s: int = 0) -> tuple[Key, str]:
        """A further key and its text. lifetime_s: 0: for good. Keys that are over are let go of."""

        async def operation(writing: Writing) -> tuple[Key, str]:
            before = await writing.tenant(name)
            expires_at_us = writing.now_us + lifetime_s * SECOND_US if lifetime_s else None
            key, text = new_key(writing.now_us, role, expires_at_us)
            await self._hold(writing, before, (*_current(before, writing.now_us), key))
            writing.tell(name, key.id)
            return key, text

        return await self._store.write(operation)

    async def rotate_key(self, name: str, key_id: str, overlap_s: int) -> tuple[Key, str]:
        """A key in place of another, which is good for `overlap_s` more. Raises KEY_NOT_FOUND."""

        async def operation(writing: Writing) -> tuple[Key, str]:
            before, now_us = await writing.tenant(name), writing.now_us
            current = _current(before, now_us)
            old = next((key for key in current if key.id == key_id), None)
            if old is None:
                raise Refusal(Reason.KEY_NOT_FOUND, f"key_id: tenant {name!r} has no such key", field="key_id")
            key, text = new_key(now_us, old.role)
            ends_us = min(now_us + overlap_s * SECOND_US, old.expires_at_us or MOST_US)
            ending = (replace(old, expires_at_us=ends_us),) if overlap_s else ()
            others = tuple(each for each in current if each is not old)
            await self._hold(writing, before, (*others, *ending, key))
            writing.tell(name, f"{key_id} by {key.id}")
            return key, text

        return await self._store.write(operation)

    async def _hold(self, writing: Writing, before: Tenant, keys: tuple[Key, ...]) -> None:
        if len(keys) > rules.MOST_KEYS:
            message = (
                f"tenant: {before.name!r} has {len(before.keys)} keys of at most {rules.MOST_KEYS}; revoke some first"
            )
            raise Refusal(Reason.QUOTA_EXCEEDED, message, field="tenant", facts={"subject": "keys"})
        held = tuple(sorted(keys, key=lambda kept: (kept.created_at_us, kept.id)))
        await writing.save_tenant(before, replace(before, keys=held))

    async def revoke_key(self, name: str, key_id: str) -> None:
        """Ends a key; nothing happens where it has ended."""

        async def operation(writing: Writing) -> None:
            before = await writing.tenant(name)
            kept = tuple(key for key in before.keys if key.id != key_id)
            await writing.save_tenant(before, replace(before, keys=kept))
            if kept != before.keys:
                writing.tell(name, key_id)

        await self._store.write(operation)


class Models:
    """Models and their versions."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self._store, self._uploads = store, uploads

    async def push(self, push: Push) -> tuple[Model, int, bool]:
        """The model, the version's number, and whether it was there before.

        Raises TENANT_NOT_FOUND, VERSION_EXISTS, ARTEFACT_NOT_FOUND, MESSAGE_TOO_LARGE, SIGNATURE_MISSING, SIGNATURE_REFUSED.
        """
        signers = await self._signed(push)
        size_bytes = await self._store.read(lambda connection: owned_size(connection, push.tenant, push.digest))
        # Outside the transaction: storage may be slow. What is collected in between is no longer owned inside it.
        stored = size_bytes is not None and await self._uploads.holds(push.digest, size_bytes)

        async def operation(writing: Writing) -> tuple[Model, int, bool]:
            owner = await writing.tenant(push.tenant, "key.tenant")
            if owner.signers != signers:
                raise Refusal(Reason.REVISION_CONFLICT, "who signs for the tenant has changed meanwhile; push again")
            before = await rows.model(writing.connection, push.tenant, push.name)
            held = versions.existing(before, push)
            if before is not None and held is not None:
                kept = versions.signed(before, held, push.artefact_signature)
                return await writing.save_model(before, kept), held.version, True
            # Asked again: the tenant may have been removed, and made again, meanwhile.
            owned = await owned_size(writing.connection, push.tenant, push.digest)
            if owned is None or not stored:
                raise missing(push.tenant, push.digest)
            after, number = versions.pushed(before, push, size_bytes=owned, now_us=writing.now_us)
            rules.model_size(model_message(after).ByteSize(), rules.MOST_MODEL_BYTES)
            return await writing.save_model(before, after), number, False

        return await self._store.write(operation)

    async def _signed(self, push: Push) -> tuple[tuple[str, str], ...]:
        """Who signs for the tenant, once the artefact has a signature of one of them where it needs any."""
        owner = await self._store.read(lambda connection: rows.tenant(connection, push.tenant))
        signers = found(owner, push.tenant, "key.tenant").signers
        if signers:
            held = [Signer(*each) for each in signers]
            # In a thread: the first check loads the library.
            await asyncio.to_thread(check, push.artefact_signature, push.digest, held)
        return signers

    async def get(self, tenant: str, name: str, reader: str | None = None) -> Model:
        """One model; MODEL_NOT_FOUND. reader: the tenant that asks, which sees its own and what is shared with it; None: all.

        What a reader may not see is not read: of another tenant's model only the grant is looked up.
        """

        async def operation(connection: AsyncConnection) -> Model | None:
            if reader not in (None, tenant) and not await rows.granted(connection, tenant, name, reader):
                return None
            return await rows.model(connection, tenant, name)

        model = await self._store.read(operation)
        if model is None:
            raise versions.model_missing(tenant, name)
        return model

    async def update(
        self, tenant: str, name: str, wish: Wish, splits: Sequence[tuple[int, int]], expected_revision: int
    ) -> Model:
        """The model as wished; REVISION_CONFLICT where it has moved on."""

        async def operation(writing: Writing) -> Model:
            before = await _model(writing, tenant, name)
            return await writing.save_model(before, versions.updated(before, wish, splits, expected_revision))

        return await self._store.write(operation)

    async def share(self, tenant: str, name: str, grantee: str, *, revoked: bool) -> Model:
        """The model shared with one more tenant, or with one fewer."""

        async def operation(writing: Writing) -> Model:
            before = await _model(writing, tenant, name)
            after = await writing.save_model(before, versions.shared(before, grantee, revoked=revoked))
            if writing.saved:
                writing.tell(tenant, f"{name} {'not ' if revoked else ''}with {grantee}")
            return after

        return await self._store.write(operation)

    async def set_slo(self, tenant: str, name: str, slo: NamedSlo) -> Model:
        """The model with an objective to be judged by."""

        async def operation(writing: Writing) -> Model:
            before = await _model(writing, tenant, name)
            return await writing.save_model(before, slos.with_slo(before, slo))

        return await self._store.write(operation)

    async def remove_slo(self, tenant: str, name: str, slo: str) -> Model:
        """The model without it; SLO_NOT_FOUND."""

        async def operation(writing: Writing) -> Model:
            before = await _model(writing, tenant, name)
            return await writing.save_model(before, slos.without_slo(before, slo))

        return await self._store.write(operation)

    async def delete(self, tenant: str, name: str, number: int | None) -> None:
        """Removes a version, or the model where `number` is None."""

        async def operation(writing: Writing) -> None:
            before = await _model(writing, tenant, name)
            if number is None:
                await writing.remove_model(tenant, name)
            else:
                await writing.save_model(before, versions.without(before, number))

        await self._store.write(operation)

    async def inspected(
        self, tenant: str, name: str, number: int, outcome: Outcome, profile: common_pb2.Profile
    ) -> None:
        """Keeps what a worker found; telling the same again changes nothing."""

        async def operation(writing: Writing) -> None:
            before = await _model(writing, tenant, name)
            after = versions.inspected(before, number, joined(outcome, before.find(number)))
            version = after.find(number)
            same_digest(profile, version.digest if version else "")
            rules.model_size(model_message(after).ByteSize(), rules.MOST_INSPECTED_BYTES)
            await writing.save_model(before, after)

        await self._store.write(operation)


async def _model(writing: Writing, tenant: str, name: str) -> Model:
    model = await rows.model(writing.connection, tenant, name)
    if model is None:
        raise versions.model_missing(tenant, name)
    return model


def new_key(now_us: int, role: KeyRole, expires_at_us: int | None = None) -> tuple[Key, str]:
    """A key as it is kept, and its text."""
    text, key_id = keys.text_and_id(secrets.token_bytes(keys.CHANCE_BYTES))
    return Key(key_id, keys.sha256(text), now_us, role, expires_at_us), text


def _current(tenant: Tenant, now_us: int) -> tuple[Key, ...]:
    """The keys that are not over."""
    return tuple(key for key in tenant.keys if key.expires_at_us is None or key.expires_at_us > now_us)
