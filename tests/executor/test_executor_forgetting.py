"""An executor lets go of replicas, models, artefacts and callers that are gone."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from harness import Frontend, house, request

import services.executor.core.statistics as statistics
import services.executor.executor as module
from gpu_sharing.worker.messages import Settled, Statistics, Used
from services._proto.apportion.v1 import scheduler_pb2 as pb
from services._proto.apportion.v1.common_pb2 import ModelKey
from services.common.channel import connect
from services.executor.attach import Attachment
from services.executor.cache import ArtefactCache, FetchFailed
from services.executor.core.replica_events import Unwanted
from services.executor.core.usage import Total
from tests.reachable import grown, reachable

ONE = np.zeros((1, 2), np.float32)


@pytest.mark.slow
async def test_the_executor_keeps_nothing_of_replicas_and_models_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_VERSIONS", 8)
    monkeypatch.setattr(module, "MOST_VERSIONS", 8)
    monkeypatch.setattr(module, "MOST_GONE", 8)
    async with house() as at, Frontend(at.address) as frontend:
        executor = at.executor
        await at.until(lambda: at.workers)

        async def lives(replica: int) -> None:
            at.load(replica, model=f"model-{replica:05}")
            await at.serving(replica)
            result = await frontend.result(await frontend.infer(request(ONE), replica=replica))
            assert result.WhichOneof("outcome") == "payload"
            await frontend.until(lambda: replica in frontend.loads)
            executor.usage.take(0, Statistics(replica * 10, 0, (Used(replica, 7, 1, 1, 0),), 0), time.monotonic_ns())
            executor.read_meters()
            executor.handle(Unwanted(replica, 0))
            await at.until(lambda: executor.replicas.get(replica) is None)
            executor.read_meters()
            life = executor.usage.lives.of(("acme", f"model-{replica:05}"))
            executor.forgetting.fold("", ("acme", f"model-{replica:05}"), life)
            executor.read_meters()
            assert any(isinstance(each, Settled) and each.replica == replica for each in at.worker.commands)
            at.worker.commands.clear()
            frontend.results.clear()
            frontend.loads.clear()

        for replica in range(1, 41):
            await lives(replica)
        before = reachable(executor, at.servicer)
        for replica in range(41, 241):
            await lives(replica)
        after = reachable(executor, at.servicer)
        # Less than one for four of those that came and went: what is under way differs from moment to moment.
        assert after.objects <= before.objects + 200 / 4, grown(before, after)
        assert after.size_bytes <= before.size_bytes + 200 * 40, grown(before, after)
        assert executor.usage.totals == {("acme", ""): Total(240 * 7, 240 * 7, 240, 240)}


async def test_a_replica_that_is_unloaded_is_settled_while_its_worker_lives_on() -> None:
    async with house() as at:
        at.load(1)
        await at.serving(1)
        usage = at.executor.usage
        usage.take(0, Statistics(7, 0, (Used(1, 7, 1, 1, 0),), 0), time.monotonic_ns())
        at.executor.handle(Unwanted(1, 0))
        await at.until(lambda: at.executor.replicas.get(1) is None)
        at.executor.read_meters()
        assert (usage.models, usage.lanes[0].used) == ({}, {})
        usage.take(0, Statistics(9, 0, (Used(1, 9, 1, 1, 0),), 0), time.monotonic_ns())
        assert usage.totals["acme", "echo"].device_ns == 7, (
            "what comes late of a replica that is settled is not believed"
        )
        assert usage.lanes[0].busy_ns == 9


async def test_locks_of_artefacts_that_nobody_fetches_are_not_kept(tmp_path: Path) -> None:
    cache = ArtefactCache(tmp_path / "cache", 0)
    cache.open()

    async def nothing() -> object:
        for data in ():
            yield data

    for number in range(50):
        with pytest.raises(FetchFailed):
            await cache.fetch(number, f"sha256:{number:064x}", 1, nothing)
    assert cache._locks == {}


async def test_the_schedulers_word_that_a_model_is_gone_is_handed_on() -> None:
    told: list[tuple[object, ...]] = []
    async with connect("127.0.0.1:1") as channel:
        attachment = Attachment(
            channel,
            None,  # type: ignore[arg-type]
            "",
            asyncio.Event(),
            lambda _: None,
            fold=lambda *fold: told.append(fold),
        )
        attachment.take(pb.AttachResponse(welcome=pb.AttachWelcome(epoch=1)))
        fold = pb.FoldUsage(incarnation="one", key=ModelKey(tenant="acme", name="m"), life=3)
        attachment.take(pb.AttachResponse(fold=fold))
    assert told == [("one", ("acme", "m"), 3)]
