"""A worker that has work and does nothing is given up; one that is merely slow is not."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from google.rpc import status_pb2
from harness import Frontend, House, house, request

from gpu_sharing.measurements import Batch, Profile, ProfilePoint
from gpu_sharing.units import MS, SECOND
from gpu_sharing.worker.messages import Done, Failed, Stage, Statistics
from services._proto.apportion.v1 import executor_pb2 as pb
from services.common.errors import Reason
from services.common.status import from_status
from services.executor.core.watchdog import FACTOR, Patience, Watch, longest_ns

PATIENCE = Patience(lane_ns=10 * SECOND, load_ns=100 * SECOND)


def silent(watch: Watch, now: int, *, working: bool = True, loading: bool = False, expected_ns: int = 0) -> str | None:
    return watch.silent(PATIENCE, working=working, loading=loading, expected_ns=expected_ns, now=now)


def done(started: int, ended: int) -> Done:
    return Done(1, (), 0, Batch(1, 0, 1, 1, started, ended, 0, 0, 0))


def test_a_lane_that_has_work_and_ends_no_slice_is_given_up():
    watch = Watch(0)
    assert silent(watch, 10 * SECOND) is None
    assert "ended no slice for 10.0 s" in str(silent(watch, 10 * SECOND + 1))


def test_a_lane_without_work_may_be_silent_for_ever():
    watch = Watch(0)
    assert silent(watch, 1_000 * SECOND, working=False) is None
    assert silent(watch, 1_005 * SECOND) is None
    assert silent(watch, 1_011 * SECOND) is not None


@pytest.mark.parametrize(
    "sign",
    [
        done(0, 1),
        Failed(1, "MODEL_FAILED", "it raised", batch=Batch(1, 0, 1, 1, 0, 1, 0, 0, 0)),
        Statistics(5, 1, (), 0),
    ],
)
def test_a_slice_that_ended_is_a_sign_of_life(sign):
    watch = Watch(0)
    watch.heard(sign, 9 * SECOND)
    assert silent(watch, 18 * SECOND) is None
    assert silent(watch, 20 * SECOND) is not None


@pytest.mark.parametrize("sign", [Failed(1, "DEADLINE_EXCEEDED", "late"), Statistics(0, 7, (), 0), Stage(1, "loading")])
def test_refusing_what_is_late_counting_and_loading_say_nothing_of_the_lane(sign):
    watch = Watch(0)
    watch.heard(sign, 9 * SECOND)
    assert silent(watch, 11 * SECOND) is not None


def test_a_lane_may_take_ten_times_its_longest_expected_batch():
    watch = Watch(0)
    assert silent(watch, FACTOR * 4 * SECOND, expected_ns=4 * SECOND) is None
    assert silent(watch, FACTOR * 4 * SECOND + 1, expected_ns=4 * SECOND) is not None


def test_a_lane_may_take_ten_times_the_longest_batch_that_was_seen():
    watch = Watch(0)
    watch.heard(done(0, 3 * SECOND), 3 * SECOND)
    assert silent(watch, 32 * SECOND) is None
    assert silent(watch, 34 * SECOND) is not None


def test_a_worker_cannot_buy_patience_with_batches_longer_than_its_life():
    watch = Watch(0)
    watch.heard(done(0, 1 << 62), SECOND)
    assert silent(watch, 12 * SECOND) is not None


def test_a_loader_that_says_nothing_for_too_long_is_given_up_and_each_stage_is_a_sign_of_life():
    watch = Watch(0)
    watch.loads(50 * SECOND)
    assert silent(watch, 149 * SECOND, working=False, loading=True) is None
    watch.heard(Stage(1, "profiling"), 149 * SECOND)
    assert silent(watch, 249 * SECOND, working=False, loading=True) is None
    assert "loading" in str(silent(watch, 250 * SECOND, working=False, loading=True))


def test_the_longest_batch_is_told_from_profiles_and_grows_with_rows_that_nobody_measured():
    points = (ProfilePoint(1, "4", 1, 1 * MS, 2 * MS, 9, 0), ProfilePoint(4, "4", 1, 5 * MS, 6 * MS, 9, 0))
    assert longest_ns([(Profile("d", "cpu", 1, points), 32)]) == 64 * MS
    assert longest_ns([(Profile("d", "cpu", 1), 32)]) == 0
    assert longest_ns([(Profile("d", "cpu", 1, points), 0)]) == 6 * MS


async def ready(at: House) -> None:
    at.load(1)
    await at.serving(1)


async def test_the_calls_of_a_worker_that_does_not_answer_get_worker_lost_and_another_takes_over():
    async with house(watchdog_s=0.3) as at, Frontend(at.address) as frontend:
        await ready(at)
        at.worker.hold = True
        call = await frontend.infer(request(np.ones((1, 3), np.float32)))
        result: pb.Result = await frontend.result(call)
        refusal = from_status(status_pb2.Status.FromString(result.status))
        assert refusal.reason is Reason.WORKER_LOST
        assert "ended no slice for 0.3 s" in refusal.message
        await at.until(lambda: len(at.workers) == 2)
        await at.serving(1)
        again = await frontend.infer(request(np.ones((1, 3), np.float32)))
        assert await frontend.payload(again)


async def test_a_worker_that_answers_in_time_lives_on():
    async with house(watchdog_s=0.3) as at, Frontend(at.address) as frontend:
        await ready(at)
        for _ in range(6):
            at.worker.hold = True
            call = await frontend.infer(request(np.ones((1, 3), np.float32)))
            await at.until(lambda: bool(at.worker.held))
            await asyncio.sleep(0.1)
            at.worker.hold = False
            at.worker.answer_held()
            assert await frontend.payload(call)
        assert len(at.workers) == 1


async def test_calls_of_a_worker_that_does_not_answer_are_bounded():
    async with house(queue_limit=2) as at, Frontend(at.address) as frontend:
        await ready(at)
        at.worker.hold = True
        calls = [await frontend.infer(request(np.ones((1, 3), np.float32))) for _ in range(6)]
        await frontend.until(lambda: len(frontend.results) == 2)
        for call in calls[4:]:
            refusal = from_status(status_pb2.Status.FromString(frontend.results[call].status))
            assert refusal.reason is Reason.OVERLOADED
            assert refusal.facts["limit"] == "4"
        at.worker.hold = False
        at.worker.answer_held()
        for call in calls[:4]:
            assert await frontend.payload(call)
