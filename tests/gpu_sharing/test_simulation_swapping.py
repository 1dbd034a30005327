"""More models than memory, in virtual time: everybody is answered, and what is resident serves without waiting."""

from __future__ import annotations

import pytest

from gpu_sharing.memory.residence import Pace
from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.simulation.run import is_met
from gpu_sharing.simulation.swapping import simulate_swapping
from gpu_sharing.units import MS, SECOND, GiB, MiB

MODEL = SimulatedModel((Segment(1 * MS), Segment(1 * MS)), max_batch_size=4, weight_bytes=90 * MiB)
BUS = 9.0 * 1024 * MiB
"""90 MiB in about 10 ms."""


def run(arrivals: list[tuple[int, int]], count: int, room: int, bus: float = BUS, objective: int = 200 * MS):
    return simulate_swapping(
        [MODEL] * count, arrivals, objective_ns=objective, room_bytes=room * 90 * MiB, bytes_per_s=bus, memory_bytes=GiB
    )


def test_what_fits_is_never_moved_again() -> None:
    told = run([(at * 10 * MS, at % 3) for at in range(100)], 3, 3)
    assert (told.fills, told.evictions) == (0, 0)
    assert all(map(is_met, told.answers))


def test_a_model_that_is_out_is_answered_once_it_has_come_in_and_starts_before_all_of_it_is_there() -> None:
    told = run([(at * SECOND, at % 3) for at in range(1, 10)], 3, 2)
    cold = [answer for answer in told.answers if answer.moment - answer.request.arrived > 5 * MS]
    assert len(cold) == told.fills >= 3
    whole = Pace(SECOND / BUS).expect(90 * MiB)
    for answer in cold:
        assert whole + MS <= answer.moment - answer.request.arrived <= whole + 2 * MS


@pytest.mark.parametrize("room", [2, 3, 5])
def test_everybody_is_answered_however_little_there_is(room: int) -> None:
    told = run([(at * 3 * MS, (at * 7) % 11 % 6) for at in range(600)], 6, room, objective=10 * SECOND)
    assert {answer.reason for answer in told.answers} == {"OK"}


def test_a_resident_models_requests_do_not_wait_for_anothers_copy() -> None:
    steady = [(at * 10 * MS, 0) for at in range(300)]
    others = [(at * 300 * MS + 1, 1 + at % 4) for at in range(10)]
    told = run(sorted(steady + others), 5, 3)
    mine = [answer.moment - answer.request.arrived for answer in told.answers if answer.request.replica == 0]
    assert told.fills >= 5
    assert max(mine[10:]) <= 5 * MS
    assert told.copying_ns > 5 * 9 * MS


def test_a_bus_that_is_too_slow_for_the_objective_misses_it() -> None:
    told = run([(at * SECOND, at % 3) for at in range(1, 10)], 3, 2, bus=90 * MiB / 1.0)
    assert 0 < sum(map(is_met, told.answers)) < len(told.answers)
