"""The supervisor's decisions: events in, actions out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.up.core import (
    SECOND,
    Announce,
    Answering,
    Begin,
    Exited,
    Finish,
    Kill,
    Notice,
    Phase,
    Probe,
    Publish,
    Ready,
    Service,
    Start,
    StopAsked,
    Supervisor,
    Terminate,
    Tick,
)

SERVICES = (
    Service("store", level=1),
    Service("brain", frozenset({"store"}), level=1),
    Service("front", frozenset({"store", "brain"}), level=0),
)


def named(actions, kind):
    return [action.name for action in actions if isinstance(action, kind)]


@pytest.fixture
def supervisor():
    return Supervisor(SERVICES)


@pytest.fixture
def running(supervisor):
    supervisor.handle(Begin(), 0)
    for k, service in enumerate(SERVICES):
        supervisor.handle(Ready(service.name, {"listen": f"127.0.0.1:{5000 + k}"}), SECOND)
    supervisor.handle(Answering(), SECOND)
    return supervisor


def test_only_what_needs_nothing_starts_at_first(supervisor):
    assert named(supervisor.handle(Begin(), 0), Start) == ["store"]


def test_a_service_starts_with_the_addresses_of_those_it_needs(supervisor):
    supervisor.handle(Begin(), 0)
    actions = supervisor.handle(Ready("store", {"listen": "127.0.0.1:5000"}), 1)
    assert actions == [Start("brain", {"store": {"listen": "127.0.0.1:5000"}}, None)]


def test_the_mesh_is_probed_once_everything_runs_and_announced_once_it_answers(supervisor):
    supervisor.handle(Begin(), 0)
    supervisor.handle(Ready("store", {}), 1)
    supervisor.handle(Ready("brain", {}), 2)
    assert supervisor.handle(Ready("front", {}), 3) == [Probe()]
    assert supervisor.handle(Answering(), 4) == [Publish(), Announce()]
    assert supervisor.handle(Answering(), 5) == []


def test_a_service_that_dies_starts_again_on_the_same_addresses_after_a_delay(running):
    (notice,) = running.handle(Exited("brain", -9), 2 * SECOND)
    assert notice == Notice("brain was killed by signal 9; starting it again in 0.5 s")
    assert running.handle(Tick(), 2 * SECOND + 1) == []
    due = running.wake_at()
    assert due == 2 * SECOND + SECOND // 2
    (start,) = running.handle(Tick(), due)
    assert start == Start("brain", {"store": {"listen": "127.0.0.1:5000"}}, {"listen": "127.0.0.1:5001"})
    assert running.handle(Ready("brain", {"listen": "127.0.0.1:5001"}), due + 1) == [Notice("brain is back"), Publish()]


def test_the_delay_doubles_while_a_service_keeps_dying_and_never_exceeds_half_a_minute(running):
    delays, now = [], 2 * SECOND
    for _ in range(9):
        running.handle(Exited("brain", 1), now)
        delays.append((running.wake_at() - now) / SECOND)
        now = running.wake_at()
        running.handle(Tick(), now)
        running.handle(Ready("brain", {}), now)
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_service_that_was_well_for_a_minute_starts_again_quickly(running):
    now = 2 * SECOND
    for _ in range(4):
        running.handle(Exited("brain", 1), now)
        now = running.wake_at()
        running.handle(Tick(), now)
        running.handle(Ready("brain", {}), now)
    now += 61 * SECOND
    running.handle(Exited("brain", 1), now)
    assert running.wake_at() - now == SECOND // 2


def test_a_service_that_cannot_start_ends_everything_with_its_own_words(supervisor):
    supervisor.handle(Begin(), 0)
    supervisor.handle(Ready("store", {}), 1)
    actions = supervisor.handle(Exited("brain", 2, "the port is in use"), 2)
    assert actions == [Terminate("store")]
    assert supervisor.handle(Exited("store", 0), 3) == [Finish(2, "the port is in use")]


def test_a_service_that_crashes_three_times_before_it_was_ever_ready_is_given_up(supervisor):
    supervisor.handle(Begin(), 0)
    now = 0
    for _ in range(2):
        assert named(supervisor.handle(Exited("store", 1), now), Terminate) == []
        now = supervisor.wake_at()
        assert named(supervisor.handle(Tick(), now), Start) == ["store"]
    assert supervisor.handle(Exited("store", 1, "boom"), now + 1) == [Finish(1, "boom")]


def test_a_port_that_was_taken_meanwhile_does_not_end_a_mesh_that_was_up(running):
    running.handle(Exited("brain", -9), 2 * SECOND)
    now = running.wake_at()
    running.handle(Tick(), now)
    (notice,) = running.handle(Exited("brain", 2, "the port is in use"), now + 1)
    assert "the port is in use" in notice.text
    assert running.wake_at() is not None


def test_what_takes_requests_stops_before_what_serves_them(running):
    assert running.handle(StopAsked(), 0) == [Terminate("front")]
    assert running.handle(Exited("front", 0), 1) == [Terminate("store"), Terminate("brain")]
    assert running.handle(Exited("brain", 0), 2) == []
    assert running.handle(Exited("store", 0), 3) == [Finish(0)]


def test_a_service_that_does_not_stop_in_time_is_killed(running):
    running.handle(StopAsked(), 0)
    due = running.wake_at()
    assert named(running.handle(Tick(), due - 1), Kill) == []
    assert named(running.handle(Tick(), due), Kill) == ["front"]


def test_asking_twice_to_stop_kills_everything_at_once(running):
    running.handle(StopAsked(), 0)
    assert named(running.handle(StopAsked(), 1), Kill) == ["store", "brain", "front"]
    for name in ("store", "brain"):
        assert running.handle(Exited(name, -9), 2) == []
    assert running.handle(Exited("front", -9), 2) == [Finish(0)]


def test_nothing_starts_again_while_stopping(running):
    running.handle(Exited("brain", 1), 2 * SECOND)
    running.handle(StopAsked(), 2 * SECOND)
    assert named(running.handle(Tick(), 60 * SECOND), Start) == []
    running.handle(Exited("front", 0), 61 * SECOND)
    assert running.handle(Exited("store", 0), 62 * SECOND) == [Finish(0)]


EVENTS = st.one_of(
    st.builds(Ready, st.sampled_from([s.name for s in SERVICES]), st.just({"listen": "127.0.0.1:1"})),
    st.builds(Exited, st.sampled_from([s.name for s in SERVICES]), st.sampled_from([0, 1, 2, -9])),
    st.builds(Tick),
    st.builds(Answering),
    st.builds(StopAsked),
)


class World:
    """Processes as the actions make them: an event about a process that does not run cannot happen."""

    def __init__(self):
        self.supervisor, self.alive, self.now, self.finished = Supervisor(SERVICES), set(), 0, None
        self.tell(Begin())

    def possible(self, event):
        return getattr(event, "name", None) is None or event.name in self.alive

    def tell(self, event):
        if isinstance(event, Exited):
            self.alive.discard(event.name)
        for action in self.supervisor.handle(event, self.now):
            assert self.finished is None, "an action after the end"
            if isinstance(action, Start):
                assert action.name not in self.alive, "started twice"
                self.alive.add(action.name)
            elif isinstance(action, Terminate | Kill):
                assert action.name in self.alive, "a signal to nobody"
            elif isinstance(action, Finish):
                assert not self.alive, "left something running"
                self.finished = action


@given(st.lists(st.tuples(EVENTS, st.integers(0, 40 * SECOND)), max_size=40))
def test_whatever_happens_nothing_runs_twice_and_nothing_is_left_at_the_end(story):
    world = World()
    for event, later in story:
        world.now += later
        if world.finished is None and world.possible(event):
            world.tell(event)
    if world.finished is None:
        world.tell(StopAsked())
    for _ in range(2 * len(SERVICES)):
        for name in sorted(world.alive):
            if world.supervisor.phase(name) is Phase.STOPPING:
                world.tell(Exited(name, 0))
    assert world.finished is not None
