"""What does not return is noticed, asked to stop, and in the end costs the worker."""

from __future__ import annotations

import pytest

from gpu_sharing.units import SECOND
from gpu_sharing.worker.watch import GRACE_NS, POLL_NS, Watch, Watched


class Story:
    """What a watch did."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.watch = Watch(clock=lambda: 0, end_worker=lambda: self.told.append("ended"))

    def begin(self, place: str = "lane", *, limit_ns: int = SECOND, stoppable: bool = False) -> None:
        stop = (lambda: self.told.append("stop")) if stoppable else None
        self.watch.begin(place, Watched("replica 7", limit_ns, stop, self.told.append))

    def pass_time(self, passed_ns: int) -> None:
        for _ in range(0, passed_ns, POLL_NS):
            self.watch.look(POLL_NS)


def test_what_returns_in_time_is_left_alone() -> None:
    story = Story()
    for _ in range(30):
        story.begin()
        story.pass_time(SECOND // 2)
        story.watch.end("lane")
    story.pass_time(10 * SECOND)
    assert story.told == []


def test_a_slice_that_follows_another_starts_anew() -> None:
    story = Story()
    for _ in range(30):
        story.begin()
        story.pass_time(SECOND // 2)
    assert story.told == []


def test_what_cannot_be_stopped_ends_the_worker_and_says_who_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    story.begin()
    story.pass_time(SECOND)
    assert story.told == []
    story.watch.look(POLL_NS)
    assert story.told == ["replica 7 has not returned for 1.0 s, at most 1.0 s are allowed", "ended"]
    assert "worker: replica 7 has not returned for 1.0 s" in capsys.readouterr().err


def test_what_can_be_stopped_is_asked_once_and_given_some_time() -> None:
    story = Story()
    story.begin(stoppable=True)
    story.pass_time(SECOND + GRACE_NS)
    assert story.told == ["stop"]
    story.watch.look(POLL_NS)
    assert story.told[-1] == "ended"


def test_what_stops_when_it_is_asked_ends_nothing() -> None:
    story = Story()
    story.begin(stoppable=True)
    story.pass_time(SECOND + POLL_NS)
    story.watch.end("lane")
    story.pass_time(10 * SECOND)
    assert story.told == ["stop"]


def test_the_lane_and_the_loader_are_watched_apart() -> None:
    story = Story()
    story.begin("loader", limit_ns=100 * SECOND)
    for _ in range(5):
        story.begin("lane")
        story.pass_time(SECOND // 2)
        story.watch.end("lane")
    assert story.told == []
    story.pass_time(100 * SECOND)
    assert story.told[-1] == "ended"
