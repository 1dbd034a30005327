"""Loading: equal artefacts once, invisibly; politely; and with everything that can go wrong."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpu_sharing.measurements import Profile, ProfilePoint, SegmentCost
from gpu_sharing.memory.ledger import Ledger
from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, Run, Tensors
from gpu_sharing.tensors import Signature, TensorSpec
from gpu_sharing.units import MS, SECOND
from gpu_sharing.worker import wire
from gpu_sharing.worker.background import NICE, NICEST, Background
from gpu_sharing.worker.loader import Loader
from gpu_sharing.worker.messages import Load, Loaded, LoadFailed, Stage, Unloaded
from gpu_sharing.worker.outbox import Outbox
from gpu_sharing.worker.profiling import MOST_PRETENDED_NS, PRETENDED_SPREAD

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (None, 2), batch_axis=0),), (TensorSpec("y", "FP32", (None, 2), batch_axis=0),), 4
)
WEIGHTS = 1000


class Model:
    segments = ("one",)
    weight_bytes = WEIGHTS

    def __init__(self, world: World, config: LoadConfig, weights: list[str]) -> None:
        self.world, self.weights, self.closed = world, weights, False
        self.signature = SIGNATURE if config.max_batch_size is None else Signature((), (), config.max_batch_size)

    def run(self, inputs: Tensors) -> Run:
        self.world.spend(10 * MS)
        self.world.runs += 1
        yield from ()
        return {"y": inputs["x"] if "x" in inputs else np.zeros(1)}

    def activation_bytes(self, inputs: Tensors) -> int:
        return 50

    def again(self, config: LoadConfig) -> Model:
        if config.batch_axes:
            raise ArtefactRefused("batch_axes: cannot be")
        self.world.spend(100 * MS)
        return Model(self.world, config, self.weights)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class World:
    """A loader over a runtime of scripted models, with a clock that only it moves. It is its own runtime."""

    name = "scripted"
    starts_threads = False

    def __init__(self, capacity: int = 100_000, sizes: int = 10) -> None:
        self.now = 0
        self.slept: list[int] = []
        self.loads = self.runs = 0
        self.nices: set[int] = set()
        self.models: list[Model] = []
        self.hosted: list = []
        self.sizes = sizes
        self.ours, theirs = socket.socketpair()
        self.ledger = Ledger(capacity)
        self.loader = Loader(
            Outbox(theirs),
            self.ledger,
            device_kind="cpu",
            compute_units=1,
            clock=lambda: self.now,
            runtime_for=lambda name: self,
            sleep=self.sleep,
        )
        self._decoder = wire.events()

    def spend(self, passed_ns: int) -> None:
        self.now += passed_ns
        self.nices.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds * SECOND))
        self.now += round(seconds * SECOND)

    def check(self, path: Path) -> None:
        self.spend(5 * MS)

    def load(self, path: Path, config: LoadConfig) -> Model:
        self.loads += 1
        self.spend(2 * SECOND)
        model = Model(self, config, ["weights"])
        self.models.append(model)
        return model

    def host(self, hosted: object) -> None:
        self.hosted.append(hosted)

    def hosts(self, replica: int) -> bool:
        return False

    def bring(self, replica: int, tenant: str, path: Path, digest: str = "sha256:1", **fields: object) -> list:
        """Loads, and returns the events and when each came."""
        began = self.now
        self.loader._load(Load(replica, tenant, "m", 1, digest, str(path), "scripted", 0, 1, **fields), self)
        self.took = self.now - began
        return self.events()

    def take_away(self, replica: int) -> list:
        self.loader._unload(replica, self)
        return self.events()

    def events(self) -> list:
        return [event for events in self._decoder.feed(self.ours.recv(1 << 20)) for event in events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    artefact = tmp_path / "artefact"
    artefact.write_bytes(bytes(200))
    return artefact


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ledger.check_invariants()
    world.ours.close()


def shape(events: list) -> list:
    """What an executor sees, without whom it is about."""
    told = [event.stage if isinstance(event, Stage) else event for event in events]
    return [(each.signature, each.profile, each.memory_bytes) if isinstance(each, Loaded) else each for each in told]


def test_an_equal_artefact_is_loaded_once_and_neither_tenant_is_told(world: World, path: Path) -> None:
    first = world.bring(1, "a", path)
    first_took, used_bytes = world.took, world.ledger.used_bytes
    second = world.bring(2, "b", path)
    assert world.loads == 1
    assert world.hosted[0].model.weights is world.hosted[1].model.weights
    assert shape(second) == shape(first)
    assert shape(first)[:4] == ["checking", "loading", "warming up", "profiling"]
    least, most = PRETENDED_SPREAD
    assert first_took * least <= world.took <= first_took * most
    assert world.ledger.used_bytes == 2 * used_bytes, "a tenant is charged as if it were alone"


def test_pretending_measures_nothing(world: World, path: Path) -> None:
    world.bring(1, "a", path)
    runs = world.runs
    world.bring(2, "b", path)
    assert world.runs == runs


def test_weights_go_with_the_last_who_uses_them(world: World, path: Path) -> None:
    world.bring(1, "a", path)
    world.bring(2, "b", path)
    world.bring(3, "c", path)
    (origin,) = world.models
    models = [hosted.model for hosted in world.hosted]
    assert world.take_away(1) == [Unloaded(1)]
    assert [model.closed for model in models] == [False, False, False]
    world.take_away(3)
    assert [model.closed for model in models] == [False, False, True]
    world.take_away(2)
    assert all(model.closed for model in [origin, *models])
    assert world.ledger.used_bytes == 0
    world.bring(4, "d", path)
    assert world.loads == 2


def test_other_digests_share_nothing(world: World, path: Path) -> None:
    world.bring(1, "a", path)
    world.bring(2, "b", path, "sha256:2")
    world.bring(3, "b", path, "")
    world.bring(4, "b", path, "")
    assert world.loads == 4


def test_a_tenant_that_wants_other_batches_shares_the_weights_and_is_measured_for_itself(
    world: World, path: Path
) -> None:
    world.bring(1, "a", path)
    runs = world.runs
    events = world.bring(2, "b", path, max_batch_size=2)
    assert (world.loads, world.runs > runs) == (1, True)
    assert events[-1].signature.max_batch_size == 2


def test_a_known_profile_skips_measuring_for_the_second_as_for_the_first(world: World, path: Path) -> None:
    point = ProfilePoint(1, "2", 1, 5, 5, 1, 10)
    profile = Profile("sha256:1", "cpu", WEIGHTS, (point,), (SegmentCost("one", 5),))
    first = world.bring(1, "a", path, profile=profile)
    second = world.bring(2, "b", path, profile=profile)
    assert shape(first) == shape(second) == ["checking", "loading", (SIGNATURE, profile, WEIGHTS + 20)]
    assert world.runs == 0


def test_who_brings_no_profile_is_measured_although_the_first_one_did(world: World, path: Path) -> None:
    profile = Profile("sha256:1", "cpu", WEIGHTS, (), (SegmentCost("one", 5),))
    world.bring(1, "a", path, profile=profile)
    assert world.bring(2, "b", path)[-2:-1] == [Stage(2, "profiling")]
    assert world.runs > 0


def test_a_profile_of_another_kind_of_device_is_of_no_use(world: World, path: Path) -> None:
    world.bring(1, "a", path, profile=Profile("sha256:1", "gpu", WEIGHTS))
    assert world.runs > 0


def test_a_profile_from_a_lane_of_another_size_is_kept_and_this_lane_is_measured_beside_it(
    world: World, path: Path
) -> None:
    point = ProfilePoint(1, "2", 8, 5, 5, 1, 10)
    profile = Profile("sha256:1", "cpu", WEIGHTS, (point,), (SegmentCost("one", 5),))
    loaded = world.bring(1, "a", path, profile=profile)[-1]
    assert world.runs > 0
    assert [(each.compute_units, each.rows) for each in loaded.profile.points] == [(1, 1), (1, 2), (1, 4), (8, 1)]
    assert loaded.profile.points[-1] == point
    assert {each.compute_units for each in world.hosted[0].points} == {1}
    runs = world.runs
    again = world.bring(2, "b", path, profile=loaded.profile)[-1]
    assert (world.runs, again.profile) == (runs, loaded.profile)


def test_a_profile_of_another_cut_is_not_kept_beside_the_new_one(world: World, path: Path) -> None:
    point = ProfilePoint(1, "2", 8, 5, 5, 1, 10, (2, 3))
    profile = Profile("sha256:1", "cpu", WEIGHTS, (point,), (SegmentCost("one", 2), SegmentCost("two", 3)))
    loaded = world.bring(1, "a", path, profile=profile)[-1]
    assert {each.compute_units for each in loaded.profile.points} == {1}


def test_pretending_ends(world: World, path: Path) -> None:
    load = world.load

    def slowly(path: Path, config: LoadConfig) -> Model:
        world.spend(500 * SECOND)
        return load(path, config)

    world.load = slowly  # type: ignore[method-assign]
    world.bring(1, "a", path)
    world.bring(2, "b", path)
    assert max(world.slept) <= MOST_PRETENDED_NS * PRETENDED_SPREAD[1]


def test_a_second_replica_that_is_refused_is_refused_as_late_as_the_first_would_be(world: World, path: Path) -> None:
    world.bring(1, "a", path)
    events = world.bring(2, "b", path, batch_axes={"z": 0})
    assert events[-1] == LoadFailed(2, True, "model 'm' version 1: batch_axes: cannot be")
    assert world.took >= 1.9 * SECOND
    assert not world.hosted[0].model.closed


def test_a_tenant_is_refused_for_lack_of_room_although_the_weights_are_there(path: Path) -> None:
    world = World(capacity=2 * WEIGHTS)
    world.bring(1, "a", path)
    used = world.ledger.used_bytes
    refused = world.bring(2, "b", path)[-1]
    assert not refused.refused
    assert f"needs {used} bytes; {2 * WEIGHTS - used} of {2 * WEIGHTS} are free" in refused.message
    assert world.ledger.used_bytes == used
    assert not world.hosted[0].model.closed


def test_a_model_too_large_is_refused_before_it_is_loaded(path: Path) -> None:
    world = World(capacity=199)
    refused = world.bring(1, "a", path)[-1]
    assert (world.loads, refused.refused) == (0, False)
    assert refused.message == "model 'm' version 1: no room on the device: needs 200 bytes; 199 of 199 are free"


def test_a_load_that_runs_out_of_memory_says_so(world: World, path: Path) -> None:
    def greedy(path: Path, config: LoadConfig) -> Model:
        raise MemoryError

    world.load = greedy  # type: ignore[method-assign]
    failed = world.bring(1, "a", path)[-1]
    assert "there is not enough memory to load it" in failed.message
    assert world.ledger.used_bytes == 0


def test_a_replica_that_its_lane_refuses_is_let_go_of(world: World, path: Path) -> None:
    def oversold(hosted: object) -> None:
        raise ValueError("bandwidth: 900 millidevices do not fit")

    world.host = oversold  # type: ignore[method-assign]
    failed = world.bring(1, "a", path)[-1]
    assert "bandwidth: 900 millidevices do not fit" in failed.message
    assert (world.ledger.used_bytes, world.loader.is_empty, world.models[0].closed) == (0, True, True)


def test_a_replica_that_is_loaded_already_stays(world: World, path: Path) -> None:
    world.bring(1, "a", path)
    assert world.bring(1, "a", path)[-1].message == "replica 1 is loaded already"
    assert not world.models[0].closed
    assert world.ledger.used_bytes > 0


def test_loading_and_measuring_give_way_to_the_lane(world: World, path: Path) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    world.bring(1, "a", path)
    assert world.nices == {min(NICEST, ours + NICE)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours


def test_a_runtime_whose_threads_stay_loads_them_at_the_lanes_priority(world: World, path: Path) -> None:
    world.starts_threads = True
    world.loader._profiling._compute_units = 2
    seen: list[int] = []
    load = world.load
    world.load = lambda path, config: seen.append(threading.get_native_id()) or load(path, config)  # type: ignore[method-assign]
    world.bring(1, "a", path)
    assert seen == [threading.get_native_id()]


def test_a_call_in_the_background_raises_what_it_raised() -> None:
    background = Background()
    with pytest.raises(SystemExit):
        background.call(lambda: exit(3))
    assert background.call(lambda: 5) == 5
