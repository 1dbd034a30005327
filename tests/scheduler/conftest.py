"""A scheduler as a whole service on a free port, beside a registry on another."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from scheduler_fakes import FakeRegistry, Starts, registry_server, scheduler

from services._proto.apportion.v1.scheduler_pb2_grpc import SchedulerServiceStub
from services.scheduler import serve as serving

EPOCHS = itertools.count(1000)


@pytest.fixture
def registry() -> FakeRegistry:
    """A registry that has nothing yet."""
    return FakeRegistry()


@pytest.fixture
async def registry_address(registry: FakeRegistry) -> AsyncIterator[str]:
    """Where the registry listens."""
    async with registry_server(registry) as address:
        yield address


@pytest.fixture
async def start(tmp_path: Path, registry_address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Starts]:
    """Starts schedulers beside the registry; all are stopped at the end. Epochs do not wait for the clock."""

    async def epoch() -> int:
        return next(EPOCHS)

    monkeypatch.setattr(serving, "new_epoch", epoch)
    async with AsyncExitStack() as stack:

        async def one(**settings: Any) -> SchedulerServiceStub:
            return await stack.enter_async_context(
                scheduler(tmp_path, settings.pop("registry", registry_address), **settings)
            )

        yield one
