"""The scenario of more models than memory: its window of a trace, and what its judge makes of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.gpu import swap
from bench.gpu.workload import Window, arrivals, by_rank, counts_of
from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.units import MS, SECOND

WINDOW = Window(3, 10 * SECOND, 100.0, first=2, minutes=2)


def traced(folder: Path, rows: list[list[int]]) -> Path:
    path = folder / "trace.csv"
    lines = ["HashFunction," + ",".join(f"minute_{number + 1}" for number in range(len(rows[0])))]
    path.write_text("\n".join([*lines, *(f"f{at}," + ",".join(map(str, row)) for at, row in enumerate(rows))]) + "\n")
    return path


def test_a_window_takes_functions_that_are_called_in_it(tmp_path: Path) -> None:
    trace = traced(tmp_path, [[9, 1, 2, 9], [9, 0, 0, 9], [0, 3, 4, 0], [0, 0, 5, 0]])
    assert counts_of(trace, WINDOW).tolist() == [[1, 2], [3, 4], [0, 5]]
    with pytest.raises(ValueError, match="3 functions are called in this window, 4 are needed"):
        counts_of(trace, WINDOW._replace(models=4))


def test_arrivals_keep_the_traces_shape_at_the_rate_that_is_asked_for() -> None:
    window = WINDOW._replace(span_ns=100 * SECOND)
    found = arrivals(np.array([[1, 1], [0, 6], [2, 0]]), window)
    assert found == sorted(found) == arrivals(np.array([[1, 1], [0, 6], [2, 0]]), window)
    assert len(found) == pytest.approx(10_000, rel=0.05)
    second = [moment for moment, model in found if model == 1]
    assert min(second) >= 50 * SECOND
    assert len(second) == pytest.approx(6000, rel=0.05)
    assert by_rank(window)[:, 0].tolist() == [1, 1 / 2, 1 / 3]


def samples(part: swap.Part) -> swap.Samples:
    model = SimulatedModel((Segment(MS),), 1)
    return swap.Samples({"few": part}, [(0, 0), (MS, 1), (SECOND, 0)], model, 1000, 1500, 1e6, 0, 2, None, "as said")


def test_less_than_the_least_in_time_does_not_hold() -> None:
    good = swap.judge(samples(swap.Part([MS] * 100, 99, 100, 4, 3, 8 * MS, SECOND)))
    assert all(good.holds.values())
    assert good.figures["few"]["requests_a_fill"] == 25.0
    assert not any(swap.judge(samples(swap.Part([MS] * 100, 98, 100, 4, 3, 0, SECOND))).holds.values())
    assert swap.judge(samples(swap.Part([], 0, 100, 0, 0, 0, SECOND))).not_measured == {"few": "nobody was answered"}


def test_what_was_measured_and_what_is_stated_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "STATED_SPAN", 5 * SECOND)
    told = swap.simulate(samples(swap.Part([], 0, 0, 0, 0, 0, 0)))
    first, *stated = told.parts.items()
    assert (first[0], first[1].met, first[1].asked) == ("few", 3, 3)
    assert len(stated) == len(swap.STATED_BUSES)
    assert all(name.startswith("stated: 100 models of 90 MB with memory for 20") for name, _ in stated)
    fast, slow = stated[0][1], stated[-1][1]
    assert fast.met / fast.asked > slow.met / slow.asked
