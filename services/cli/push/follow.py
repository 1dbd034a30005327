"""Uploads an artefact, and follows the version until it serves or is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from services._proto.apportion.v1 import registry_pb2, scheduler_pb2
from services.cli import remote
from services.cli.errors import CommandError
from services.cli.options import Mesh
from services.cli.push.artefact import Artefact, chunks
from services.cli.push.standing import Refused, Serving, Unplaced, standing, unloaded_note

UPLOAD_S = 3600.0
EVERY_S = 0.2
UNPLACED_PATIENCE_S = 3.0
"""How long a version may be without a place before that is final: room is made meanwhile."""


async def upload(stub: Any, tenant: str, artefact: Artefact, *, sent: Callable[[int], None]) -> bool:
    """Stores the artefact; `sent` is told of each further number of bytes. Returns whether it was there before."""

    async def parts() -> AsyncIterator[Any]:
        header = registry_pb2.ArtefactHeader(tenant=tenant, digest=artefact.digest, size_bytes=artefact.size_bytes)
        yield registry_pb2.UploadArtefactRequest(header=header)
        for piece in chunks(artefact.path):
            yield registry_pb2.UploadArtefactRequest(data=piece)
            sent(len(piece))

    answer = await stub.UploadArtefact(parts(), timeout=UPLOAD_S)
    return answer.existed


async def until_serving(
    mesh: Mesh, key: Any, version: int, *, timeout_s: float, stage: Callable[[str], None]
) -> Serving:
    """Waits until the version serves; `stage` is told what is being done. Raises CommandError where it will not."""
    what = f"{key.tenant}/{key.name} version {version}"
    ends = time.monotonic() + timeout_s
    unplaced_since: float | None = None
    async with remote.registry(mesh) as registry, remote.scheduler(mesh) as scheduler:
        while True:
            answer = await registry.GetModel(registry_pb2.GetModelRequest(key=key), timeout=remote.CALL_S)
            if answer.model.unloaded:
                raise CommandError(unloaded_note(key))
            fleet = await scheduler.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=remote.CALL_S)
            now, found = time.monotonic(), standing(answer.model, version, fleet)
            if isinstance(found, Serving):
                return found
            if isinstance(found, Refused):
                raise CommandError(f"{what} was refused: {found.message}")
            if isinstance(found, Unplaced):
                unplaced_since = unplaced_since or now
                if now - unplaced_since > UNPLACED_PATIENCE_S:
                    raise CommandError(f"{what} has no place: {found.message}")
            else:
                unplaced_since = None
            told = found.message if isinstance(found, Unplaced) else found.stage
            stage(told)
            if now > ends:
                raise CommandError(
                    f"{what} does not serve after {timeout_s:.0f} s ({told}); `apportion status` shows it"
                )
            await asyncio.sleep(EVERY_S)
