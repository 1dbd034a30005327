"""How a model's requests wait, as its configuration wants it."""

from __future__ import annotations

import pytest

from services._proto.apportion.v1 import registry_pb2, scheduler_pb2
from services.executor.convert import wanted_from
from services.executor.core.replica_events import Queueing
from services.frontend.core.wire import LOWEST_PRIORITY


def queueing(**queue: int) -> Queueing:
    config = registry_pb2.VersionConfig(queue=registry_pb2.QueueLimits(**queue))
    return wanted_from(scheduler_pb2.LoadReplica(config=config.SerializeToString())).queueing


def level(number: int) -> int:
    """As the frontend sends the protocol's priority."""
    return LOWEST_PRIORITY - number + 1


def test_without_a_word_requests_wait_as_their_callers_say() -> None:
    told = queueing()
    assert told == Queueing()
    assert (told.deadline(100, None), told.deadline(100, 150)) == (None, 150)
    assert [told.priority(asked) for asked in (0, level(1), level(900))] == [0, level(1), level(900)]


def test_a_deadline_holds_for_those_who_allow_more() -> None:
    told = queueing(deadline_us=2)
    assert [told.deadline(100, asked) for asked in (None, 5000, 2100, 150)] == [2100, 2100, 2100, 150]


@pytest.mark.parametrize(("asked", "counts"), [(level(1), 1), (level(3), 3), (level(4), 2), (0, 2)])
def test_priorities_beyond_the_levels_and_none_count_as_the_default(asked: int, counts: int) -> None:
    assert queueing(priority_levels=3, default_priority=2).priority(asked) == level(counts)


def test_without_a_default_those_who_ask_for_no_priority_go_last() -> None:
    told = queueing(priority_levels=3)
    assert (told.priority(0), told.priority(level(9)), told.priority(level(3))) == (0, 0, level(3))
