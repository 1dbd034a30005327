"""The operations on tenants and models: read the record, let the core decide what it becomes, save it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from services._proto.apportion.v1 import common_pb2
from services.common.errors import Reason, Refusal
from services.registry import rows
from services.registry.core import keys, rules, slos, versions
from services.registry.core.records import Key, Model, NamedSlo, Tenant
from services.registry.core.versions import Outcome, Push, Wish
from services.registry.store import Store, Writing, found
from services.registry.uploads import Uploads, missing, owned_size
from services.registry.wire import joined, model_message, same_digest


class Tenants:
    """Tenants and their keys. Keys' texts are returned and kept nowhere."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, name: str, reservation_millidevices: int, weight: int) -> tuple[Tenant, str]:
        """The tenant and its first key's text; TENANT_EXISTS where the name is taken."""

        async def operation(writing: Writing) -> tuple[Tenant, str]:
            if await rows.tenant(writing.connection, name) is not None:
                raise Refusal(Reason.TENANT_EXISTS, f"name: there is a tenant {name!r} already", field="name")
            key, text = new_key(writing.now_us)
            tenant = Tenant(name, reservation_millidevices, weight, writing.now_us, (key,))
            return await writing.save_tenant(None, tenant), text

        return await self._store.write(operation)

    async def get(self, name: str) -> Tenant:
        """One tenant; TENANT_NOT_FOUND."""
        return found(await self._store.read(lambda connection: rows.tenant(connection, name)), name, "name")

    async def update(self, name: str, reservation_millidevices: int | None, weight: int | None) -> Tenant:
        """The tenant with what is not None changed."""

        async def operation(writing: Writing) -> Tenant:
            before = await writing.tenant(name, "name")
            reservation = (
                before.reservation_millidevices if reservation_millidevices is None else reservation_millidevices
            )
            after = replace(before, reservation_millidevices=reservation, weight=weight or before.weight)
            return await writing.save_tenant(before, after)

        return await self._store.write(operation)

    async def delete(self, name: str) -> None:
        """Removes a tenant; TENANT_NOT_EMPTY while it has models."""

        async def operation(writing: Writing) -> None:
            await writing.tenant(name, "name")
            if await rows.has_models(writing.connection, name):
                raise Refusal(Reason.TENANT_NOT_EMPTY, f"name: tenant {name!r} still has models; remove them first")
            await writing.remove_tenant(name)

        await self._store.write(operation)

    async def add_key(self, name: str) -> tuple[Key, str]:
        """A further key and its text."""

        async def operation(writing: Writing) -> tuple[Key, str]:
            before = await writing.tenant(name)
            if len(before.keys) >= rules.MOST_KEYS:
                message = (
                    f"tenant: {name!r} has {len(before.keys)} keys of at most {rules.MOST_KEYS}; revoke some first"
                )
                raise Refusal(Reason.QUOTA_EXCEEDED, message, field="tenant", facts={"subject": "keys"})
            key, text = new_key(writing.now_us)
            held = tuple(sorted((*before.keys, key), key=lambda kept: (kept.created_at_us, kept.id)))
            await writing.save_tenant(before, replace(before, keys=held))
            return key, text

        return await self._store.write(operation)

    async def revoke_key(self, name: str, key_id: str) -> None:
        """Ends a key; nothing happens where it has ended."""

        async def operation(writing: Writing) -> None:
            before = await writing.tenant(name)
            kept = tuple(key for key in before.keys if key.id != key_id)
            await writing.save_tenant(before, replace(before, keys=kept))

        await self._store.write(operation)


class Models:
    """Models and their versions."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self._store, self._uploads = store, uploads

    async def push(self, push: Push) -> tuple[Model, int, bool]:
        """The model, the version's number, and whether it was there before.

        Raises TENANT_NOT_FOUND, VERSION_EXISTS, ARTEFACT_NOT_FOUND, MESSAGE_TOO_LARGE.
        """
        size_bytes = await self._store.read(lambda connection: owned_size(connection, push.tenant, push.digest))
        # Outside the transaction: storage may be slow, and nothing takes an artefact away.
        stored = size_bytes is not None and await self._uploads.holds(push.digest, size_bytes)

        async def operation(writing: Writing) -> tuple[Model, int, bool]:
            await writing.tenant(push.tenant, "key.tenant")
            before = await rows.model(writing.connection, push.tenant, push.name)
            held = versions.existing(before, push)
            if before is not None and held is not None:
                return before, held.version, True
            # Asked again: the tenant may have been removed, and made again, meanwhile.
            owned = await owned_size(writing.connection, push.tenant, push.digest)
            if owned is None or not stored:
                raise missing(push.tenant, push.digest)
            after, number = versions.pushed(before, push, size_bytes=owned, now_us=writing.now_us)
            rules.model_size(model_message(after).ByteSize(), rules.MOST_MODEL_BYTES)
            return await writing.save_model(before, after), number, False

        return await self._store.write(operation)

    async def get(self, tenant: str, name: str) -> Model:
        """One model; MODEL_NOT_FOUND."""
        model = await self._store.read(lambda connection: rows.model(connection, tenant, name))
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


def new_key(now_us: int) -> tuple[Key, str]:
    """A key as it is kept, and its text."""
    text, key_id = keys.text_and_id(secrets.token_bytes(keys.CHANCE_BYTES))
    return Key(key_id, keys.sha256(text), now_us), text
