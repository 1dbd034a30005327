"""Any process may die: under steady traffic, parts of a whole mesh are killed, one at a time. The full story: bench/survival.py."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.models import elementwise
from tests.mesh.running import RunningMesh, running
from tests.mesh.surviving import (
    VICTIMS,
    Answer,
    Story,
    Traffic,
    killed,
    restarted,
    stuck,
    until_whole,
    without_control,
)

pytestmark = pytest.mark.slow
KILLS = 2
MODEL = "identity"


def serving(folder: Path, replicas: int, *flags: str) -> Iterator[RunningMesh]:
    with running(folder / "data", *flags, environment={"APPORTION_EXECUTOR_WATCHDOG_S": "3"}) as mesh:
        path = elementwise(folder / "identity.onnx", "Identity")
        mesh.push(MODEL, path, options=("--replicas", str(replicas)))
        asyncio.run(until_whole(mesh, replicas))
        yield mesh


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Iterator[RunningMesh]:
    """One of everything."""
    yield from serving(tmp_path_factory.mktemp("single"), 1)


@pytest.fixture(scope="module")
def double(tmp_path_factory) -> Iterator[RunningMesh]:
    """Two executors, each with a replica, and two frontends."""
    yield from serving(tmp_path_factory.mktemp("double"), 2, "--executors", "2", "--frontends", "2")


def failures(answers: list[Answer]) -> Counter[tuple[str, str]]:
    return Counter((each.code, each.message[:100]) for each in answers if each.code != "OK")


@pytest.mark.parametrize("victim", VICTIMS)
async def test_with_one_of_everything_each_request_is_answered_in_time_and_service_returns_by_itself(single, victim):
    async with Traffic(single.addresses["frontend"], MODEL) as traffic:
        story: Story = await killed(single, traffic, victim, KILLS, replicas=1)
    assert not story.broken, failures(story.broken)
    assert story.codes["OK"] > 0


@pytest.mark.parametrize("victim", VICTIMS)
async def test_with_two_of_those_that_serve_requests_succeed_but_for_the_second_after_a_kill(double, victim):
    async with Traffic(double.addresses["frontend"], MODEL) as traffic:
        story = await killed(double, traffic, victim, KILLS, replicas=2)
    assert not story.broken, failures(story.broken)
    assert story.outside_ratio >= 0.99, failures(story.outside)


@pytest.mark.parametrize("victim", ["scheduler", "registry"])
async def test_no_request_notices_the_death_of_who_does_not_serve(single, victim):
    async with Traffic(single.addresses["frontend"], MODEL) as traffic:
        story = await killed(single, traffic, victim, 1, replicas=1)
    assert not failures(story.answers)


async def test_a_worker_that_hangs_is_replaced_and_its_requests_are_answered(single):
    async with Traffic(single.addresses["frontend"], MODEL, rate=10) as traffic:
        story = await stuck(single, traffic, replicas=1)
    assert {each.code for each in story.answers} <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert story.returns_s[0] < 15


async def test_with_scheduler_and_registry_both_dead_inference_goes_on(double):
    async with Traffic(double.addresses["frontend"], MODEL) as traffic:
        story = await without_control(double, traffic, replicas=2, seconds=5.0)
    assert len(story.answers) > 100
    assert not failures(story.answers)


async def test_a_rolling_restart_of_every_process_fails_no_request(double):
    async with Traffic(double.addresses["frontend"], MODEL) as traffic:
        story = await restarted(double, traffic, replicas=2)
    assert len(story.returns_s) == 7
    assert not failures(story.answers)
