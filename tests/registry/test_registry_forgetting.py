"""A registry keeps nothing in memory of models that are gone."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import pytest
from registry_world import served

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.registry.settings import RegistrySettings

NAMES = 50
BYTES_A_NAME = 400
"""Less than any record of a model takes."""
ROUNDS = 3
"""A leak grows in each; what an allocator, a pool or a cache takes once shows in one at most."""


@pytest.mark.slow
async def test_the_registry_keeps_nothing_of_models_that_are_gone(tmp_path: Path) -> None:
    async with served(RegistrySettings(data=tmp_path / "data")) as world:
        await world.tenant()
        await world.upload(b"weights")

        async def lives(name: str) -> None:
            await world.version(name, b"weights")
            key = common_pb2.ModelKey(tenant="acme", name=name)
            await world.call.DeleteModel(registry_pb2.DeleteModelRequest(key=key))

        async def held() -> int:
            await asyncio.sleep(0.05)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        for number in range(20):
            await lives(f"early-{number:05}")
        tracemalloc.start()
        try:
            for number in range(20):
                await lives(f"warm-{number:05}")
            grown = []
            for turn in range(ROUNDS):
                before = await held()
                for number in range(NAMES):
                    await lives(f"model-{turn}-{number:05}")
                grown.append(await held() - before)
        finally:
            tracemalloc.stop()
        assert min(grown) < NAMES * BYTES_A_NAME, f"bytes a name: {[each / NAMES for each in grown]}"
