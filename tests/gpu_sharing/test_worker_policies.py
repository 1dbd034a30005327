"""What a worker makes of its tenants' shares, and of the policy that it is started with."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest
import test_worker_loop as loop
from test_worker_loop import Gate, World, negated

from gpu_sharing.devices.cpu import CpuDevice
from gpu_sharing.measurements import Profile, ProfilePoint
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.messages import Done, Load, LoadFailed, Stop, Update


def world_of(monkeypatch: pytest.MonkeyPatch, **fields: object) -> World:
    monkeypatch.setattr(loop, "WorkerConfig", functools.partial(WorkerConfig, **fields))
    return World()


def end(world: World) -> None:
    world.send(Stop(grace_ns=200_000_000))
    world.thread.join(5)
    assert not world.thread.is_alive()


def test_a_share_that_does_not_fit_fails_the_load_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = world_of(monkeypatch, capacity=100)
    world.host(1, negated)
    model = world.models["2"] = loop.Model(negated)
    device = CpuDevice("")
    profile = Profile("d", device.device_kind, 100, (ProfilePoint(1, "2", device.compute_units, 5, 5, 1, 10),))
    world.send(Load(2, "other", "m", 1, "d", "/2", "scripted", 101, 1, profile=profile))
    failed = world.expect(LoadFailed)
    assert "101 millidevices do not fit for tenant 'other': of 100 on this lane, others hold 0" in failed.message
    assert not failed.refused
    assert model.closed
    world.send(Update(1, 5000, 1), world.submit(1, 3.0))
    assert (world.value(world.expect(Done)) == -3).all()
    end(world)


@pytest.mark.parametrize(("policy", "order"), [("reservations", [2, 1]), ("arrival_order", [1, 2])])
def test_the_policy_decides_who_goes_first(monkeypatch: pytest.MonkeyPatch, policy: str, order: list[int]) -> None:
    world = world_of(monkeypatch, policy=policy)
    gate = Gate()
    world.host(1, gate.body)
    world.host(2, negated)
    world.send(world.submit(1, 1.0))
    assert gate.entered.acquire(timeout=10)
    world.send(world.submit(2, 2.0, replica=2, objective=time.monotonic_ns() + 10**9), world.submit(9, 0.0, replica=7))
    world.expect(loop.Failed, 9)
    gate.opened.release()
    assert [world.expect(Done).call for _ in order] == order
    end(world)
